"""How the parts hang together: no circles, what a model says of itself, one limit for every setting."""

import ast
import dataclasses
import graphlib
from pathlib import Path

import common

import pytest
import torch
from conftest import ROOT, run_command

from cifar10lab.devices.execution import choose_precision
from original_version_model import SETTINGS as LENET

ROOMS = ("terminal", "files", "data", "devices", "models", "settings", "results", "inspection", "comparison")


def test_no_file_imports_from_a_room_above_it_and_no_room_from_outside() -> None:
    imports = {}
    for path in ROOT.glob("cifar10lab/*/*.py"):
        kinds = (ast.Import, ast.ImportFrom)
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
        names = [getattr(node, "module", None) or node.names[0].name for node in nodes]
        imports[path.parent.name, path.stem] = [name.split(".") for name in names]
    outside = {path.stem for path in ROOT.glob("*.py")}
    for (room, file), names in imports.items():
        below = ROOMS[: ROOMS.index(room) + 1]
        wrong = [name for name in names if name[0] in outside or (name[0] == "cifar10lab" and name[1] not in below)]
        assert not wrong, f"{room}/{file}.py imports {wrong}"
    files = {key: {tuple(name[1:3]) for name in names if name[0] == "cifar10lab"} for key, names in imports.items()}
    graphlib.TopologicalSorter(files).prepare()  # raises CycleError, which names the circle


def test_a_users_folders_and_files_may_have_any_common_name(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "results").mkdir()
    for name in ("models/__init__", "models/mine", "results/__init__", "settings", "files", "data", "cifar10"):
        (tmp_path / f"{name}.py").write_text(f"name = {name!r}")
    user = "import models.mine, settings, files, results, data, cifar10"
    for first, second in ((user, "import common"), ("import common", user)):
        (tmp_path / "train.py").write_text(f"{first}\n{second}\nprint(models.mine.name, common.LeNet.__name__)")
        done = run_command("env", f"PYTHONPATH={ROOT}", "python", tmp_path / "train.py", cwd=tmp_path)
        assert done.out.split() == ["models/mine", "LeNet"], done.err


class SaysAllInItsConstructor(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 10)
        self.seen = []
        self.cifar10_interface = common.Interface(bf16=True, initialise=lambda images: self.seen.append(images.shape))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert self.seen == [(100, 3, 32, 32)]
        return self.linear(images.mean((2, 3)))


class OfOtherMeanings(torch.nn.Module):
    """Has attributes of many common names, which say nothing to these scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 10)
        self.register_buffer("mean", torch.tensor([0.49, 0.48, 0.45]).view(1, 3, 1, 1))
        self.std, self.channels_last = torch.nn.Identity(), "yes"
        self.optimizer = torch.optim.Adam(self.parameters())

    def initialise(self) -> None:
        raise AssertionError

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(self.std(images - self.mean).mean((2, 3)))


def test_what_a_model_says_in_its_constructor_counts_and_nothing_else(data_dir: Path, tmp_path: Path) -> None:
    model = SaysAllInItsConstructor()
    assert common.interface_of(model) is model.cifar10_interface
    assert common.interface_of(OfOtherMeanings()) == common.Interface()
    for model in (SaysAllInItsConstructor, OfOtherMeanings):
        settings = common.Settings("one", "One", model, 1, lr=0.1, momentum=0.9, batch_size=10, device="cpu")
        record = common.run(dataclasses.replace(settings, data_dir=data_dir, output=tmp_path / model.__name__))
        bf16 = model is SaysAllInItsConstructor
        assert record["environment"]["precision"] == choose_precision("auto", "cpu", gains_from_bf16=bf16)


TRIED = {
    "epochs": (0, 1, 2**31 - 1, 2**31),
    "batch_size": (0, 1, 2**31),
    "lr": (-0.1, 0.0, 5.0),
    "momentum": (-0.1, 0.0, 0.99, 1.0),
    "weight_decay": (-1.0, 0.0, 2.0),
    "label_smoothing": (-0.1, 0.0, 1.0),
    "crop_padding": (-1, 0, 31, 32),
    "seed": (-1, 0, 2**32 - 1, 2**32),
    "validation_images": (-10, 0, 2**31),
    "schedule": ("cosine", "sometimes"),
    "padding_mode": ("reflect", "white"),
    "flips": ("alternating", "never"),
    "optimizer": ("adamw", "lbfgs"),
    "cutout": (-1, 0, 64),
    "device": ("cpu", "cuda:99", "tpu"),
    "precision": ("fp32", "fp8"),
    "dataset": ("synthetic", "mnist"),
}


@pytest.mark.parametrize("name", TRIED)
def test_a_setting_has_its_limits_on_the_command_line_and_in_python(main, name: str) -> None:
    refused = []
    for value in TRIED[name]:
        try:
            common.checked(dataclasses.replace(LENET, **{name: value}))
        except common.WrongOption as error:
            assert str(error).startswith(f"--{name.replace('_', '-')} can't be {str(value)!r}: ")
            refused.append(value)
    assert 0 < len(refused) < len(TRIED[name])
    done = main(LENET, f"--{name.replace('_', '-')}={refused[0]}")
    assert done.code == 2 and str(refused[0]) in done.err
