"""A model of one's own: the README's script, Python instead of the command line, and models that differ from ours."""

import dataclasses
import functools
import re
import signal
import sys
from pathlib import Path

import common
from common import Settings

import nbclient
import nbformat
import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, at, folder_of, in_processes, read_run, same_losses, same_weights, small_run, without_times
from torch import nn

from cifar10lab.data.loading import load_cifar10
from cifar10lab.devices.execution import Execution
from cifar10lab.models.interface import try_model
from cifar10lab.models.source import import_source
from fast_model import FastNet
from original_version_model import SETTINGS as LENET


def test_it_trains_resumes_shares_the_work_and_is_compared_and_evaluated(run, together, perceptron: Path) -> None:
    here, folder, words = perceptron.parent, folder_of(perceptron, "hidden=20"), (perceptron, "--hidden", 20)
    assert run(*words, moment=at("step", 3, signal.SIGTERM)).code == -signal.SIGTERM  # of 2 an epoch
    done = run(*words, "--resume")
    assert done.code == 0 and "resuming at epoch 2" in done.out, done.err
    assert run(*words, "--output", here / "whole").code == 0
    assert without_times(folder) == without_times(here / "whole")
    assert same_weights(folder / "model.pth", here / "whole" / "model.pth")
    done = together(2, *words, "--output", here / "two")
    assert done.code == 0, done.err
    one, two = read_run(folder), read_run(here / "two")
    assert two["environment"]["world_size"] == 2
    for name in ("train_loss", "test_loss", "test_accuracy"):
        assert two["history"][name] == pytest.approx(one["history"][name], rel=1e-4), name
    done = run(here / "compare_results.py")
    assert done.code == 0, done.err
    assert "hidden 20" in done.out and re.search(r"^Perceptron +2 ", done.out, re.MULTILINE)
    done = run(here / "inspect_weights.py", folder, "--evaluate")
    assert done.code == 0, done.err
    assert f"test accuracy {one['result']['final_test_accuracy']:.2f} %" in done.out


# --- From Python


def settings_for(data_dir: Path, output: Path, **changes: object) -> Settings:
    return dataclasses.replace(LENET, data_dir=data_dir, output=output, **changes)


def test_in_a_notebook(data_dir: Path, tmp_path: Path) -> None:
    cells = [
        f"%cd -q {ROOT}",
        "import dataclasses, common, original_version_model",
        "class Net(common.LeNet):\n    pass",
        "settings = dataclasses.replace(original_version_model.SETTINGS, model=Net, epochs=1)",
        f"common.run(dataclasses.replace(settings, data_dir='{data_dir}', output='{tmp_path}/cell'))",
        f"try:\n    common.load('{tmp_path}/cell')\nexcept common.UserError as error:\n    reason = str(error)",
        "assert reason == 'Net can\\'t be made again: its class was in no file, as in a notebook\\'s cell', reason",
        f"%run original_version_model.py --epochs 1 --data-dir {data_dir} --output {tmp_path}/b",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=100, kernel_name="python3").execute()
    printed = "".join(output["text"] for output in notebook.cells[-1]["outputs"])
    assert "test accuracy" in printed and f"results in {tmp_path}/b" in printed
    assert same_losses(tmp_path / "cell", tmp_path / "b")


def test_after_reloading_a_run_goes_to_the_folder_of_its_settings(run, copied: Path) -> None:
    (copied / "notebook.py").write_text(
        "import dataclasses, importlib, sys, common, original_version_model\n"
        "changed = dataclasses.replace(original_version_model.SETTINGS, epochs=1, lr=0)\n"
        "for name in ('cifar10lab.settings.experiment', 'common'):\n"
        "    importlib.reload(sys.modules[name])\n"
        "common.run(changed)\n"
    )
    done = run(copied / "notebook.py")
    assert done.code == 0, done.err
    assert [path.name for path in (copied / "modelset" / "original_version_model").iterdir()] == ["lr=0,epochs=1"]


# --- What a script or a notebook may get wrong


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": 1.5}, "--epochs can't be '1.5': expected a whole number of at least 1"),
        ({"lr": float("inf")}, "--lr can't be 'inf'"),
        ({"lr": float("nan")}, "--lr can't be 'nan'"),
        ({"lr": None}, "--lr can't be 'None'"),
        ({"resolutions": "24,33"}, "--resolutions can't be '24,33'"),
        ({"augment": "no"}, "--augment can't be 'no'"),
        ({"nesterov": True, "momentum": 0}, "--nesterov needs --optimizer sgd and a --momentum"),
        ({"nesterov": True, "optimizer": "adamw"}, "--nesterov needs --optimizer sgd"),
        ({"model": FastNet, "optimizer": "adamw"}, "FastNet brings its own optimizer: leave out --optimizer"),
        ({"cutout": 8}, "--cutout needs --augment"),
        ({"model": common.ResNet18, "resolutions": "16,32", "epochs": 1}, "--resolutions needs an epoch for each size"),
        ({"model": functools.partial(common.LeNet, 0.5)}, "the model can't be a partial: give its class"),
        ({"options": {"seeds": 3}}, "LeNet can't have an option seeds"),
        ({"options": {"dropout": nn.ReLU}}, "--dropout can't be <class 'torch.nn.modules.activation.ReLU'>"),
        ({"options": {"dropout": float("nan")}}, "--dropout can't be nan: options are finite numbers"),
        ({"options": {"schedule": "x"}}, "schedule"),
    ],
    ids=str,
)
def test_impossible_settings_are_named_before_training(data_dir, tmp_path: Path, changes: dict, named: str) -> None:
    with pytest.raises(common.WrongOption, match=re.escape(named)):
        common.run(settings_for(data_dir, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_numpys_values_are_as_good_as_pythons() -> None:
    values = {"epochs": np.int64(7), "lr": np.float64(0.5), "augment": np.True_, "schedule": np.str_("cosine")}
    checked = common.checked(dataclasses.replace(LENET, **values, options={"dropout": np.float64(0.25)}))
    found = [*(getattr(checked, name) for name in values), checked.options["dropout"]]
    assert found == [7, 0.5, True, "cosine", 0.25] and {*map(type, found)} == {int, float, bool, str}


class Described(common.LeNet):
    """Options with the default None, a setting's name, and a number of another type than annotated."""

    def __init__(self, hidden: int | None = None, device: str = "cpu", text: str = "$x^$", drop: float = 0) -> None:
        super().__init__()


def test_flags_are_of_the_annotated_types_and_those_of_settings_stay_theirs(monkeypatch, data_dir: Path) -> None:
    stated = dataclasses.replace(LENET, model=Described, data_dir=data_dir, folder="Described")
    words = ["--epochs", "1", "--text", "a/b$x^$", "--hidden", "7", "--drop", "0.5"]
    monkeypatch.setattr(sys, "argv", ["described.py", *words])
    training, _ = common.to_be_trained(*common.parse_arguments(stated, ""), stated)
    assert training.settings.options == {"hidden": 7, "text": "a/b$x^$", "drop": 0.5}
    assert training.folder == ROOT / "modelset" / "Described" / "hidden=7,text=a_b$x^$,drop=0.5,epochs=1"


# --- A run's model is made again


@pytest.mark.parametrize("name", ["我的-net.py", "torch.py", "../elsewhere/net.py"])
def test_a_script_of_any_name_and_place_without_a_guard(run, perceptron: Path, name: str) -> None:
    """It is not trained again when the inspection imports it."""
    script, here = (perceptron.parent / name).resolve(), perceptron.parent
    script.parent.mkdir(exist_ok=True)
    text = perceptron.read_text().replace('experiment="perceptron"', f'experiment="{script.stem}"')
    text = text.replace('if __name__ == "__main__":\n    main(', "main(")
    script.write_text(text.replace("from common", f"import sys; sys.path.append({str(here)!r})\nfrom common", 1))
    done = run(script, "--hidden", 20, "--epochs", 1)
    assert done.code == 0 and all(line.startswith("warning: Glyph") for line in done.err.splitlines()), done.err
    (folder,) = (path.parent for path in here.glob("modelset/**/loss.json"))
    before = (folder / "loss.json").stat().st_mtime_ns
    done = run(here / "inspect_weights.py", folder, "--evaluate")
    assert (done.code, done.err) == (0, "")
    assert f"test accuracy {read_run(folder)['result']['final_test_accuracy']:.2f} %" in done.out
    assert (folder / "loss.json").stat().st_mtime_ns == before
    script.write_text(script.read_text().replace("nn.ReLU", "nn.Tanh"))
    assert "has changed since this run" in run(here / "inspect_weights.py", folder, "--evaluate").err


def loaded_loss(folder: Path, data_dir: Path) -> float:
    """Of the model that is loaded from a run's folder."""
    data = load_cifar10(data_dir)
    return nn.functional.cross_entropy(common.load(folder)(data.test_images), data.test_labels).item()


class Wide(nn.Module):
    """Options without which its tensors have the same shapes."""

    def __init__(self, widths: tuple[int, ...] = (8,), scale: float | None = None, names=("a",)) -> None:
        super().__init__()
        assert isinstance(widths, tuple) and isinstance(names, tuple)
        self.scale = 1.0 if scale is None else scale
        sizes = zip((3, *widths), (*widths, 10), strict=True)
        self.layers = nn.Sequential(*(nn.Linear(a, b) for a, b in sizes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(self.scale * images.mean((2, 3)))


@pytest.mark.parametrize("options", [{"scale": 30.0}, {"widths": (4, 6), "names": ("b", "c")}], ids=str)
def test_options_that_are_none_or_tuples_are_those_of_the_run(data_dir: Path, tmp_path: Path, options: dict) -> None:
    record = common.run(settings_for(data_dir, tmp_path, model=Wide, options=options, epochs=1))
    assert loaded_loss(tmp_path, data_dir) == pytest.approx(record["history"]["test_loss"][-1], rel=1e-5)


class ReadsAFile(common.LeNet):
    def __init__(self, prior: str = "") -> None:
        super().__init__()
        self.register_buffer("prior", torch.load(prior))


def test_a_constructor_that_fails_says_why(data_dir: Path, tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "prior.pt")
    settings = settings_for(data_dir, tmp_path / "out", model=ReadsAFile, options={"prior": str(tmp_path / "prior.pt")})
    common.run(dataclasses.replace(settings, epochs=1))
    (tmp_path / "prior.pt").unlink()
    for attempt in (lambda: common.load(tmp_path / "out"), lambda: common.run(settings)):
        with pytest.raises(common.UserError, match=r"^ReadsAFile can't be made: FileNotFoundError: .*prior\.pt"):
            attempt()


@pytest.mark.parametrize(
    ("script", "named"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("import common, resnet_model\ncommon.run(resnet_model.SETTINGS)", "UserError: .* imported trains nothing"),
    ],
)
def test_a_script_that_cannot_be_imported_is_named(tmp_path: Path, script: str, named: str) -> None:
    (tmp_path / "mine.py").write_text(f"{script}\n")
    with pytest.raises(common.UserError, match=rf"^mine\.py can't be imported: {named}"):
        import_source(str(tmp_path / "mine.py"))


# --- The trial before a run


class Pooled(nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(images).mean((2, 3)))


class Lazy(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.LazyConv2d(8, 3), nn.LazyLinear(10)


class WeightNormalised(Pooled):
    """What copy.deepcopy refuses after a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.weight_norm(self.conv)


class Keeps(Pooled):
    """Keeps a tensor of its evaluation for its training."""

    width, place = 0, None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-1] != self.width:
            self.width, self.place = images.shape[-1], torch.linspace(0, 1, images.shape[-1])
        return self.fc(self.conv(images * self.place).mean((2, 3)))


class Odd(Pooled):
    """A parameter of whole numbers, and a state dict with something else in it."""

    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.arange(8), requires_grad=False)

    def get_extra_state(self) -> dict:
        return {"version": 2}

    def set_extra_state(self, state: dict) -> None:
        assert state == {"version": 2}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(images).mean((2, 3))[:, self.order])


class Compiled(Pooled):
    """A compiled part, and a layer that isn't used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused = torch.compile(self.conv, backend="eager"), nn.Linear(2, 2)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("model", [Lazy, WeightNormalised, Keeps, Odd, Compiled])
def test_what_a_plain_loop_trains_is_trained_and_loaded(data_dir: Path, tmp_path: Path, model: type) -> None:
    settings = settings_for(data_dir, tmp_path, model=model, epochs=2, batch_size=33, resolutions="24,32")  # 100 images
    record = common.run(settings)
    assert not any("_orig_mod" in name for name in torch.load(tmp_path / "model.pth", weights_only=True))
    assert loaded_loss(tmp_path, data_dir) == pytest.approx(record["history"]["test_loss"][-1], rel=1e-5)


class ViT(torchvision.models.VisionTransformer):
    def __init__(self) -> None:
        super().__init__(224, 16, 2, 2, 32, 64, num_classes=10)


class TwoInTraining(Pooled):
    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple:
        logits = super().forward(images)
        return (logits, logits) if self.training else logits


class FiveOutputs(Pooled):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)[:, :5]


class WithoutGradients(Pooled):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).detach()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ViT, r"tested on images \(2, 3, 32, 32\): AssertionError: Wrong image height! Expected 224 but got 32!"),
        (common.LeNet, r"trained on images \(2, 3, 28, 28\): RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        (TwoInTraining, r"trained on images \(2, 3, 28, 28\): it makes a tuple of them, not logits \(2, 10\)"),
        (FiveOutputs, r"tested on images \(2, 3, 32, 32\): it makes \(2, 5\) of them, not logits \(2, 10\)"),
        (WithoutGradients, r"trained on images \(2, 3, 28, 28\): RuntimeError: element 0 of tensors does not require"),
    ],
)
def test_what_cannot_be_trained_is_one_line_before_anything_is_written(
    data_dir: Path, tmp_path: Path, model: type, reason: str
) -> None:
    with pytest.raises(common.UserError, match=f"^{model.__name__} can't be {reason}.*$"):
        common.run(settings_for(data_dir, tmp_path / "out", model=model, resolutions="28,32"))
    assert not (tmp_path / "out").exists()


class Changing(Pooled):
    """Its training changes buffers, one of them by putting another in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.spectral_norm(self.conv)
        self.norm, self.dropout = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + len(images) if self.training else self.seen
        return self.fc(self.dropout(self.norm(self.conv(images).mean((2, 3)))))


def test_a_trial_leaves_the_model_and_the_random_numbers_as_they_were() -> None:
    model = Changing()
    before, numbers = common.weights_on_cpu(model), torch.get_rng_state()
    try_model(model, Execution(torch.device("cpu"), "fp32", "none"), [24, 32])
    after = common.weights_on_cpu(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), numbers)


class ByChance(Pooled):
    """Skips a layer in half of the training steps."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(10, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return logits if self.training and torch.rand(()) < 0.5 else logits + self.last(logits)


def trained(rank: int, number: int, folder: Path, model: type) -> tuple[list[float], dict, bool]:
    execution = Execution(torch.device("cpu"), "fp32", "DistributedDataParallel", rank, number)
    settings = dataclasses.replace(LENET, model=model, epochs=1, batch_size=20, lr=0.1)
    run = dataclasses.replace(small_run(settings, execution), folder=folder)
    losses = common.train(run, common.State()).history["test_loss"]
    return losses, common.weights_on_cpu(run.model), run.network.broadcast_buffers


@pytest.mark.parametrize(("model", "exchanges"), [(ByChance, False), (Changing, True)])
def test_in_processes_the_test_loss_is_that_of_the_saved_weights(tmp_path: Path, model: type, exchanges: bool) -> None:
    run = small_run(dataclasses.replace(LENET, model=model), Execution(torch.device("cpu"), "fp32", "none"))
    for losses, weights, exchanges_buffers in in_processes(2, tmp_path, trained, tmp_path, model):
        run.model.load_state_dict(weights)
        loss, _ = common.evaluate(run, run.data.test_images, run.data.test_labels)
        assert losses[-1] == pytest.approx(loss, rel=1e-6)
        assert exchanges_buffers == exchanges, "buffers are exchanged at each step only where they aren't synced"


def test_batch_norm_of_one_image_is_refused_and_of_several_is_not_synced(together, perceptron: Path) -> None:
    text = perceptron.read_text()
    perceptron.write_text(text.replace("nn.ReLU()", "nn.BatchNorm1d(hidden), nn.ReLU()"))
    done = together(2, perceptron, "--batch-size", 33)  # the last step has one of 100 images
    assert done.code == 1 and len(set(done.err.splitlines())) == 1, done.err
    assert "can't be trained on images (1, 3, 32, 32), as some steps have with this --batch-size: Value" in done.err
    assert not (perceptron.parent / "modelset" / "Perceptron").exists()
    done = together(2, perceptron, "--epochs", 1)
    assert done.code == 0 and done.out.count("buffers of BatchNorm1d are not synced") == 1, done.err
