"""inspect_weights.py on weights that the tests train, and on other people's and hostile files."""

import json
import shutil
from pathlib import Path

from common import LeNet, ResNet18, load

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import ROOT, read_run, run_command

import inspect_weights
from cifar10lab.data.loading import load_cifar10
from fast_model import FastNet


def test_a_runs_folder(lenet: Path) -> None:
    done = run_command("python", ROOT / "inspect_weights.py", lenet)
    assert done.code == 0, done.err
    rows = {line.split()[0]: line.split() for line in done.out.splitlines() if line[0] in "cft"}
    weights = torch.load(lenet / "model.pth", weights_only=True)
    assert list(rows) == [*weights, "total"]
    weight = weights["fc1.weight"].numpy()
    assert rows["fc1.weight"][1:3] == ["120x400", "48,000"]
    share = 100 * np.mean(abs(weight) < 1e-3)
    expected = [weight.mean(), weight.std(), weight.min(), weight.max(), share, np.linalg.norm(weight)]
    assert [float(cell) for cell in rows["fc1.weight"][3:]] == pytest.approx(expected, abs=0.006)
    assert rows["total"][1] == "62,006"
    assert matplotlib.image.imread(lenet / "weights.png").shape[1] == 1210


def test_the_same_test_images_as_arrays_give_the_same_figures(
    inspect, lenet: Path, tmp_path: Path, data_dir: Path
) -> None:
    data = load_cifar10(data_dir)
    np.save(tmp_path / "x.npy", data.test_images.permute(0, 2, 3, 1).numpy())
    np.save(tmp_path / "y.npy", data.test_labels.numpy())
    shutil.copytree(data_dir / "test", tmp_path / "alone" / "test")
    arrays = inspect(lenet, "--images", tmp_path / "x.npy", "--labels", tmp_path / "y.npy")
    folder = inspect(lenet, "--evaluate", "--data-dir", tmp_path / "alone")
    assert (arrays[0], folder[0]) == (0, 0), arrays[2] + folder[2]
    assert arrays[1].replace(str(tmp_path / "x.npy"), "image folder") == folder[1]
    assert inspect(lenet, "--images", tmp_path / "x.npy")[0] == 2


def test_evaluate_reports_what_the_run_did(inspect, lenet: Path) -> None:
    code, out, err = inspect(lenet, "--evaluate")
    assert code == 0, err
    history = read_run(lenet)["history"]
    assert f"test loss {history['test_loss'][-1]:.4f}, test accuracy {history['test_accuracy'][-1]:.2f} %" in out
    for name in ("confusion.png", "mistakes.png", "weights.png"):
        assert matplotlib.image.imread(lenet / name).shape[1] > 500


def test_confusion_matrix_counts_true_classes_in_rows() -> None:
    matrix = inspect_weights.confusion_matrix(torch.tensor([0, 0, 3]), torch.tensor([0, 5, 3]))
    assert matrix.sum() == 3 and matrix[0, 0] == matrix[0, 5] == matrix[3, 3] == 1


def test_two_files_side_by_side(inspect, lenet: Path, tmp_path: Path) -> None:
    weights = torch.load(lenet / "model.pth", weights_only=True)
    weights["fc1.weight"] = weights["fc1.weight"] / 2
    torch.save(weights, tmp_path / "half.pth")
    code, out, err = inspect(lenet, "--against", tmp_path / "half.pth")
    assert code == 0, err
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert rows["fc1.weight"][-2:] == ["0.5000", "0.5000"]
    assert rows["fc2.weight"][-2:] == ["1.0000", "0.0000"]
    assert matplotlib.image.imread(lenet / "weights-against-half.png").shape[1] > 1000
    assert not (lenet / "weights.png").exists()  # that is the first run's own picture
    (tmp_path / "another run").mkdir()
    (tmp_path / "half.pth").rename(tmp_path / "another run" / "model.pth")
    assert inspect(lenet, "--against", tmp_path / "another run")[0] == 0
    assert (lenet / "weights-against-another run.png").is_file()


def test_weights_from_before_an_option_of_their_model(tmp_path: Path) -> None:
    torch.save(FastNet().state_dict(), tmp_path / "model.pth")
    config = {"model": "FastNet", "epochs": 12}  # without a width
    (tmp_path / "loss.json").write_text(json.dumps({"experiment": "fast_model", "config": config}))
    assert type(load(tmp_path).model) is FastNet


FOREIGN = {
    "a plain state dict": lambda weights: weights,
    "module. prefixes": lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
    "under net, with prefixes": lambda weights: {
        "net": {f"module.{name}": tensor for name, tensor in weights.items()},
        "acc": 93.5,
        "epoch": 12,
    },
    "under model": lambda weights: {"model": weights},
    "under state_dict": lambda weights: {"state_dict": weights, "optimizer": {"lr": 0.1}},
    "under model_state_dict": lambda weights: {"model_state_dict": weights},
    "bfloat16": lambda weights: {name: tensor.bfloat16() for name, tensor in weights.items()},
    "float16": lambda weights: {name: tensor.half() for name, tensor in weights.items()},
}


@pytest.mark.parametrize("form", FOREIGN)
@pytest.mark.parametrize("model", [LeNet(0.5), ResNet18(4), ResNet18(6)], ids=["LeNet", "ResNet18-4", "ResNet18-6"])
def test_other_peoples_files(tmp_path: Path, form: str, model: torch.nn.Module) -> None:
    path = tmp_path / "weights.pth"
    torch.save(FOREIGN[form](model.state_dict()), path)
    loaded = load(path, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert type(loaded.model) is type(model)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(loaded.model.state_dict()[name].float(), tensor.float(), atol=2e-2), name
    assert loaded(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)).shape == (4, 10)


@pytest.mark.parametrize(
    "weights",
    [
        {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        {"layer.weight": torch.zeros(2, 2)},
        {"conv1.weight": torch.zeros(9999999, 1)},
    ],
    ids=["another ResNet", "another network", "an absurd width"],
)
def test_another_architecture_is_inspected_but_not_evaluated(inspect, tmp_path: Path, weights: dict) -> None:
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    code, out, _ = inspect(path)
    assert code == 0 and "total" in out and (tmp_path / "weights.png").is_file()
    code, _, err = inspect(path, "--evaluate")
    assert code == 1 and len(err.splitlines()) == 1 and "neither LeNet nor ResNet18 nor FastNet" in err


def test_weights_of_another_model_are_not_put_beside(inspect, lenet: Path, tmp_path: Path) -> None:
    torch.save(ResNet18(4).state_dict(), tmp_path / "other.pth")
    code, _, err = inspect(lenet, "--against", tmp_path / "other.pth")
    assert code == 1 and len(err.splitlines()) == 1 and "same model" in err


def test_it_needs_no_loss_json(inspect, lenet: Path, tmp_path: Path) -> None:
    shutil.copy(lenet / "best_model.pth", tmp_path / "alone.pth")
    code, out, _ = inspect(tmp_path / "alone.pth", "--evaluate")
    assert code == 0 and "test accuracy" in out and (tmp_path / "confusion.png").is_file()
