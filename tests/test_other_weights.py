"""inspect_weights.py on the weights that people bring: other wrappers, other things beside them, and hostile ones."""

import argparse
import collections
import dataclasses
import datetime
import enum
import os
import pathlib
import subprocess
from pathlib import Path

from common import LeNet, ResNet18, load

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import FORKSERVER, Command
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cifar10lab.data.loading import load_cifar10
from cifar10lab.inspection.models import TrainedModel
from cifar10lab.inspection.weights import read_weights
from cifar10lab.terminal.errors import UserError

NORMALISATION = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


class Lightning(nn.Module):
    """A network inside another, as a LightningModule has it."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.add_module(name, network)


def trained(wrap, seed: int = 0) -> nn.Module:
    """A wrapped network after one step."""
    torch.manual_seed(seed)
    network = wrap(ResNet18(4))
    network(torch.rand(2, 3, 32, 32)).square().sum().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 1e-3 * parameter.grad
    return network


def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="eager")


def parallel(network: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(network)


def averaged(network: nn.Module) -> AveragedModel:
    """What AveragedModel has after two updates; it has no step of its own."""
    average = AveragedModel(network)
    for _ in range(2):
        average.update_parameters(network)
    return average


WRAPPED = {
    "compiled": compiled,
    "compiled in parallel": lambda network: parallel(compiled(network)),
    "parallel, compiled": lambda network: compiled(parallel(network)),
    "in DataParallel": nn.DataParallel,
    "in DataParallel, compiled": lambda network: compiled(nn.DataParallel(network)),
    "in parallel": parallel,
    "a compiled part": lambda network: setattr(network, "layer1", compiled(network.layer1)) or network,
}
AVERAGED = {
    "averaged": lambda network: averaged(network),
    "average of a compiled one": lambda network: averaged(compiled(network)),
    "average of a parallel one": lambda network: averaged(parallel(network)),
    "compiled average": lambda network: compiled(averaged(network)),
    "average in another module": lambda network: Lightning("ema", averaged(network)),
}


def save_wrapped(folder: Path) -> None:
    """A process of its own, since its process group would change what BatchNorm does in later tests."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 1), rank=0, world_size=1)
    for name, wrap in WRAPPED.items():
        inner = []
        network = trained(lambda network, wrap=wrap, inner=inner: wrap(inner.append(network) or network))
        torch.save(network.state_dict(), folder / f"{name}.pth")
        torch.save(inner[0].state_dict(), folder / f"{name}.plain.pth")
    for name, wrap in AVERAGED.items():
        network = trained(lambda network: network)
        torch.save(network.state_dict(), folder / f"{name}.plain.pth")
        torch.save(wrap(network).state_dict(), folder / f"{name}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrapped")
    process = FORKSERVER.Process(target=save_wrapped, args=(folder,))
    process.start()
    process.join(100)
    assert process.exitcode == 0
    return folder


@pytest.mark.parametrize("what", [*WRAPPED, *AVERAGED])
def test_weights_of_wrapped_networks(wrapped: Path, what: str) -> None:
    path = wrapped / f"{what}.pth"
    assert list(torch.load(path)) != list(ResNet18(4).state_dict())
    model = load(path, **NORMALISATION).model
    plain = {name.replace("_orig_mod.", ""): t for name, t in torch.load(wrapped / f"{what}.plain.pth").items()}
    assert type(model) is ResNet18 and model.state_dict().keys() == plain.keys()
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor.float(), plain[name].float(), atol=1e-6), name


@pytest.mark.parametrize("prefix", ["model", "net", "backbone", "encoder", "anything"])
@pytest.mark.parametrize("network", [LeNet(), ResNet18(4)], ids=["LeNet", "ResNet18"])
def test_one_common_prefix(tmp_path: Path, prefix: str, network: nn.Module) -> None:
    path = tmp_path / "lightning.ckpt"
    for outer in (Lightning(prefix, network), Lightning("model", Lightning(prefix, network))):
        torch.save({"state_dict": outer.state_dict(), "epoch": 3, "hyper_parameters": {"lr": 0.1}}, path)
        model = load(path, **NORMALISATION).model
        assert type(model) is type(network)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network.parameters(), strict=True))


def test_compiled_weights_evaluate_as_the_plain_ones(inspect, wrapped: Path, tmp_path: Path, data_dir: Path) -> None:
    plain, data = ResNet18(4).eval(), load_cifar10(data_dir)
    plain.load_state_dict(torch.load(wrapped / "compiled.plain.pth"))
    own = plain.cifar10_interface
    right = TrainedModel(plain, own.mean, own.std)(data.test_images).argmax(1).eq(data.test_labels)
    (tmp_path / "weights.pth").write_bytes((wrapped / "compiled.pth").read_bytes())
    code, out, err = inspect(tmp_path / "weights.pth", "--evaluate")
    assert (code, err) == (0, "") and f"test accuracy {100 * right.float().mean():.2f} % (40 images" in out


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
    "collections": [collections.defaultdict(list, a=[1]), collections.deque([1, 2]), collections.Counter("a")],
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


def test_harmless_things_in_a_file_of_an_old_pytorch(tmp_path: Path) -> None:
    content = {
        "net": LeNet().state_dict(),
        "acc": np.float64(93.1),
        "args": argparse.Namespace(out=Path("a"), at=datetime.date(2026, 1, 2)),
    }
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_weights(tmp_path / "old.pth").keys() == LeNet().state_dict().keys()


class Calls:
    """Calls a function when unpickled."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def run_here(executed: str) -> None:
    os.mkdir(executed)


class WithState(Calls):
    def __init__(self, executed: Path) -> None:
        super().__init__(run_here, str(executed))

    def __reduce__(self) -> tuple:
        return Configuration, ("a", "b"), {"__class__": Calls(*super().__reduce__()[:1], *self.arguments)}


HOSTILE = {
    "os.system": lambda executed: Command(f"touch {executed}"),
    "eval": lambda executed: Calls(eval, f"open({str(executed)!r}, 'w')"),
    "subprocess": lambda executed: Calls(subprocess.Popen, ["touch", str(executed)]),
    "mkdir by a path": lambda executed: Calls(Path.mkdir, Path(executed)),
    "numpy": lambda executed: Calls(np.save, str(executed), 1),
    "torch": lambda executed: Calls(torch.save, 1, str(executed)),
    "in a Namespace": lambda executed: argparse.Namespace(x=Command(f"touch {executed}")),
    "in an enumeration": lambda executed: Calls(getattr, Command(f"touch {executed}"), "x"),
    "a function of the author's": lambda executed: Calls(run_here, str(executed)),
    "a state": lambda executed: WithState(executed),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_hostile_things_beside_the_weights_are_not_executed(tmp_path: Path, what: str, new: bool) -> None:
    path, executed = tmp_path / "weights.pth", tmp_path / "executed"
    network = LeNet().state_dict()
    torch.save({"net": network, "acc": HOSTILE[what](executed)}, path, _use_new_zipfile_serialization=new)
    try:
        assert read_weights(path).keys() == network.keys()
    except UserError as error:
        assert "holds pickled objects, which are never executed" in str(error) and "\n" not in str(error)
    assert not any(tmp_path.glob("executed*"))


# --- Several networks in a file


def file_of_several(path: Path, *keys: str) -> dict[str, dict[str, torch.Tensor]]:
    networks = {}
    for seed, key in enumerate(keys):
        torch.manual_seed(seed)
        networks[key] = LeNet().state_dict()
    torch.save(networks | {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(2, 2)}}}}, path)
    return networks


@pytest.mark.parametrize(
    ("keys", "plain"),
    [
        (("net", "ema"), "net"),
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
    networks = file_of_several(tmp_path / "several.pth", *keys)
    assert torch.equal(read_weights(tmp_path / "several.pth")["fc3.bias"], networks[plain]["fc3.bias"])
    err = capfd.readouterr().err
    assert (f"taking {plain}, --key takes another" in err and all(key in err for key in keys)) == (len(keys) > 1)
    for key in keys:
        assert torch.equal(read_weights(tmp_path / "several.pth", key)["fc3.bias"], networks[key]["fc3.bias"])
    assert capfd.readouterr().err == ""


def test_key_on_the_command_line(inspect, tmp_path: Path) -> None:
    path = tmp_path / "several.pth"
    networks = file_of_several(path, "net", "ema")
    outputs = {}
    for key in ("net", "ema"):
        code, outputs[key], err = inspect(path, "--key", key)
        assert code == 0 and err == ""
        assert f"{torch.cat([t.flatten() for t in networks[key].values()]).norm():.3f}" in outputs[key]
    assert inspect(path)[1] == outputs["net"]
    code, out, err = inspect(path, "--key", "none")
    assert code == 1 and out == ""
    assert err.splitlines() == [f"error: {path} has no weights under none: expected one of net, ema"]
    code, out, err = inspect(path, "--key", "ema", "--against", path)
    assert code == 0 and "fc1.weight" in out and (tmp_path / "weights-against-several.png").is_file()
    torch.save(LeNet().state_dict(), path)
    code, _, err = inspect(path, "--key", "net")
    assert code == 1 and "expected no --key" in err


def test_one_wrapper_in_another(tmp_path: Path) -> None:
    networks = [LeNet().state_dict(), LeNet().state_dict()]
    path = tmp_path / "nested.pth"
    torch.save({"checkpoint": {"model": networks[0]}, "averages": {"ema": networks[1]}}, path)
    assert torch.equal(read_weights(path)["fc3.bias"], networks[0]["fc3.bias"])
    assert torch.equal(read_weights(path, "averages.ema")["fc3.bias"], networks[1]["fc3.bias"])


def test_weights_with_nan_or_infinity_are_evaluated_with_a_warning(inspect, tmp_path: Path) -> None:
    weights = ResNet18(4).state_dict()
    weights["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    weights["layer2.0.bn1.running_var"][:] = weights["conv1.weight"][0, 0, 0, 0] = float("inf")
    weights["linear.bias"][:] = -float("inf")  # not one finite value is left to be drawn
    torch.save(weights, tmp_path / "model.pth")
    code, out, err = inspect(tmp_path, "--evaluate")
    assert code == 0 and "test accuracy" in out and (tmp_path / "weights.png").is_file()
    assert len(err.splitlines()) == 1 and err.startswith("warning:"), err
    assert "conv1.weight and 3 more tensors hold NaN or infinity" in err
