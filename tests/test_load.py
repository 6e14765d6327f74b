"""common.load: a trained model, ready to use."""

import copy
import json
import os
import shutil
import signal
from pathlib import Path

import common

import pytest
import torch
from conftest import at, read_run

from cifar10lab.data.loading import load_cifar10
from cifar10lab.inspection.models import recognise
from fast_model import FastNet


def test_a_runs_models_have_the_runs_accuracies(reference, data_dir: Path) -> None:
    arguments = ("--epochs", 2, "--batch-size", 10, "--width", 8, "--lr", 0.1, "--precision", "fp32")
    folder = reference("fast_model", *arguments)
    result, data = read_run(folder)["result"], load_cifar10(data_dir)
    for path, which in ((folder, "final"), (str(folder / "best_model.pth"), "best")):
        model = common.load(path)
        assert not any(module.training for module in model.modules())
        accuracy = 100 * model(data.test_images).argmax(1).eq(data.test_labels).float().mean().item()
        assert accuracy == pytest.approx(result[f"{which}_test_accuracy"]), which


IMAGES = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tmp_path: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    torch.save(common.LeNet().state_dict(), tmp_path / "lenet.pth")
    return common.load(tmp_path / "lenet.pth", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def test_bytes_and_floats_of_the_same_images_have_the_same_logits(model: torch.nn.Module) -> None:
    before, logits = IMAGES.clone(), model(IMAGES)
    assert logits.shape == (5, 10) and logits.dtype == torch.float32
    assert torch.allclose(model(IMAGES / 255), logits, atol=1e-5)
    assert torch.allclose(model(IMAGES.double() / 255), logits, atol=1e-5)
    assert torch.equal(IMAGES, before)
    assert torch.equal(copy.deepcopy(model)(IMAGES), logits)
    assert model(IMAGES[:0]).shape == model(IMAGES[:0] / 255).shape == (0, 10)


@pytest.mark.parametrize("images", [IMAGES, IMAGES / 255], ids=["uint8", "float"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_can_be_exported_and_compiled(model: torch.nn.Module, images: torch.Tensor) -> None:
    exported = torch.export.export(model, (images,)).module()
    assert torch.allclose(exported(images), model(images), atol=1e-4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(images), model(images), atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_it_takes_images_in_the_type_of_its_weights(model: torch.nn.Module, kind: torch.dtype) -> None:
    expected, logits = model(IMAGES / 255), model.to(kind)(IMAGES / 255)
    assert logits.dtype == kind and torch.allclose(logits.float(), expected, atol=2e-2)


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


def test_a_key_chooses_among_several_networks_and_a_normalisation_may_be_given(tmp_path: Path) -> None:
    weights, path = {name: common.LeNet().state_dict() for name in ("net", "ema")}, tmp_path / "both.pth"
    torch.save(weights, path)
    black, mean = torch.zeros(1, 3, 32, 32), (0.1, 0.2, 0.3)
    model = common.load(path, key="ema", mean=mean, std=(0.5,) * 3)
    assert torch.equal(model.model.fc3.weight, weights["ema"]["fc3.weight"])
    assert torch.equal(model.model((black - torch.tensor(mean).view(3, 1, 1)) / 0.5), model(black))
    with pytest.raises(common.UserError, match="belong together"):
        common.load(path, mean=mean)


@pytest.mark.filterwarnings("error::UserWarning")
def test_only_a_runs_own_files_are_as_its_run_says(lenet: Path) -> None:
    for name in ("", "model.pth", "best_model.pth"):
        common.load(lenet / name)
    shutil.copy(lenet / "model.pth", lenet / "from_elsewhere.pth")
    with pytest.warns(UserWarning, match="no run says"):
        common.load(lenet / "from_elsewhere.pth")
    record = read_run(lenet)
    record["dataset"]["name"] = "synthetic"
    (lenet / "loss.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match=r"model\.pth was trained on the synthetic stand-in"):
        common.load(lenet)


@pytest.mark.filterwarnings("error::UserWarning")
def test_an_unfinished_checkpoint_says_itself_what_it_is(run, tmp_path: Path) -> None:
    words = ("fast_model", "--width", 4, "--output", tmp_path / "run")
    assert run(*words, moment=at("step", 1, signal.SIGTERM)).code == -signal.SIGTERM
    alone = shutil.copy(tmp_path / "run" / "checkpoint.pth", tmp_path / "alone.pth")
    assert type(common.load(alone).model) is type(common.load(tmp_path / "run").model) is FastNet


def test_a_run_before_an_option_of_its_model_and_a_checkpoint_beside_its_loss_json(tmp_path: Path) -> None:
    torch.save(FastNet().state_dict(), tmp_path / "model.pth")
    run = {"experiment": "fast_model", "config": {"model": "FastNet", "epochs": 12}}  # without a width
    (tmp_path / "loss.json").write_text(json.dumps(run))
    assert type(common.load(tmp_path).model) is FastNet
    other = {"experiment": "resnet_model", "config": {"model": "ResNet18", "width": 4}}
    torch.save({**other, "model": common.ResNet18(4).state_dict()}, tmp_path / "checkpoint.pth")
    assert type(common.load(tmp_path / "checkpoint.pth").model) is common.ResNet18


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_as_the_hub_lays_it(tmp_path: Path, name: str) -> None:
    weights = common.LeNet().state_dict()
    (tmp_path / "config.json").write_text('{"architecture": "lenet", "num_classes": 10}')
    save = torch.save if name.endswith("bin") else pytest.importorskip("safetensors.torch").save_file
    save(weights, tmp_path / name)
    model = common.load(tmp_path, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert torch.equal(model.model.fc3.weight, weights["fc3.weight"])
    os.truncate(tmp_path / name, 10_000)
    with pytest.raises(common.UserError, match=name):
        common.load(tmp_path)


def test_what_cannot_be_loaded_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(common.UserError, match=r"model\.pth can't be read: No such file"):
        common.load(tmp_path)
    absurd = {"groups.0.conv1.weight": torch.zeros(1).expand(10**8, 3, 1, 1)}  # 100 million filters
    with pytest.raises(common.UserError, match=r"absurd\.pth holds no weights of LeNet or ResNet18 or FastNet"):
        recognise(absurd, tmp_path / "absurd.pth")
