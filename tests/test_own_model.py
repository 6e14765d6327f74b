"""A model of one's own: the README's script, as it stands there, and Python instead of the command line."""

import re
import signal
import threading
from pathlib import Path

import common

import nbclient
import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT, at, folder_of, read_run, same_losses, same_weights, without_times
from torch.optim.optimizer import register_optimizer_step_post_hook

from cifar10lab.data.loading import load_cifar10
from original_version_model import SETTINGS as LENET


def test_it_trains_is_compared_and_evaluated(run, perceptron: Path) -> None:
    done = run(perceptron, "--hidden", 20, "--device", "cpu")
    assert done.code == 0, done.err
    folder = folder_of(perceptron, "hidden=20")
    record = read_run(folder)
    assert record["config"]["model"] == "Perceptron" and record["config"]["hidden"] == 20
    done = run(perceptron.parent / "compare_results.py")
    assert done.code == 0, done.err
    assert "hidden 20" in done.out and re.search(r"^Perceptron +2 ", done.out, re.MULTILINE)
    done = run(perceptron.parent / "inspect_weights.py", folder, "--evaluate")
    assert done.code == 0, done.err
    assert f"test accuracy {record['result']['final_test_accuracy']:.2f} %" in done.out


@pytest.mark.parametrize("value", ["0", "many"])
def test_a_value_that_it_cannot_take_is_one_line_and_code_2(run, perceptron: Path, value: str) -> None:
    done = run(perceptron, "--hidden", value)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1 and "--hidden" in done.err, done.err
    assert not (perceptron.parent / "modelset" / "Perceptron").exists()


def test_interrupted_and_resumed_it_ends_the_same(run, perceptron: Path) -> None:
    whole, folder = perceptron.parent / "whole", folder_of(perceptron, "epochs=4")
    assert run(perceptron, "--epochs", 4, "--output", whole).code == 0
    assert run(perceptron, "--epochs", 4, moment=at("step", 3, signal.SIGTERM)).code == -signal.SIGTERM  # of 2 an epoch
    done = run(perceptron, "--epochs", 4, "--resume")
    assert done.code == 0 and "resuming at epoch 2" in done.out, done.err
    assert without_times(folder) == without_times(whole)
    assert same_weights(folder / "model.pth", whole / "model.pth")


def test_in_several_processes_it_is_the_single_process(run, together, perceptron: Path) -> None:
    done = together(2, perceptron, "--epochs", 3)
    assert done.code == 0, done.err
    several = read_run(folder_of(perceptron, "epochs=3"))
    assert several["environment"]["world_size"] == 2
    assert run(perceptron, "--epochs", 3, "--device", "cpu").code == 0
    alone = read_run(folder_of(perceptron, "epochs=3"))
    for name in ("train_loss", "test_loss", "test_accuracy"):
        assert several["history"][name] == pytest.approx(alone["history"][name], rel=1e-4), name


# --- From Python


class OneWeight(torch.nn.Module):
    """A model that says nothing of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.mean((2, 3)))


def test_a_model_that_says_nothing_gets_the_defaults(data_dir: Path, tmp_path: Path) -> None:
    settings = common.Settings("one", "One", OneWeight, 1, lr=0.1, momentum=0.9, batch_size=10, data_dir=data_dir)
    record = common.run(common.dataclasses.replace(settings, output=tmp_path / "out", device="cpu"))
    assert record == read_run(tmp_path / "out")
    assert record["config"]["model"] == "OneWeight" and record["environment"]["precision"] == "fp32"
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 32, 32)
    interfaces = [common.interface_of(model) for model in (OneWeight(), common.ResNet18(4))]
    assert torch.equal(*(common.model_input(images, interface) for interface in interfaces))


def settings_for(data_dir: Path, output: Path, **changes: object) -> common.Settings:
    return common.dataclasses.replace(LENET, data_dir=data_dir, output=output, **changes)


def test_a_run_leaves_the_process_as_it_was(data_dir: Path, tmp_path: Path) -> None:
    def state() -> tuple:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return *handlers, torch.get_num_threads(), torch.backends.mkldnn.enabled, torch.get_rng_state().tolist()

    before = state()
    common.run(settings_for(data_dir, tmp_path / "out", epochs=1))
    assert state() == before
    with pytest.raises(common.UserError, match="lr"):
        common.run(settings_for(data_dir, tmp_path / "out", epochs=1, lr=1e9))
    assert state() == before


def test_ctrl_c_is_an_exception_and_the_run_can_go_on(data_dir: Path, tmp_path: Path) -> None:
    before, steps = signal.getsignal(signal.SIGINT), []

    def press_ctrl_c(*_: object) -> None:
        steps.append(None)
        if len(steps) == 30:  # of 25 an epoch
            signal.raise_signal(signal.SIGINT)

    pressing = register_optimizer_step_post_hook(press_ctrl_c)
    try:
        with pytest.raises(common.Interrupted, match="signal 2 and saved"):
            common.run(settings_for(data_dir, tmp_path, epochs=3))
    finally:
        pressing.remove()
    assert signal.getsignal(signal.SIGINT) is before
    record = common.run(settings_for(data_dir, tmp_path, epochs=3, resume=True))
    assert record["history"]["epoch"] == [1, 2, 3]


def test_a_thread_other_than_the_main_one_can_train(data_dir: Path, tmp_path: Path) -> None:
    records = []
    thread = threading.Thread(target=lambda: records.append(common.run(settings_for(data_dir, tmp_path, epochs=1))))
    thread.start()
    thread.join()
    assert records == [read_run(tmp_path)]


def test_in_a_notebook(data_dir: Path, tmp_path: Path) -> None:
    cells = [
        f"%cd -q {ROOT}",
        "import dataclasses, signal, common, original_version_model",
        "before = signal.getsignal(signal.SIGINT)",
        "settings = dataclasses.replace(original_version_model.SETTINGS, epochs=1)",
        f"record = common.run(dataclasses.replace(settings, data_dir='{data_dir}', output='{tmp_path}/a'))",
        "assert signal.getsignal(signal.SIGINT) is before",
        "assert len(record['history']['test_accuracy']) == 1",
        "class Net(common.LeNet):\n    pass",
        f"settings = dataclasses.replace(settings, model=Net, data_dir='{data_dir}', output='{tmp_path}/cell')",
        "common.run(settings)",
        f"try:\n    common.load('{tmp_path}/cell')\nexcept common.UserError as error:\n    reason = str(error)",
        "assert reason == 'Net can\\'t be made again: its class was in no file, as in a notebook\\'s cell', reason",
        f"%run original_version_model.py --epochs 1 --data-dir {data_dir} --output {tmp_path}/b",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=100, kernel_name="python3").execute()
    printed = "".join(output["text"] for output in notebook.cells[-1]["outputs"])
    assert "test accuracy" in printed and f"results in {tmp_path}/b" in printed
    assert same_losses(tmp_path / "a", tmp_path / "b")


# --- What a script or a notebook may get wrong


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": 1.5}, "--epochs can't be '1.5': it is no int"),
        ({"lr": float("inf")}, "--lr can't be 'inf'"),
        ({"resolutions": "24,33"}, "--resolutions can't be '24,33'"),
        ({"resolutions": "28,32"}, "LeNet can't be trained on images (2, 3, 28, 28)"),
        ({"augment": "no"}, "--augment can't be 'no'"),
        ({"nesterov": True, "momentum": 0}, "--nesterov needs a --momentum"),
        ({"options": {"dropout": torch.nn.ReLU}}, "finite numbers"),
        ({"options": {"schedule": "x"}}, "schedule"),
    ],
    ids=str,
)
def test_impossible_settings_are_named_before_training(data_dir, tmp_path: Path, changes: dict, named: str) -> None:
    with pytest.raises(common.UserError, match=re.escape(named)):
        common.run(settings_for(data_dir, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_numpys_numbers_are_as_good_as_pythons(data_dir: Path, tmp_path: Path) -> None:
    for name, epochs, rate in (("a", np.int64(1), np.float64(0.01)), ("b", 1, 0.01)):
        common.run(settings_for(data_dir, tmp_path / name, epochs=epochs, lr=rate))
    assert same_losses(tmp_path / "a", tmp_path / "b")


def test_flags_are_of_the_annotated_types_and_those_of_settings_stay_theirs(run, perceptron: Path) -> None:
    more = 'hidden: int | None = None, device: str = "cpu", text: str = "$x^$", dropout: float = 0'
    text = perceptron.read_text().replace("hidden: int = 50", more).replace("if hidden < 1", "if hidden is None")
    perceptron.write_text(text.replace(', options={"hidden": 100}', ""))
    done = run(perceptron, "--epochs", 1, "--text", "a/b$x^$", "--hidden", 7, "--dropout", 0.5)
    assert done.code == 0, done.err
    config = read_run(folder_of(perceptron, "hidden=7,text=a_b$x^$,dropout=0.5,epochs=1"))["config"]
    assert (config["hidden"], config["text"], config["dropout"]) == (7, "a/b$x^$", 0.5)


# --- A run's model is made again


@pytest.mark.parametrize("name", ["wide-net.py", "cifar10.py", "torch.py", "../elsewhere/net.py"])
def test_a_script_of_any_name_and_place_without_a_guard(run, perceptron: Path, name: str) -> None:
    """It is not trained again when the comparison or the inspection imports it."""
    script, here = (perceptron.parent / name).resolve(), perceptron.parent
    script.parent.mkdir(exist_ok=True)
    text = perceptron.read_text().replace('experiment="perceptron"', f'experiment="{script.stem}"')
    text = text.replace('if __name__ == "__main__":\n    main(', "main(")
    script.write_text(text.replace("from common", f"import sys; sys.path.append({str(here)!r})\nfrom common", 1))
    assert run(script, "--hidden", 20, "--epochs", 1).code == 0
    (folder,) = (path.parent for path in here.glob("modelset/**/loss.json"))
    before = (folder / "loss.json").stat().st_mtime_ns
    for arguments in [("compare_results.py",), ("inspect_weights.py", folder, "--evaluate")]:
        done = run(here / arguments[0], *arguments[1:])
        assert done.code == 0 and "warning" not in done.err, done.err
    assert f"test accuracy {read_run(folder)['result']['final_test_accuracy']:.2f} %" in done.out
    assert (folder / "loss.json").stat().st_mtime_ns == before


class Wide(torch.nn.Module):
    """Options without which its tensors have the same shapes."""

    def __init__(self, widths: tuple[int, ...] = (8,), scale: float | None = None, names=("a",)) -> None:
        super().__init__()
        assert isinstance(widths, tuple) and isinstance(names, tuple)
        self.scale = 1.0 if scale is None else scale
        sizes = zip((3, *widths), (*widths, 10), strict=True)
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in sizes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(self.scale * images.mean((2, 3)))


@pytest.mark.parametrize("options", [{}, {"scale": 30.0}, {"widths": (4, 6), "names": ("b", "c")}], ids=str)
def test_options_that_are_none_or_tuples_are_those_of_the_run(data_dir: Path, tmp_path: Path, options: dict) -> None:
    record = common.run(settings_for(data_dir, tmp_path, model=Wide, options=options, epochs=1))
    data = load_cifar10(data_dir)
    loss = torch.nn.functional.cross_entropy(common.load(tmp_path)(data.test_images), data.test_labels).item()
    assert loss == pytest.approx(record["history"]["test_loss"][-1], rel=1e-5)


class ReadsAFile(common.LeNet):
    def __init__(self, prior: str = "") -> None:
        super().__init__()
        self.register_buffer("prior", torch.load(prior))


def test_a_constructor_that_fails_says_why(data_dir: Path, tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "prior.pt")
    settings = settings_for(data_dir, tmp_path / "out", model=ReadsAFile, options={"prior": str(tmp_path / "prior.pt")})
    common.run(common.dataclasses.replace(settings, epochs=1))
    (tmp_path / "prior.pt").unlink()
    for attempt in (lambda: common.load(tmp_path / "out"), lambda: common.run(settings)):
        with pytest.raises(common.UserError, match=r"^ReadsAFile can't be made: FileNotFoundError: .*prior\.pt"):
            attempt()


def test_a_script_that_cannot_be_imported_is_one_line_of_the_inspection(run, perceptron: Path) -> None:
    assert run(perceptron, "--epochs", 1).code == 0
    perceptron.write_text("import nothing_of_that_name\n")
    done = run(perceptron.parent / "inspect_weights.py", folder_of(perceptron, "epochs=1"), "--evaluate")
    assert done.code == 1 and "perceptron.py can't be imported: ModuleNotFoundError" in done.err
