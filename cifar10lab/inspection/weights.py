"""State dicts from the files that people bring, whatever lies beside or around them. Nothing in a file is executed."""

from __future__ import annotations

import contextlib
import re
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

PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
# What people save beside weights. Only the weights are wanted, so that none of it need be made: see `stand_ins`.
HARMLESS = {
    "argparse": ("Namespace",),
    "builtins": ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "range", "slice", "str", "tuple"),
    "collections": ("deque",),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("scalar", "_reconstruct"),
    "numpy._core.multiarray": ("scalar", "_reconstruct"),  # since numpy 2
    "pathlib": PATHS,
    "pathlib._local": PATHS,  # Python 3.13
    "torch.torch_version": ("TorchVersion",),
    "types": ("SimpleNamespace",),
}
# Packages found everywhere, whose functions a hostile file would call. In all others are the author's own classes.
EVERYWHERE = sys.stdlib_module_names | IMPORT_MAPPING.keys() | {"numpy", "pip", "setuptools", "torch", "torchvision"}


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


class InertAttribute:
    """Stands for `getattr`, with which enumerations and nested classes of the author's are pickled."""

    def __new__(cls, owner: object, *_: object) -> object:
        return InertObject if owner is InertObject else Inert()  # only the former may be called


def stand_ins(path: Path) -> list[tuple[type, str]]:
    """What `torch.serialization.safe_globals` takes: for each harmless name in the file something inert.

    torch's safe unpickler imports no name that it reads, but looks it up among its own and these, and refuses all
    others. So even a harmless type is not itself made, and a path of another system or a class of the author's
    that is not installed here is no obstacle.
    """
    names = set()
    with contextlib.suppress(Exception):  # no zip file, or a damaged one, of which torch.load will tell
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    inert = [f"{module}.{name}" for module, listed in HARMLESS.items() for name in listed]
    inert += [name for name in names if name.startswith("torch.optim.")]
    own = [name for name in names if name.partition(".")[0] not in EVERYWHERE]
    objects = [(InertObject, name) for name in (*own, "collections.defaultdict")]
    return [*((Inert, name) for name in inert), *objects, (InertAttribute, "builtins.getattr")]


def refuse_text(path: Path) -> None:
    """UserError if what was saved under the weights' name is text: a web page, a Git LFS pointer."""
    with contextlib.suppress(OSError), path.open("rb") as file:  # `read_torch` says what is wrong with it
        start = file.read(1000)
        text = start.decode(errors="ignore").lstrip("\ufeff \t\r\n")
        if re.match(r"<(!doctype|html|head|\?xml|!--)", text, re.IGNORECASE):
            what = "a web page, not weights: the download led to an error message or a question"
        elif text.startswith("version https://git-lfs"):
            what = "a Git LFS pointer, which only names the weights: `git lfs pull` fetches them"
        elif text and not re.search(rb"[^\t-\r -~\x80-\xff]", start):
            what = f"text, not weights: it begins with {text.splitlines()[0][:40]!r}"
        else:
            return
        raise UserError(f"{path} is {what}; expected the file itself, as torch.save wrote it")


FORMATS = {  # the first bytes of files that hold weights in another form, and what they are
    b"\x89HDF\r\n": "an HDF5 file, as Keras writes it",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"\x89PNG": "a picture",
    b"BZh": "a bzip2 archive: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"\x93NUMPY": "a NumPy array",
}


def refuse_other_formats(path: Path) -> None:
    """UserError that names a file of another program, or one of torch's that is a program itself."""
    with contextlib.suppress(OSError, zipfile.BadZipFile):  # `read_torch` says what is wrong with it
        with path.open("rb") as file:
            start = file.read(16)
        kinds = [what for first, what in FORMATS.items() if start.startswith(first)]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                names = file.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                kinds = ["a TorchScript program, which is never executed: save its state_dict() with torch.save"]
            elif all(name.endswith(".npy") for name in names):
                kinds = ["an archive of NumPy arrays"]
            elif not any(name.endswith("data.pkl") for name in names):
                kinds = ["a .zip archive: unpack it, or name the file as torch.save wrote it"]
        if kinds:
            raise UserError(f"{path} is {kinds[0]}; expected weights that torch.save wrote")


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


def kind_in_words(content: object) -> str:
    """What a file without a state dict holds: "a list (a dictionary (epoch), a number)"."""
    if isinstance(content, Inert):
        return "an object of another program"
    if isinstance(content, (dict, list, tuple)):
        inside = [str(name) if isinstance(content, dict) else kind_in_words(name) for name in content]
        listed = ", ".join(inside[:3]) + ", …" * (len(inside) > 3)
        return f"a {'dictionary' if isinstance(content, dict) else type(content).__name__} ({listed or 'empty'})"
    kinds = {Tensor: "a tensor", bool: "a truth value", int: "a number", float: "a number", str: "a text"}
    return next((what for kind, what in kinds.items() if isinstance(content, kind)), f"a {type(content).__name__}")


def find_weights(content: object, key: str = "", depth: int = 2) -> dict[str, dict[str, Tensor]]:
    """The dictionaries of nothing but tensors in `content` and `depth` levels below, by their keys, as "net.ema"."""
    if not isinstance(content, dict):
        return {}
    items = {str(name): value for name, value in dict.items(content)}
    if items and all(isinstance(value, Tensor) for value in items.values()):
        is_network = any(tensor.ndim > 1 and tensor.is_floating_point() for tensor in items.values())
        return {key: items} if is_network or not key else {}  # random-number states are tensors, too
    found = {}
    for name, value in items.items() if depth else ():
        found |= find_weights(value, f"{key}.{name}" if key else name, depth - 1)
    return found


def tensors_among_others(content: object, path: Path) -> dict[str, dict[str, Tensor]]:
    """As `find_weights`, of a state dict into which somebody has put a number, say; and what is left out of it."""
    if not isinstance(content, dict):
        return {}
    tensors = {str(name): value for name, value in dict.items(content) if isinstance(value, Tensor)}
    if not any(tensor.ndim > 1 and tensor.is_floating_point() for tensor in tensors.values()):
        return {}
    others = {str(name): kind_in_words(value) for name, value in dict.items(content) if str(name) not in tensors}
    listed = ", ".join(f"{name} ({kind})" for name, kind in others.items())
    print(f"{path} holds other things among its tensors, which are left out: {listed}", file=sys.stderr)
    return {"": tensors}


def choose_weights(found: dict[str, dict[str, Tensor]], key: str | None, path: Path) -> dict[str, Tensor]:
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
    """A state dict of float32 tensors, by plain names; UserError if the file holds no such thing.

    Where a file holds several, `key` chooses: "ema", or "models.ema" for one in another dictionary.
    """
    refuse_text(path)
    if is_safetensors(path):
        content = read_safetensors(path)
    else:
        refuse_other_formats(path)
        with torch.serialization.safe_globals(stand_ins(path)):
            content = read_torch(path)
    found = find_weights(content) or tensors_among_others(content, path)
    if not found:
        raise UserError(f"{path} holds {kind_in_words(content)}, but no state dict: expected names with tensors")
    weights = choose_weights(found, key, path)
    dense = all(tensor.layout is torch.strided and not tensor.is_meta for tensor in weights.values())
    if not dense or any(tensor.is_quantized or tensor.is_complex() for tensor in weights.values()):
        raise UserError(f"{path} holds sparse, quantised or complex tensors: expected dense floats")
    return {name: tensor.detach().float() for name, tensor in unwrapped_names(weights).items()}


def warn_of_non_finite(weights: dict[str, Tensor], path: Path) -> None:
    """Say which tensor is the first with NaN or infinity, if there is one: results with it mean nothing."""
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        others = f" and {len(broken) - 1} more tensors hold" if broken[1:] else " holds"
        print(f"warning: in {path}, {broken[0]}{others} NaN or infinity: a training that diverged", file=sys.stderr)


def refuse_unknown_pooling(weights: dict[str, Tensor], path: Path) -> None:
    """UserError for torchvision's ResNets made for small images, whose accuracy can't be known from a file."""
    names = {"conv1.weight", "layer1.0.conv1.weight", "fc.weight"}
    if names <= weights.keys() and weights["conv1.weight"].shape[1:] == (3, 3, 3):
        raise UserError(
            f"{path} has torchvision's names for a ResNet, but a 3x3 first convolution: there are two such networks, "
            "with and without a max-pool after it, which leaves no trace in the weights, so they can't be evaluated "
            "safely; expected the names that common.py's ResNet18 has"
        )
