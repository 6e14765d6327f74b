"""common.load: a trained model, ready to use."""

import copy
from pathlib import Path

import common

import pytest
import torch
from conftest import read_run

from cifar10lab.data.loading import load_cifar10


def accuracy(model: torch.nn.Module, data_dir: Path) -> float:
    data = load_cifar10(data_dir)
    with torch.inference_mode():
        return 100 * model(data.test_images).argmax(1).eq(data.test_labels).float().mean().item()


@pytest.mark.parametrize(
    "script",
    [
        ("dropout_regularization", "--epochs", 2, "--batch-size", 10, "--lr", 0.01),
        ("resnet_model", "--epochs", 1, "--batch-size", 10, "--width", 4),
        ("fast_model", "--epochs", 1, "--batch-size", 10, "--width", 8, "--lr", 0.1),
    ],
    ids=lambda script: script[0],
)
def test_a_runs_model_has_the_runs_accuracy(run, tmp_path: Path, data_dir: Path, script: tuple) -> None:
    assert run(*script, "--precision", "fp32", "--output", tmp_path).code == 0
    model, result = common.load(tmp_path), read_run(tmp_path)["result"]
    assert not any(module.training for module in model.modules())
    assert accuracy(model, data_dir) == pytest.approx(result["final_test_accuracy"])
    best = common.load(str(tmp_path / "best_model.pth"))
    assert accuracy(best, data_dir) == pytest.approx(result["best_test_accuracy"])


@pytest.fixture
def model(tmp_path: Path) -> torch.nn.Module:
    torch.save(common.LeNet().state_dict(), tmp_path / "lenet.pth")
    return common.load(tmp_path / "lenet.pth")


def test_bytes_and_floats_of_the_same_images_have_the_same_logits(model: torch.nn.Module) -> None:
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, logits = images.clone(), model(images)
    assert logits.shape == (5, 10) and logits.dtype == torch.float32
    assert torch.allclose(model(images / 255), logits, atol=1e-5)
    assert torch.allclose(model(images.double() / 255), logits, atol=1e-5)
    assert torch.equal(images, before)
    assert torch.equal(copy.deepcopy(model)(images), logits)
    assert model(images[:0]).shape == model(images[:0] / 255).shape == (0, 10)


@pytest.mark.parametrize(
    ("images", "named"),
    [
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\)"),
        (torch.zeros(2, 32, 32, 3), r"\(2, 32, 32, 3\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), "int64"),
        (torch.full((2, 3, 32, 32), 255.0), "from 0 to 1"),
        (torch.full((2, 3, 32, 32), -0.5), "from 0 to 1"),
    ],
    ids=["no batch", "channels last", "int64", "up to 255", "normalised"],
)
def test_other_images_are_refused(model: torch.nn.Module, images: torch.Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        model(images)


def test_a_key_chooses_among_several_networks(tmp_path: Path) -> None:
    weights = {name: common.LeNet().state_dict() for name in ("net", "ema")}
    torch.save(weights, tmp_path / "both.pth")
    loaded = common.load(tmp_path / "both.pth", key="ema")
    assert torch.equal(loaded.model.fc3.weight, weights["ema"]["fc3.weight"])


def test_what_cannot_be_loaded_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(common.UserError, match=r"model\.pth does not exist"):
        common.load(tmp_path)
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(common.UserError, match=r"other\.pth is neither LeNet nor ResNet18"):
        common.load(tmp_path / "other.pth")
