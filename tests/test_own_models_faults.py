"""Models of one's own that differ from ours, and what a notebook does around them."""

import dataclasses
from pathlib import Path

import common

import pytest
import torch
from conftest import read_run
from test_own_model import folder_of, perceptron  # noqa: F401
from test_parallel import in_processes, small_run
from torch import nn

from cifar10lab.devices.execution import Execution, has_unused_parameters, parallel_network
from cifar10lab.devices.processes import share_buffers
from original_version_model import SETTINGS as LENET

LAYERS = "self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3072, hidden), nn.ReLU(), nn.Linear(hidden, 10))"
NORMALISED = LAYERS.replace("nn.ReLU()", "nn.BatchNorm1d(hidden), nn.ReLU()")
CHANGES = {
    "unused layer": (LAYERS, f"{LAYERS}\n        self.unused = nn.Linear(2, 2)"),
    "lazy layer": ("nn.Linear(3072, hidden)", "nn.LazyLinear(hidden)"),
    "compiled part": ("nn.Linear(3072, hidden)", 'torch.compile(nn.Linear(3072, hidden), backend="eager")'),
    "BatchNorm1d": (LAYERS, NORMALISED),
    "tuple": ("return self.layers(images)", "return self.layers(images), images"),
    "five outputs": ("nn.Linear(hidden, 10)", "nn.Linear(hidden, 5)"),
}
LINES = {
    "tuple": "error: Perceptron makes a tuple of two images, not logits (2, 10)",
    "five outputs": "error: Perceptron makes (2, 5) of two images, not logits (2, 10)",
}


def changed(script: Path, what: str) -> Path:
    text = script.read_text()
    for old, new in (CHANGES[what], ("from torch import Tensor, nn", "import torch\nfrom torch import Tensor, nn")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    script.write_text(text)
    return script


@pytest.mark.parametrize("what", ["unused layer", "lazy layer", "compiled part", "BatchNorm1d"])
def test_it_trains_alone_and_in_processes_and_is_evaluated(run, together, perceptron: Path, what: str) -> None:  # noqa: F811
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


@pytest.mark.parametrize("what", LINES)
def test_what_is_no_classifier_of_ten_is_one_line_before_training(run, together, perceptron: Path, what) -> None:  # noqa: F811
    script = changed(perceptron, what)
    for done in (run(script), together(2, script)):
        assert done.code == 1 and set(done.err.splitlines()) == {LINES[what]}, done.err
    assert not (script.parent / "modelset" / "Perceptron").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_of_one_image_before_batch_norm_is_one_line(run, together, perceptron: Path, processes: int) -> None:  # noqa: F811
    script = changed(perceptron, "BatchNorm1d")
    arguments = (script, "--batch-size", 33)
    done = run(*arguments) if processes == 1 else together(processes, *arguments)
    assert done.code == 1 and len(set(done.err.splitlines())) == 1, done.err
    assert "100 images in batches of 33" in done.err and "--batch-size" in done.err
    assert not (script.parent / "modelset" / "Perceptron").exists()


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


def test_looking_for_unused_parameters_leaves_the_network_as_it_was() -> None:
    model = Normalised().train()
    before = common.weights_on_cpu(model)
    assert not has_unused_parameters(model, torch.device("cpu"))
    model.extra = nn.Linear(2, 2)
    assert has_unused_parameters(model, torch.device("cpu"))
    del model.extra
    after = common.weights_on_cpu(model)
    assert model.training and all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    share_buffers(model)  # alone, there is nothing to share


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


@pytest.mark.parametrize("says", [True, False])
def test_what_an_instance_says_of_bf16_decides(monkeypatch, says: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    model = common.LeNet()
    model.bf16 = says
    execution = common.start_execution("cpu", "auto", common.interface_of(model).bf16, data_parallel=False)
    assert execution.precision == ("bf16" if says else "fp32")
