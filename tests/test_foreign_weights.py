"""Weights files that don't say how images were normalised or which model they are of, and files of other kinds."""

import dataclasses
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import common
from common import LeNet

import numpy as np
import pytest
import torch
from conftest import Command, make_image_folder, wait_for
from PIL import Image
from torch import nn

from cifar10lab.data.loading import CLASSES
from cifar10lab.inspection.models import recognise
from cifar10lab.inspection.weights import read_weights
from cifar10lab.terminal.errors import UserError
from fast_model import FastNet
from original_version_model_multigpu import SETTINGS

THEIRS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # https://github.com/kuangliu/pytorch-cifar


class Theirs(LeNet):
    """LeNet with that repository's normalisation."""

    cifar10_interface = common.Interface(*THEIRS)


# --- Normalisation


@pytest.fixture(scope="module")
def greys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 training and 200 test images, whose classes differ in their brightness alone."""
    folder, random = tmp_path_factory.mktemp("greys"), np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 20)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.normal(20 + 24 * label, 4, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def theirs(greys: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A LeNet that was trained with other constants and saved as that repository does; its accuracy, "90.00"."""
    folder = tmp_path_factory.mktemp("theirs")
    settings = dataclasses.replace(SETTINGS, experiment="theirs", model=Theirs, epochs=20, batch_size=10)
    settings = dataclasses.replace(settings, lr=0.01, momentum=0.9, schedule="cosine")
    record = common.run(dataclasses.replace(settings, data_dir=greys, output=folder / "run"))
    model, accuracy = Theirs(), record["result"]["final_test_accuracy"]
    model.load_state_dict(torch.load(folder / "run" / "model.pth", weights_only=True))
    (folder / "checkpoint").mkdir()
    state = {"net": nn.DataParallel(model).state_dict(), "acc": accuracy, "epoch": 19}
    torch.save(state, folder / "checkpoint" / "ckpt.pth")
    return folder / "checkpoint" / "ckpt.pth", f"{accuracy:.2f}"


def words(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def test_some_images_tell_how_images_were_normalised(inspect, theirs: tuple[Path, str], greys: Path) -> None:
    path, accuracy = theirs
    code, out, err = inspect(path, "--evaluate", "--data-dir", greys)
    assert (code, err) == (0, "")
    assert f"images are normalised with mean {words(THEIRS[0])}" in out and "rule out the other usual ones" in out
    own = next(line for line in out.splitlines() if line.startswith("0.5 0.5 0.5  "))
    assert own.endswith("worse")
    assert f"test accuracy {accuracy} %" in out


def test_a_given_normalisation_gives_the_true_figure(inspect, theirs: tuple[Path, str], greys: Path) -> None:
    path, accuracy = theirs
    given = ["--mean", *THEIRS[0], "--std", *THEIRS[1]]
    code, out, err = inspect(path, "--evaluate", "--data-dir", greys, *given)
    assert (code, err) == (0, "")
    assert f"images are normalised with mean {words(THEIRS[0])}, std {words(THEIRS[1])} (as given)" in out
    assert f"test accuracy {accuracy} %" in out
    given = ["--mean", 0.5, 0.5, 0.5, "--std", 0.5, 0.5, 0.5]
    _, out, _ = inspect(path, "--evaluate", "--data-dir", greys, *given)
    assert f"test accuracy {accuracy} %" not in out


def test_where_nothing_tells_the_models_own_is_assumed_and_printed(inspect, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(LeNet().state_dict(), tmp_path / "untrained.pth")
    make_image_folder(tmp_path / "photos", 1, 1)
    photo = tmp_path / "photos" / "test" / "cat" / "0000.png"
    for arguments, why in {("--evaluate",): "assumed;", ("--classify", photo): "assumed, as no run says:"}.items():
        code, out, err = inspect(tmp_path / "untrained.pth", *arguments)
        assert (code, err) == (0, "")
        assert f"mean 0.5 0.5 0.5, std 0.5 0.5 0.5 ({why} --mean and --std set others)" in out


def test_ones_own_runs_say_how_images_were_normalised(inspect, lenet: Path) -> None:
    _, out, _ = inspect(lenet, "--evaluate")
    assert "images are normalised with mean 0.5 0.5 0.5, std 0.5 0.5 0.5 (the model's own, as its run says)" in out
    assert "The usual ways" not in out


IMPOSSIBLE = {
    "one without the other": "--mean 0.5 0.5 0.5",
    "a deviation of 0": "--mean 0.5 0.5 0.5 --std 0 1 1",
    "from 0 to 255": "--mean 125 125 125 --std 1 1 1",
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_an_impossible_normalisation_is_one_line(inspect, tmp_path: Path, what: str) -> None:
    code, out, err = inspect(tmp_path, *IMPOSSIBLE[what].split())
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and ("--mean" in err or "--std" in err)


# --- Which model


def test_fastnets_weights_alone(tmp_path: Path) -> None:
    network = FastNet(width=4)
    torch.save(network.state_dict(), tmp_path / "alone.pth")
    model = common.load(tmp_path / "alone.pth", mean=(0.5,) * 3, std=(0.5,) * 3).model
    assert type(model) is FastNet
    assert torch.equal(model.groups[0].conv1.weight.contiguous(), network.groups[0].conv1.weight)


def test_an_absurd_width_of_fastnet_is_no_model(tmp_path: Path) -> None:
    weights = {"groups.0.conv1.weight": torch.zeros(1).expand(10**8, 3, 1, 1)}
    with pytest.raises(UserError, match="neither LeNet nor ResNet18 nor FastNet"):
        recognise(weights, tmp_path / "absurd.pth")


@pytest.mark.parametrize("what", ["a folder", "a file alone"])
def test_an_unfinished_checkpoint_says_itself_what_it_is(start, inspect, tmp_path: Path, what: str) -> None:
    running = start("fast_model", "--width", 4, "--epochs", 1000, "--output", tmp_path / "run")
    wait_for(tmp_path / "run" / "checkpoint.pth")
    os.kill(running.process.pid, 15)
    assert running.finish().code == -15
    path = tmp_path / "run"
    if what == "a file alone":
        path = tmp_path / "alone" / "mine.pth"
        path.parent.mkdir()
        shutil.copy(tmp_path / "run" / "checkpoint.pth", path)
    code, out, err = inspect(path, "--evaluate")
    assert code == 0, err
    assert "as its run says" in out and "test accuracy" in out


def test_a_checkpoint_beside_another_runs_loss_json(tmp_path: Path) -> None:
    (tmp_path / "loss.json").write_text(json.dumps({"experiment": "resnet_model", "config": {"model": "ResNet18"}}))
    config = {"model": "FastNet", "width": 4}
    state = {"experiment": "fast_model", "config": config, "model": FastNet(4).state_dict()}
    torch.save(state, tmp_path / "checkpoint.pth")
    assert type(common.load(tmp_path / "checkpoint.pth").model) is FastNet


# --- Other kinds of files


def test_safetensors(tmp_path: Path) -> None:
    network, path = LeNet(), tmp_path / "model.safetensors"
    pytest.importorskip("safetensors.torch").save_file(network.state_dict(), path)
    weights = read_weights(path)
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="is cut short or no safetensors file"):
        read_weights(path)


def state_dict_file() -> bytes:
    torch.save(LeNet().state_dict(), content := io.BytesIO())
    return content.getvalue()


NO_WEIGHTS = {
    "TorchScript": lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path),
    "an HDF5 file": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)),
    "a gzip archive": lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(99)),
    "a web page": lambda path: path.write_text("<!DOCTYPE html>\n<html><head><title>404</title>"),
    "a Git LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\n"),
    "Chinese": lambda path: path.write_text("文件不存在", encoding="utf-8"),
    "cut short": lambda path: path.write_bytes(state_dict_file()[:-5000]),
    "a pickled module": lambda path: torch.save(LeNet(), path),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Command("true"))),
    "missing": lambda path: None,
    "NumPy arrays": lambda path: np.savez(path.open("wb"), a=np.ones(3)),
    "a list": lambda path: torch.save([LeNet().state_dict(), 0.93], path),
    "a tensor": lambda path: torch.save(torch.ones(2, 2), path),
    "no tensors": lambda path: torch.save({"epoch": 3, "acc": 90.0}, path),
    "an empty dictionary": lambda path: torch.save({"x": {}}, path),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("what", NO_WEIGHTS)
def test_what_is_no_state_dict_is_one_line_that_says_what_is_expected(tmp_path: Path, what: str) -> None:
    NO_WEIGHTS[what](tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"^.*weights\.pth .*(expected .*|does not exist)$") as error:
        read_weights(tmp_path / "weights.pth")
    assert "\n" not in str(error.value)


def test_a_state_dict_with_a_number_in_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network, path = LeNet(), tmp_path / "weights.pth"
    torch.save({**network.state_dict(), "epoch": 3, "acc": 93.5, "name": "best"}, path)
    weights = read_weights(path)
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1 and "left out: epoch, acc, name" in err
