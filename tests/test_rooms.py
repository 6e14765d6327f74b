"""How the parts hang together: no circles, what a model says of itself, one limit for every setting."""

import ast
import dataclasses
import graphlib
import sys
from pathlib import Path

import common

import pytest
import torch
from conftest import ROOT

from cifar10lab.devices.execution import choose_precision
from original_version_model import SETTINGS as LENET


def test_no_file_imports_in_a_circle_even_for_the_sake_of_types() -> None:
    files = [*ROOT.glob("*.py"), *ROOT.glob("cifar10lab/**/*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    imports = {}
    for name, path in names.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        for node in (node for node in nodes if isinstance(node, ast.ImportFrom)):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        imports[name] = found & names.keys()
    assert imports["common"]
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


class SaysAllInItsConstructor(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 10)
        self.seen = []
        self.cifar10_interface = common.Interface(
            bf16=True, mean=(0.1, 0.2, 0.3), initialise=lambda images: self.seen.append(tuple(images.shape))
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert self.seen == [(100, 3, 32, 32)]
        return self.linear(images.mean((2, 3)))


def test_what_a_model_says_in_its_constructor_counts(data_dir: Path, tmp_path: Path) -> None:
    interface = common.interface_of(SaysAllInItsConstructor())
    assert interface.bf16 and interface.mean == (0.1, 0.2, 0.3) and not interface.channels_last
    assert interface.optimizer is None and interface.lengths == {}
    settings = common.Settings("one", "One", SaysAllInItsConstructor, 1, lr=0.1, momentum=0.9, batch_size=10)
    record = common.run(dataclasses.replace(settings, data_dir=data_dir, output=tmp_path, device="cpu"))
    assert record["environment"]["precision"] == choose_precision("auto", "cpu", gains_from_bf16=True)


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


def test_nothing_else_of_a_model_is_looked_at(data_dir: Path, tmp_path: Path) -> None:
    assert common.interface_of(OfOtherMeanings()) == common.Interface()
    settings = common.Settings("one", "One", OfOtherMeanings, 1, lr=0.1, momentum=0.9, batch_size=10)
    record = common.run(dataclasses.replace(settings, data_dir=data_dir, output=tmp_path, device="cpu"))
    assert len(record["history"]["epoch"]) == 1


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
def test_a_setting_has_its_limits_on_the_command_line_and_in_python(name: str, capsys: pytest.CaptureFixture) -> None:
    refused = []
    for value in TRIED[name]:
        try:
            common.checked(dataclasses.replace(LENET, **{name: value}))
        except common.WrongOption as error:
            assert str(error).startswith(f"--{name.replace('_', '-')} can't be {str(value)!r}: ")
            refused.append(value)
    assert 0 < len(refused) < len(TRIED[name])
    with pytest.raises(SystemExit, match="2"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["original_version_model.py", f"--{name.replace('_', '-')}={refused[0]}"])
        common.main(LENET, "")
    assert str(refused[0]) in capsys.readouterr().err
