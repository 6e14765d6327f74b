"""State dicts from the files that people bring, whatever lies beside or around them. Nothing in a file is executed."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from cifar10lab.files.tensors import read_torch
from cifar10lab.models.interface import plain_name
from cifar10lab.terminal.errors import UserError, in_one_line

WRAPPERS = ("net", "model", "state_dict", "model_state_dict")  # where the trained weights usually are
AVERAGES = ("ema", "swa", "avg")  # in the names of dictionaries with running averages of them

# In these packages are objects of many kinds; in collections and all others, such as the author's, rather dictionaries.
PLAIN = sys.stdlib_module_names - {"collections"} | {"numpy", "torch", "torchvision"}


class Inert(list):
    """Stands for a pickled object: takes whatever the file would make and fill it with, and does nothing."""

    __hash__ = object.__hash__  # it may be a key

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, _: object) -> None:
        pass


class InertDict:
    """Stands for an object that may be filled like a dict, too: torch's unpickler lets a Counter have both."""

    def __new__(cls, *_: object) -> Counter:
        return Counter()


def read_file(path: Path) -> object:
    """What torch or safetensors wrote, with something inert for pickled objects; UserError if it can't be read.

    torch's safe unpickler imports no name that it reads, but looks it up among its own and the stand-ins. So nothing
    that the file names is called or made, and a path of another system or a class that isn't here is no obstacle.
    """
    if path.suffix != ".safetensors":
        names = []
        with contextlib.suppress(Exception):  # of other files, and of those before PyTorch 1.6, `read_torch` will tell
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(Inert if name.split(".")[0] in PLAIN else InertDict, name) for name in names]
        with torch.serialization.safe_globals(stand_ins):
            return read_torch(path)
    try:
        from safetensors.torch import load_file

        return load_file(path)
    except Exception as error:  # the library may be missing; its own errors are of several kinds
        raise UserError(f"{path} can't be read as safetensors: {in_one_line(error)}") from error


def find_weights(content: object, key: str = "", depth: int = 2) -> dict[str, dict[str, object]]:
    """The state dicts in `content` and `depth` levels below, by their keys, as "net.ema"; other things may be in them.

    The innermost ones, since an array, say, may lie beside the weights' own dictionary.
    """
    items, found = {str(name): value for name, value in dict.items(content)}, {}
    for name, value in items.items() if depth else ():
        if isinstance(value, dict):
            found |= find_weights(value, f"{key}.{name}" if key else name, depth - 1)
    tensors = [value for value in items.values() if isinstance(value, Tensor)]
    is_network = any(tensor.ndim > 1 and tensor.is_floating_point() for tensor in tensors)  # no random-number states
    return found or ({key: items} if is_network else {})


def choose_weights(found: dict[str, dict[str, object]], key: str | None, path: Path) -> dict[str, object]:
    """Those under `key`, or the plain ones, and which others there are; UserError if there are none under `key`."""
    listed = ", ".join(found)
    if key is None:
        wrappers_first = sorted(found, key=lambda name: name.split(".")[-1] not in WRAPPERS)
        key = min(wrappers_first, key=lambda name: any(word in name.lower() for word in AVERAGES))
        if len(found) > 1:
            print(f"{path} holds several networks ({listed}): taking {key}, --key takes another", file=sys.stderr)
    if key not in found:
        raise UserError(f"{path} has no weights under {key}: expected {listed or 'no --key'}")
    return found[key]


def without_prefixes(weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The weights, and then without one module after another that all are in, such as Lightning's "model."."""
    yield weights
    while len({name.split(".")[0] for name in weights}) == 1 and all(name.count(".") > 1 for name in weights):
        weights = {name.partition(".")[2]: tensor for name, tensor in weights.items()}
        yield weights


def read_weights(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """A state dict, by plain names; UserError if the file holds no such thing. Tells of NaN and infinity in it.

    Where a file holds several, `key` chooses: "ema", or "models.ema" for one in another dictionary.
    """
    content = read_file(path)
    found = find_weights(content) if isinstance(content, dict) else {}
    if not found:
        raise UserError(f"{path} holds no state dict: expected names with tensors, as torch.save or safetensors write")
    chosen = choose_weights(found, key, path)
    weights = {name: value.detach() for name, value in chosen.items() if isinstance(value, Tensor)}
    if others := [name for name in chosen if name not in weights]:
        print(f"{path} holds other things among its tensors, which are left out: {', '.join(others)}", file=sys.stderr)
    if any(t.layout is not torch.strided or t.is_meta or t.is_quantized or t.is_complex() for t in weights.values()):
        raise UserError(f"{path} holds sparse, quantised or complex tensors: expected dense floats")
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        others = f" and {len(broken) - 1} more tensors hold" if broken[1:] else " holds"
        print(f"warning: in {path}, {broken[0]}{others} NaN or infinity: a training that diverged", file=sys.stderr)
    # Without what torch.compile, DataParallel, DistributedDataParallel and AveragedModel add.
    weights = {plain_name(name): tensor for name, tensor in weights.items() if name.split(".")[-1] != "n_averaged"}
    while weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    return weights
