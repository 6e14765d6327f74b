"""Models of one's own that differ from ours, and what a notebook does around them."""

import dataclasses
from pathlib import Path

import common

import pytest
import torch
import torchvision
from conftest import folder_of, in_processes, read_run, small_run
from torch import nn

from cifar10lab.data.loading import load_cifar10
from cifar10lab.devices.execution import Execution, parallel_network
from cifar10lab.models.trial import try_model
from original_version_model import SETTINGS as LENET

LAYERS = "self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3072, hidden), nn.ReLU(), nn.Linear(hidden, 10))"
CHANGES = {
    "unused layer": (LAYERS, f"{LAYERS}\n        self.unused = nn.Linear(2, 2)"),
    "compiled part": ("nn.Linear(3072, hidden)", 'torch.compile(nn.Linear(3072, hidden), backend="eager")'),
    "BatchNorm1d": (LAYERS, LAYERS.replace("nn.ReLU()", "nn.BatchNorm1d(hidden), nn.ReLU()")),
}


def changed(script: Path, what: str) -> Path:
    text = script.read_text()
    for old, new in (CHANGES[what], ("from torch import Tensor, nn", "import torch\nfrom torch import Tensor, nn")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    script.write_text(text)
    return script


@pytest.mark.parametrize("what", CHANGES)
def test_it_trains_alone_and_in_processes_and_is_evaluated(run, together, perceptron: Path, what: str) -> None:
    script, folder = changed(perceptron, what), folder_of(perceptron, "hidden=20")
    done = run(script, "--hidden", 20, "--device", "cpu")
    assert done.code == 0, done.err
    alone = read_run(folder)
    assert not any("_orig_mod" in name for name in torch.load(folder / "model.pth", weights_only=True))
    done = run(script.parent / "inspect_weights.py", folder, "--evaluate")
    assert done.code == 0, done.err
    assert f"test accuracy {alone['result']['final_test_accuracy']:.2f} %" in done.out
    done = together(2, script, "--hidden", 20)
    assert done.code == 0, done.err
    assert done.out.count("buffers of BatchNorm1d are not synced") == (what == "BatchNorm1d")
    if what != "BatchNorm1d":
        assert read_run(folder)["history"]["test_loss"] == pytest.approx(alone["history"]["test_loss"], rel=1e-4)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_of_one_image_before_batch_norm_is_one_line(run, together, perceptron: Path, processes: int) -> None:
    script = changed(perceptron, "BatchNorm1d")
    arguments = (script, "--batch-size", 33)
    done = run(*arguments) if processes == 1 else together(processes, *arguments)
    assert done.code == 1 and len(set(done.err.splitlines())) == 1, done.err
    assert "can't be trained on images (1, 3, 32, 32), as some steps have with this --batch-size: Value" in done.err
    assert not (script.parent / "modelset" / "Perceptron").exists()


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


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("model", [Lazy, WeightNormalised, Keeps, Odd])
def test_what_a_plain_loop_trains_is_trained_and_loaded(data_dir: Path, tmp_path: Path, model: type) -> None:
    settings = dataclasses.replace(LENET, model=model, epochs=2, batch_size=33, resolutions="24,32")  # 100 images
    record = common.run(dataclasses.replace(settings, data_dir=data_dir, output=tmp_path))
    images, labels = (getattr(load_cifar10(data_dir), f"test_{name}") for name in ("images", "labels"))
    loss = nn.functional.cross_entropy(common.load(tmp_path)(images), labels).item()
    assert loss == pytest.approx(record["history"]["test_loss"][-1], rel=1e-5)


class AlexNet(torchvision.models.AlexNet):
    def __init__(self) -> None:
        super().__init__(num_classes=10)


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
        (AlexNet, r"tested on images \(2, 3, 32, 32\): RuntimeError: Given input size: .*too small"),
        (ViT, r"tested on images \(2, 3, 32, 32\): AssertionError: Wrong image height! Expected 224 but got 32!"),
        (TwoInTraining, r"trained on images \(2, 3, 32, 32\): it makes a tuple of them, not logits \(2, 10\)"),
        (FiveOutputs, r"tested on images \(2, 3, 32, 32\): it makes \(2, 5\) of them, not logits \(2, 10\)"),
        (WithoutGradients, r"trained on images \(2, 3, 32, 32\): RuntimeError: element 0 of tensors does not require"),
    ],
)
def test_what_cannot_be_trained_is_one_line_before_anything_is_written(
    data_dir: Path, tmp_path: Path, model: type, reason: str
) -> None:
    settings = dataclasses.replace(LENET, model=model, data_dir=data_dir, output=tmp_path / "out")
    with pytest.raises(common.UserError, match=f"^{model.__name__} can't be {reason}.*$"):
        common.run(settings)
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


class ByChance(nn.Module):
    """Skips each of its layers in half of the training steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 10)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images.mean((2, 3)))
        for layer in self.layers:
            x = x if self.training and torch.rand(()) < 0.5 else x + layer(x)
        return self.last(x)


def with_layers_by_chance(rank: int, number: int, folder: Path) -> list[float]:
    execution = Execution(torch.device("cpu"), "fp32", "DistributedDataParallel", rank, number)
    settings = dataclasses.replace(LENET, model=ByChance, epochs=1, batch_size=20, lr=0.1)
    run = dataclasses.replace(small_run(settings, execution), folder=folder)
    return common.train(run, common.State()).history["test_loss"]


def test_layers_may_be_skipped_by_chance_in_processes(tmp_path: Path) -> None:
    first, second = in_processes(2, tmp_path, with_layers_by_chance, tmp_path)
    assert first == second


# --- Buffers over processes


class Normalised(nn.Module):
    """BatchNorm1d, and a buffer that counts images."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += len(images)
        return self.layers(images)


def trained(rank: int, number: int, folder: Path) -> tuple[list[float], dict]:
    execution = Execution(torch.device("cpu"), "fp32", "DistributedDataParallel", rank, number)
    settings = dataclasses.replace(LENET, model=Normalised, epochs=1, batch_size=20, lr=0.1)
    run = dataclasses.replace(small_run(settings, execution), folder=folder)
    return common.train(run, common.State()).history["test_loss"], common.weights_on_cpu(run.model)


def test_the_recorded_test_loss_is_that_of_the_saved_weights(tmp_path: Path) -> None:
    members = in_processes(2, tmp_path, trained, tmp_path)
    for losses, weights in members:
        settings = dataclasses.replace(LENET, model=Normalised)
        run = small_run(settings, Execution(torch.device("cpu"), "fp32", "none"))
        run.model.load_state_dict(weights)
        loss, _ = common.evaluate(run, run.data.test_images, run.data.test_labels)
        assert losses[-1] == pytest.approx(loss, rel=1e-6)


def wrapped(rank: int, number: int) -> list[bool]:
    execution = Execution(torch.device("cpu"), "fp32", "DistributedDataParallel", rank, number)
    models = (common.LeNet(), common.ResNet18(4), Normalised())
    return [parallel_network(model, execution).broadcast_buffers for model in models]


def test_buffers_are_exchanged_at_each_step_only_where_they_are_not_synced(tmp_path: Path) -> None:
    assert in_processes(2, tmp_path, wrapped) == [[False, False, True]] * 2


# --- Around a run in a notebook


def test_another_default_type_changes_nothing_and_is_put_back(data_dir: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(LENET, epochs=1, batch_size=20, data_dir=data_dir, device="cpu")
    records = [common.run(dataclasses.replace(settings, output=tmp_path / "a"))]
    torch.set_default_dtype(torch.float64)
    try:
        records.append(common.run(dataclasses.replace(settings, output=tmp_path / "b")))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert records[0]["history"]["test_loss"] == records[1]["history"]["test_loss"]


def test_after_reloading_a_run_goes_to_the_folder_of_its_settings(run, copied: Path) -> None:
    script = copied / "notebook.py"
    lines = (
        "import dataclasses, importlib, sys, common, original_version_model",
        "changed = dataclasses.replace(original_version_model.SETTINGS, epochs=1, lr=0)",
        "for name in ('cifar10lab.settings.experiment', 'common'):",
        "    importlib.reload(sys.modules[name])",
        "print(common.run(changed)['experiment'])",
    )
    script.write_text("\n".join(lines))
    done = run(script)
    assert done.code == 0, done.err
    assert [path.name for path in (copied / "modelset" / "original_version_model").iterdir()] == ["lr=0,epochs=1"]
