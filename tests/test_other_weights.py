"""The weights that people bring: other wrappers, other things beside them, hostile ones, and no weights at all."""

import argparse
import collections
import dataclasses
import datetime
import enum
import os
import pathlib
import pickle
from pathlib import Path

from common import LeNet, ResNet18, load

import numpy as np
import pytest
import torch
from conftest import Command, in_processes
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cifar10lab.inspection.weights import WRAPPERS, read_weights
from cifar10lab.terminal.errors import UserError
from fast_model import FastNet

NORMALISATION = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
FOREIGN = {
    **{f"under {key}": lambda weights, key=key: {key: weights, "acc": 93.5, "epoch": 12} for key in WRAPPERS},
    "module. prefixes": lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
    "Lightning's prefixes": lambda weights: {"state_dict": {f"model.a.{name}": t for name, t in weights.items()}},
    "bfloat16": lambda weights: {name: tensor.bfloat16() for name, tensor in weights.items()},
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("form", FOREIGN)
@pytest.mark.parametrize("model", [LeNet(0.5), ResNet18(6), FastNet(4)], ids=lambda model: type(model).__name__)
def test_other_peoples_files(tmp_path: Path, form: str, model: torch.nn.Module, new: bool) -> None:
    content = FOREIGN[form](model.state_dict())
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=new)
    loaded = load(tmp_path / "weights.pth", **NORMALISATION)
    assert type(loaded.model) is type(model)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(loaded.model.state_dict()[name], tensor, atol=2e-2), name
    assert loaded(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)).shape == (4, 10)


# --- Wrapped networks


def with_compiled_part(network: nn.Module) -> nn.Module:
    network.groups[0] = torch.compile(network.groups[0])
    return network


WRAPPED = {
    "compiled in parallel": lambda network: nn.parallel.DistributedDataParallel(torch.compile(network)),
    "in DataParallel, compiled": lambda network: torch.compile(nn.DataParallel(network)),
    "a compiled part": with_compiled_part,
    "average of a compiled one": lambda network: AveragedModel(torch.compile(network)),
    "average of a parallel one": lambda network: AveragedModel(nn.parallel.DistributedDataParallel(network)),
    "average in another module": lambda network: nn.ModuleDict({"ema": AveragedModel(network)}),
}


def wrapped_weights(rank: int, number: int) -> dict[str, tuple[dict, dict]]:
    """The weights of a network of each kind, before and after it is wrapped."""
    networks = {what: FastNet(4) for what in WRAPPED}
    return {what: (it.state_dict(), WRAPPED[what](it).state_dict()) for what, it in networks.items()}


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict, dict]]:
    """Of a process of its own, since its process group would change what BatchNorm does in later tests."""
    return in_processes(1, tmp_path_factory.mktemp("wrapped"), wrapped_weights)[0]


@pytest.mark.parametrize("what", WRAPPED)
def test_weights_of_wrapped_networks(wrapped: dict[str, tuple[dict, dict]], tmp_path: Path, what: str) -> None:
    plain, weights = wrapped[what]
    assert weights.keys() != plain.keys()
    torch.save(weights, tmp_path / "weights.pth")
    model = load(tmp_path / "weights.pth", **NORMALISATION).model
    assert type(model) is FastNet and model.state_dict().keys() == plain.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain[name]), name


# --- Things beside the weights


class Precision(enum.Enum):
    BF16 = "bf16"


@dataclasses.dataclass
class Configuration:
    name: str
    path: Path


class Attributes(dict):
    """A dict whose entries are attributes, too, as many configurations are."""

    __getattr__ = dict.get

    def __getstate__(self) -> None:  # Python 3.10 would take what `__getattr__` finds for it
        pass


class FromWindows:
    def __reduce__(self) -> tuple:
        return pathlib.WindowsPath, ("C:\\", "runs", "best.pth")


BESIDE = {
    "numpy numbers": [np.float64(93.1), np.int64(2), np.bool_(True), np.str_("x")],
    "numpy arrays": {"history": np.arange(3.0), "names": np.array(["a"]), "random": np.random.get_state()},
    "a Namespace": argparse.Namespace(lr=0.1, output=Path("runs"), milestones=[3, 5], seed=np.int64(0)),
    "paths": [Path("runs"), pathlib.PurePosixPath("/a"), pathlib.PureWindowsPath("C:\\a"), FromWindows()],
    "dates as keys": {datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc): datetime.timedelta(1)},
    "an enumeration": {Precision.BF16.name: Precision.BF16},
    "somebody's classes": [Configuration("a", Path("b")), Attributes(lr=0.1, model=Attributes(width=4))],
    "collections": [collections.defaultdict(list, a=[1]), collections.Counter("a")],
    "builtins": [{1, 2}, frozenset([3]), range(4), slice(1), b"bytes", 2j, 2**70, bytearray(b"x"), float, None],
    "an optimizer": torch.optim.SGD(LeNet().parameters(), 0.1, momentum=0.9),
    "random-number states": {"cpu": torch.get_rng_state(), "cuda": torch.get_rng_state()},
}


@pytest.mark.parametrize("what", BESIDE)
def test_harmless_things_beside_the_weights(tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]) -> None:
    network, path, before = LeNet(), tmp_path / "weights.pth", set(torch.serialization.get_safe_globals())
    torch.save({"epoch": 7, "beside": BESIDE[what], "net": network.state_dict()}, path)
    weights = read_weights(path)
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    assert capfd.readouterr() == ("", "")
    assert set(torch.serialization.get_safe_globals()) == before


class Reduced:
    """Is pickled as what it is made of: a function, its arguments and perhaps a state."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple:
        return self.parts


def run_here(executed: str) -> None:
    os.mkdir(executed)


HOSTILE = {
    "os.system": lambda executed: Command(f"touch {executed}"),
    "eval": lambda executed: Reduced(eval, (f"open({executed!r}, 'w')",)),
    "mkdir by a path": lambda executed: Reduced(Path.mkdir, (Path(executed),)),
    "numpy": lambda executed: Reduced(np.save, (executed, 1)),
    "torch": lambda executed: Reduced(torch.save, (1, executed)),
    "in a Namespace": lambda executed: argparse.Namespace(x=Command(f"touch {executed}")),
    "in an enumeration": lambda executed: Reduced(getattr, (Command(f"touch {executed}"), "x")),
    "a function of the author's": lambda executed: Reduced(run_here, (executed,)),
    "a state": lambda executed: Reduced(Configuration, ("a", "b"), {"__class__": Reduced(run_here, (executed,))}),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_hostile_things_beside_the_weights_are_not_executed(tmp_path: Path, what: str, new: bool) -> None:
    path, executed = tmp_path / "weights.pth", tmp_path / "executed"
    network = LeNet().state_dict()
    torch.save({"net": network, "acc": HOSTILE[what](str(executed))}, path, _use_new_zipfile_serialization=new)
    try:
        assert read_weights(path).keys() == network.keys()
    except UserError as error:
        assert "holds pickled objects, which are never executed" in str(error) and "\n" not in str(error)
    assert not any(tmp_path.glob("executed*"))


# --- Several networks in a file


@pytest.mark.parametrize(
    ("keys", "plain"),
    [
        (("state_dict_ema", "state_dict"), "state_dict"),
        (("swa_model", "weights"), "weights"),
        (("best_model", "model"), "model"),
        (("first", "second"), "first"),
        (("ema",), "ema"),
    ],
)
def test_the_plain_weights_are_taken(
    tmp_path: Path, keys: tuple[str, ...], plain: str, capfd: pytest.CaptureFixture[str]
) -> None:
    networks, path = {key: LeNet().state_dict() for key in keys}, tmp_path / "several.pth"
    torch.save(networks | {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(2, 2)}}}}, path)
    assert torch.equal(read_weights(path)["fc3.bias"], networks[plain]["fc3.bias"])
    err = capfd.readouterr().err
    assert (f"taking {plain}, --key takes another" in err and all(key in err for key in keys)) == (len(keys) > 1)
    for key in keys:
        assert torch.equal(read_weights(path, key)["fc3.bias"], networks[key]["fc3.bias"])
    assert capfd.readouterr().err == ""


def test_one_wrapper_in_another(tmp_path: Path) -> None:
    networks, path = [LeNet().state_dict(), LeNet().state_dict()], tmp_path / "nested.pth"
    torch.save({"checkpoint": {"model": networks[0]}, "averages": {"ema": networks[1]}}, path)
    assert torch.equal(read_weights(path)["fc3.bias"], networks[0]["fc3.bias"])
    assert torch.equal(read_weights(path, "averages.ema")["fc3.bias"], networks[1]["fc3.bias"])


# --- Other kinds of files


NO_WEIGHTS = {
    "TorchScript": lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path),
    "a web page": lambda path: path.write_text("<!DOCTYPE html>\n<html><head><title>404</title>"),
    "cut short": lambda path: torch.save(LeNet().state_dict(), path) or os.truncate(path, 5000),
    "a pickled module": lambda path: torch.save(LeNet(), path),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Command("true"))),
    "missing": lambda path: None,
    "NumPy arrays": lambda path: np.savez(path.open("wb"), a=np.ones(3)),
    "a list": lambda path: torch.save([LeNet().state_dict(), 0.93], path),
    "no tensors": lambda path: torch.save({"epoch": 3, "acc": 90.0, "x": {}}, path),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("what", NO_WEIGHTS)
def test_what_is_no_state_dict_is_one_line_that_says_what_is_expected(tmp_path: Path, what: str) -> None:
    NO_WEIGHTS[what](tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"^.*weights\.pth .*(expected .*|No such file or directory)$") as error:
        read_weights(tmp_path / "weights.pth")
    assert "\n" not in str(error.value)


def test_a_state_dict_with_a_number_in_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network, path = LeNet(), tmp_path / "weights.pth"
    torch.save({**network.state_dict(), "epoch": 3, "acc": 93.5, "name": "best"}, path)
    weights = read_weights(path)
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    told = f"{path} holds other things among its tensors, which are left out: epoch, acc, name\n"
    assert capfd.readouterr().err == told
