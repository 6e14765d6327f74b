"""inspect_weights.py on runs and on files that no run says anything of: figures, tables, pictures and errors."""

import shutil
from pathlib import Path

from common import LeNet, ResNet18

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import read_run

from cifar10lab.data.loading import load_cifar10


def test_a_runs_folder(inspect, lenet: Path) -> None:
    code, out, err = inspect(lenet)
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line[0] in "cft"}
    weights = torch.load(lenet / "model.pth", weights_only=True)
    assert list(rows) == [*weights, "total"]
    weight = weights["fc1.weight"].numpy()
    assert rows["fc1.weight"][1:3] == ["120x400", "48,000"]
    share = 100 * np.mean(abs(weight) < 1e-3)
    expected = [weight.mean(), weight.std(), weight.min(), weight.max(), share, np.linalg.norm(weight)]
    assert [float(cell) for cell in rows["fc1.weight"][3:]] == pytest.approx(expected, abs=0.006)
    assert rows["total"][1] == "62,006"


def result_of(run: Path) -> str:
    history = read_run(run)["history"]
    return f"test loss {history['test_loss'][-1]:.4f}, test accuracy {history['test_accuracy'][-1]:.2f} % (40 images"


def test_evaluate_needs_test_images_alone_and_reports_what_the_run_did(
    inspect, lenet: Path, tmp_path: Path, data_dir: Path
) -> None:
    shutil.copytree(data_dir / "test", tmp_path / "alone" / "test")
    code, out, err = inspect(lenet, "--evaluate", "--data-dir", tmp_path / "alone")
    assert (code, err) == (0, "") and result_of(lenet) in out
    assert "images are normalised with mean 0.5 0.5 0.5, std 0.5 0.5 0.5\n" in out
    for name in ("confusion.png", "mistakes.png", "weights.png"):
        assert matplotlib.image.imread(lenet / name).shape[1] > 500


def test_a_file_alone_is_evaluated_on_arrays_with_an_assumed_normalisation_which_is_told(
    inspect, lenet: Path, tmp_path: Path, data_dir: Path
) -> None:
    path, data = tmp_path / "alone.pth", load_cifar10(data_dir)
    shutil.copy(lenet / "best_model.pth", path)
    np.save(tmp_path / "x.npy", data.test_images.permute(0, 2, 3, 1).numpy())
    np.save(tmp_path / "y.npy", data.test_labels.numpy())
    code, out, err = inspect(path, "--images", tmp_path / "x.npy", "--labels", tmp_path / "y.npy")
    assert code == 0 and result_of(lenet) in out and str(tmp_path / "x.npy") in out
    assumed = "mean (0.5, 0.5, 0.5) and std (0.5, 0.5, 0.5) are assumed, unless mean and std are given"
    assert err == f"warning: {path}: no run says how images were normalised in training: {assumed}\n"


IMPOSSIBLE = {
    "one without the other": "--mean 0.5 0.5 0.5",
    "a deviation of 0": "--mean 0.5 0.5 0.5 --std 0 1 1",
    "from 0 to 255": "--mean 125 125 125 --std 1 1 1",
    "images without labels": "--images x.npy",
    "two sets of images": "--evaluate --images x.npy --labels y.npy",
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_impossible_arguments_are_one_line(inspect, tmp_path: Path, what: str) -> None:
    code, out, err = inspect(tmp_path, *IMPOSSIBLE[what].split())
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and "--" in err


def test_two_files_side_by_side(inspect, lenet: Path, tmp_path: Path) -> None:
    weights = torch.load(lenet / "model.pth", weights_only=True)
    weights["fc1.weight"] = weights["fc1.weight"] / 2
    torch.save(weights, tmp_path / "half.pth")
    code, out, err = inspect(lenet, "--against", tmp_path / "half.pth")
    assert code == 0, err
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert rows["fc1.weight"][-2:] == ["0.5000", "0.5000"]
    assert rows["fc2.weight"][-2:] == ["1.0000", "0.0000"]
    (tmp_path / "another run").mkdir()
    (tmp_path / "half.pth").rename(tmp_path / "another run" / "model.pth")
    assert inspect(lenet, "--against", tmp_path / "another run")[0] == 0
    assert (lenet / "weights-against-another run.png").is_file()
    torch.save(ResNet18(4).state_dict(), tmp_path / "other.pth")
    code, _, err = inspect(lenet, "--against", tmp_path / "other.pth")
    assert code == 1 and len(err.splitlines()) == 1 and "same model" in err


def test_another_architecture_is_inspected_but_not_evaluated(inspect, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "weights.pth")
    code, out, err = inspect(tmp_path / "weights.pth", "--evaluate")
    assert "total" in out and (tmp_path / "weights.png").is_file()
    assert code == 1 and len(err.splitlines()) == 1 and "no weights of LeNet or ResNet18 or FastNet" in err


def test_weights_with_nan_or_infinity_are_evaluated_with_a_warning(inspect, tmp_path: Path) -> None:
    weights = LeNet().state_dict()
    weights["fc1.weight"][0, 0] = float("nan")
    weights["conv1.weight"][0, 0, 0, 0] = float("inf")
    weights["fc3.weight"][:] = -float("inf")  # not one finite value is left to be drawn
    torch.save(weights, tmp_path / "model.pth")
    code, out, err = inspect(tmp_path, "--evaluate")
    assert code == 0 and "test accuracy" in out and (tmp_path / "weights.png").is_file()
    assert f"warning: in {tmp_path / 'model.pth'}, conv1.weight and 2 more tensors hold NaN or infinity" in err
    assert len(err.splitlines()) == 2, err  # the other is of the normalisation


def test_key_on_the_command_line(inspect, tmp_path: Path) -> None:
    path, networks = tmp_path / "several.pth", {"net": LeNet().state_dict(), "ema": LeNet().state_dict()}
    torch.save(networks, path)
    code, out, err = inspect(path, "--key", "ema", "--output", tmp_path)
    assert (code, err) == (0, "")
    assert f"{torch.cat([t.flatten() for t in networks['ema'].values()]).norm():.3f}" in out
    code, out, err = inspect(path, "--key", "none")
    assert (code, out) == (1, "")
    assert err == f"error: {path} has no weights under none: expected net, ema\n"
    code, out, err = inspect(path, "--key", "ema", "--against", path)
    row = next(line for line in out.splitlines() if line.startswith("fc1.weight"))
    assert code == 0 and row.split()[-1] != "0.0000", "--key is not of the other file"
    torch.save(networks["net"], path)
    code, _, err = inspect(path, "--key", "net")
    assert code == 1 and "expected no --key" in err
