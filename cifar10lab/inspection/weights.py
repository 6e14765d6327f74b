"""State dicts from the files that people bring, whatever lies beside or around them. Nothing in a file is executed."""

from __future__ import annotations

import contextlib
import pickletools
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING  # Python 2's names of modules, which torch.save writes still
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from cifar10lab.files.tensors import read_torch
from cifar10lab.models.interface import plain_name
from cifar10lab.terminal.errors import UserError

WRAPPERS = ("net", "model", "state_dict", "model_state_dict")  # where the trained weights usually are
AVERAGES = ("ema", "swa", "avg")  # in the names of dictionaries with running averages of them

# Packages found everywhere; in all others are the author's own classes, many of them dictionaries of some kind.
EVERYWHERE = sys.stdlib_module_names | {"numpy", "torch", "torchvision"}


class Inert(list):
    """Stands for a pickled object: takes whatever the file would make and fill it with, and does nothing."""

    __hash__ = object.__hash__  # it may be a key

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, _: object) -> None:
        pass


class InertObject:
    """Stands for an object that may be filled like a dict, too: torch's unpickler lets a Counter have both."""

    def __new__(cls, *_: object) -> Counter:
        return Counter()


class InertList:
    """Stands for a deque: torch 2.9's unpickler extends nothing but a list itself."""

    def __new__(cls, *_: object) -> list:
        return []


class InertAttribute:
    """Stands for `getattr`, with which enumerations and nested classes of the author's are pickled."""

    def __new__(cls, owner: object, *_: object) -> object:
        return InertObject if owner is InertObject else Inert()  # only the former may be called


def names_in(path: Path) -> set[str]:
    """The functions and classes that a file of torch.save names: {"argparse.Namespace", "numpy.dtype"}."""
    names = set()
    with contextlib.suppress(Exception), path.open("rb") as file:  # of what is damaged, torch.load will tell
        if zipfile.is_zipfile(path):
            return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        for _ in range(4):  # before PyTorch 1.6: four pickles in a row
            found = [argument.split() for code, argument, _ in pickletools.genops(file) if code.name == "GLOBAL"]
            names |= {f"{IMPORT_MAPPING.get(module, module)}.{name}" for module, name in found}
    return names


def stand_ins(path: Path) -> list[tuple[type, str]]:
    """What `torch.serialization.safe_globals` takes: for each name in the file something inert.

    torch's safe unpickler imports no name that it reads, but looks it up among its own and these. So nothing that the
    file names is called or made, and a path of another system or a class that is not installed here is no obstacle.
    """
    names = names_in(path)
    kinds = {name: InertObject for name in names if name.partition(".")[0] not in EVERYWHERE}
    kinds |= {"collections.defaultdict": InertObject, "collections.deque": InertList}
    kinds |= {"builtins.getattr": InertAttribute}
    return [(kinds.get(name, Inert), name) for name in names | {"builtins.getattr"}]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; UserError if it is damaged, or the library isn't there."""
    try:
        import safetensors
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path} is a safetensors file: `pip install safetensors`, and it is read") from None
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is cut short or no safetensors file: expected what safetensors wrote") from error


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as such a one: with the length of its head, and the head, which is JSON."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(9)
        return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    return False


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

    def unlikely(key: str) -> tuple[bool, bool]:
        return any(word in key.lower() for word in AVERAGES), key.rpartition(".")[2] not in WRAPPERS

    listed = ", ".join(found)
    if key is not None and key not in found:
        there = f"expected one of {listed}" if listed else "expected no --key, since it holds one state dict only"
        raise UserError(f"{path} has no weights under {key}: {there}")
    chosen = min(found, key=unlikely) if key is None else key
    if key is None and len(found) > 1:
        print(f"{path} holds several networks ({listed}): taking {chosen}, --key takes another", file=sys.stderr)
    return found[chosen]


def unwrapped_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what torch.compile, DataParallel, DistributedDataParallel and AveragedModel add to a state dict."""
    weights = {plain_name(name): tensor for name, tensor in weights.items()}
    weights = {name: tensor for name, tensor in weights.items() if name.rpartition(".")[2] != "n_averaged"}
    while weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    return weights


def without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The weights without the module that all are in, such as Lightning's "model."; None if there is no such."""
    outer = {name.partition(".")[0] for name in weights}
    if len(outer) != 1 or not all(name.count(".") > 1 for name in weights):
        return None
    return {name.partition(".")[2]: tensor for name, tensor in weights.items()}


def read_weights(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """A state dict, by plain names; UserError if the file holds no such thing.

    Where a file holds several, `key` chooses: "ema", or "models.ema" for one in another dictionary.
    """
    if is_safetensors(path):
        content = read_safetensors(path)
    else:
        with torch.serialization.safe_globals(stand_ins(path)):
            content = read_torch(path)
    found = find_weights(content) if isinstance(content, dict) else {}
    if not found:
        raise UserError(f"{path} holds no state dict: expected names with tensors, as torch.save or safetensors write")
    chosen = choose_weights(found, key, path)
    weights = {name: value for name, value in chosen.items() if isinstance(value, Tensor)}
    if others := [name for name in chosen if name not in weights]:
        print(f"{path} holds other things among its tensors, which are left out: {', '.join(others)}", file=sys.stderr)
    dense = all(tensor.layout is torch.strided and not tensor.is_meta for tensor in weights.values())
    if not dense or any(tensor.is_quantized or tensor.is_complex() for tensor in weights.values()):
        raise UserError(f"{path} holds sparse, quantised or complex tensors: expected dense floats")
    return {name: tensor.detach() for name, tensor in unwrapped_names(weights).items()}


def warn_of_non_finite(weights: dict[str, Tensor], path: Path) -> None:
    """Say which tensor is the first with NaN or infinity, if there is one: results with it mean nothing."""
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        others = f" and {len(broken) - 1} more tensors hold" if broken[1:] else " holds"
        print(f"warning: in {path}, {broken[0]}{others} NaN or infinity: a training that diverged", file=sys.stderr)
