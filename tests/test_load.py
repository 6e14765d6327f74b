"""common.load: a trained model, ready to use."""

import copy
import io
import shutil
import warnings
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
    torch.manual_seed(0)
    torch.save(common.LeNet().state_dict(), tmp_path / "lenet.pth")
    return common.load(tmp_path / "lenet.pth", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def some_images(kind: str) -> torch.Tensor:
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images if kind == "uint8" else images / 255


def test_bytes_and_floats_of_the_same_images_have_the_same_logits(model: torch.nn.Module) -> None:
    images = some_images("uint8")
    before, logits = images.clone(), model(images)
    assert logits.shape == (5, 10) and logits.dtype == torch.float32
    assert torch.allclose(model(images / 255), logits, atol=1e-5)
    assert torch.allclose(model(images.double() / 255), logits, atol=1e-5)
    assert torch.equal(images, before)
    assert torch.equal(copy.deepcopy(model)(images), logits)
    assert model(images[:0]).shape == model(images[:0] / 255).shape == (0, 10)


def exported_to_onnx(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    pytest.importorskip("onnxscript")
    onnx, content = pytest.importorskip("onnx"), io.BytesIO()
    torch.onnx.export(model, (images,), content, verbose=False)
    reference = pytest.importorskip("onnx.reference").ReferenceEvaluator(onnx.load_from_string(content.getvalue()))
    return torch.from_numpy(reference.run(None, {reference.input_names[0]: images.numpy()})[0])


PROGRAMS = {
    "export": lambda model, images: torch.export.export(model, (images,)).module()(images),
    "compile": lambda model, images: torch.compile(model, fullgraph=True, backend="aot_eager")(images),
    "vmap": lambda model, images: torch.func.vmap(model)(images[:, None])[:, 0],
    "ONNX": exported_to_onnx,
}


@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize("what", PROGRAMS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_can_be_exported_and_compiled(model: torch.nn.Module, what: str, kind: str) -> None:
    images = some_images(kind)
    assert torch.allclose(PROGRAMS[what](model, images), model(images), atol=1e-4)


def test_a_wide_resnet_in_vmap(tmp_path: Path) -> None:
    torch.save(common.ResNet18(16).state_dict(), tmp_path / "wide.pth")  # its weights are channels_last
    model, images = common.load(tmp_path / "wide.pth", mean=(0.5,) * 3, std=(0.5,) * 3), some_images("float")
    assert torch.allclose(torch.func.vmap(model)(images[:, None])[:, 0], model(images), atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_it_takes_images_in_the_type_of_its_weights(model: torch.nn.Module, kind: torch.dtype) -> None:
    expected = model(some_images("float"))
    logits = model.to(kind)(some_images("float"))
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


def test_a_key_chooses_among_several_networks(tmp_path: Path) -> None:
    weights = {name: common.LeNet().state_dict() for name in ("net", "ema")}
    torch.save(weights, tmp_path / "both.pth")
    with pytest.warns(UserWarning, match=r"both\.pth: no run says .* mean=\(0\.5, 0\.5, 0\.5\), std=\(0\.5"):
        loaded = common.load(tmp_path / "both.pth", key="ema")
    assert torch.equal(loaded.model.fc3.weight, weights["ema"]["fc3.weight"])


def test_a_normalisation_may_be_given(tmp_path: Path) -> None:
    torch.save(common.ResNet18(4).state_dict(), tmp_path / "other.pth")
    black = torch.zeros(1, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (
            common.load(tmp_path / "other.pth", mean=mean, std=(0.5,) * 3) for mean in [(0.5,) * 3, (0,) * 3]
        )
        assert not torch.allclose(first(black), second(black))
    assert torch.equal(first.model((black - 0.5) / 0.5), first(black))
    with pytest.raises(common.UserError, match="belong together"):
        common.load(tmp_path / "other.pth", mean=(0.5,) * 3)


def test_only_a_runs_own_files_are_as_its_run_says(lenet: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("", "model.pth", "best_model.pth"):
            common.load(lenet / name)
    shutil.copy(lenet / "model.pth", lenet / "from_elsewhere.pth")
    with pytest.warns(UserWarning, match="no run says"):
        common.load(lenet / "from_elsewhere.pth")


def test_a_run_on_the_stand_in_is_told(run, inspect, tmp_path: Path) -> None:
    arguments = ("--dataset", "synthetic", "--epochs", 1, "--batch-size", 1000, "--output", tmp_path / "run")
    assert run("original_version_model", *arguments).code == 0
    with pytest.warns(UserWarning, match=r"model\.pth was trained on the synthetic stand-in"):
        common.load(tmp_path / "run")
    code, _, err = inspect(tmp_path / "run", "--evaluate")
    assert code == 0 and "model.pth was trained on the synthetic stand-in" in err


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_as_the_hub_lays_it(tmp_path: Path, name: str) -> None:
    weights = common.LeNet().state_dict()
    (tmp_path / "config.json").write_text('{"architecture": "lenet", "num_classes": 10}')
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors.torch").save_file(weights, tmp_path / name)
    else:
        torch.save(weights, tmp_path / name)
    model = common.load(tmp_path, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert torch.equal(model.model.fc3.weight, weights["fc3.weight"])


def test_what_cannot_be_loaded_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(common.UserError, match=r"model\.pth does not exist"):
        common.load(tmp_path)
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(common.UserError, match=r"other\.pth is neither LeNet nor ResNet18"):
        common.load(tmp_path / "other.pth")
