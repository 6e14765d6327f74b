"""Which model saved weights are of, and that model ready to use."""

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cifar10lab.devices.execution import Execution
from cifar10lab.files.tensors import read_torch
from cifar10lab.inspection.weights import read_weights, without_prefixes
from cifar10lab.models.interface import interface_of, model_input, plain_name, to_device, try_model
from cifar10lab.models.lenet import LeNet
from cifar10lab.models.resnet import ResNet18
from cifar10lab.models.source import import_source, make_model, model_code
from cifar10lab.results.reference import recorded
from cifar10lab.settings.experiment import TAKEN
from cifar10lab.terminal.errors import UserError

WEIGHTS = ("model.pth", "checkpoint.pth", "model.safetensors", "pytorch_model.bin")  # a folder's: the first that it has
Channels = Sequence[float] | None  # a value each for red, green and blue


class TrainedModel(nn.Module):
    """A model with its normalisation inside, in eval mode: images (N, 3, 32, 32) -> logits (N, 10).

    Images are uint8 from 0 to 255 or floats from 0 to 1; ValueError for others, unless they are being exported or
    compiled. Logits have the weights' type, and are in the order of `CLASSES`.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.interface = dataclasses.replace(interface_of(model), mean=mean, std=std)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (3, 32, 32) or not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, not uint8 or float (N, 3, 32, 32)")
        if images.is_floating_point():
            if not torch.compiler.is_compiling() and ((images < 0) | (images > 1) | images.isnan()).any():
                raise ValueError("float images must have values from 0 to 1, before any normalisation")
            images = 255 * images.float()
        types = (parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point())
        return self.model(model_input(images, self.interface).to(next(types, torch.float32)))


def load(path: Path | str, key: str | None = None, mean: Channels = None, std: Channels = None) -> TrainedModel:
    """The model of a run's folder, from its model.pth, or of a weights file, ready to use, on the CPU.

    Where a file holds several networks, `key` chooses: "ema", say. `mean` and `std`, per channel from 0 to 1, are those
    with which training normalised its images. A run records them; for other files, a warning names the assumed ones.
    UserError if there is no such file, or if no known model fits it: its run's, LeNet, ResNet-18 or FastNet.
    """
    path = weights_file(Path(path))
    return trained_model(read_weights(path, key), path, mean, std)


def trained_model(weights: dict[str, Tensor], path: Path, mean: Channels, std: Channels) -> TrainedModel:
    """What `load` makes of the weights that were read from `path`."""
    if (mean is None) != (std is None):
        raise UserError("mean and std belong together: give both")
    model, run = recognise(weights, path)
    own = interface_of(model)
    if mean is None and run is None:
        assumed = f"mean {tuple(own.mean)} and std {tuple(own.std)} are assumed, unless mean and std are given"
        warnings.warn(f"{path}: no run says how images were normalised in training: {assumed}", stacklevel=3)
    if run is not None and run.get("dataset", {}).get("name") == "synthetic":
        warnings.warn(f"{path} was trained on the synthetic stand-in: of real images it knows nothing", stacklevel=3)
    return TrainedModel(model, *((own.mean, own.std) if mean is None else (mean, std)))


def weights_file(path: Path) -> Path:
    """The path itself, or the weights file in a folder, a run's or one of Hugging Face's hub."""
    if not path.is_dir():
        return path
    return next((path / name for name in WEIGHTS if (path / name).is_file()), path / WEIGHTS[0])


def recognise(weights: dict[str, Tensor], path: Path) -> tuple[nn.Module, dict | None]:
    """The model that these weights fit, holding them, in eval mode; and the run that wrote the file, or None.

    UserError if no known model fits. Prefixes, as Lightning's, are dropped one after another until one does.
    """
    run, is_own = run_beside(path)
    of_run = [] if run is None else [model_of(run)]
    for inner in without_prefixes(weights):
        models = of_run if is_own else [*of_run, *known_models(inner)]
        for model in models:
            own = model.state_dict()
            if shapes_of(own) == shapes_of(inner):
                typed = {name: inner[plain_name(name)].to(t.dtype) for name, t in own.items() if isinstance(t, Tensor)}
                model.load_state_dict(typed, strict=False, assign=True)  # the shapes of all are the same
                return to_device(model, torch.device("cpu")).eval(), run if is_own else None
    names = " or ".join(dict.fromkeys(type(model).__name__ for model in models))
    raise UserError(f"{path} holds no weights of {names}: its tensors have other names or shapes")


def run_beside(path: Path) -> tuple[dict | None, bool]:
    """A checkpoint's own run, or that of the loss.json beside a weights file; and whether this run wrote the file."""
    with contextlib.suppress(UserError):  # weights of another kind
        match read_torch(path):
            case {"experiment": _, "config": {"model": _}} as run:
                return run, True
    with contextlib.suppress(OSError, ValueError):
        match json.loads((path.parent / "loss.json").read_text(encoding="utf-8")):
            case {"experiment": _, "config": {"model": _}} as run:
                return run, path.name in ("model.pth", "best_model.pth")  # what runs write beside loss.json
    return None, False


def model_of(run: dict) -> nn.Module:
    """The run's model with new weights; UserError if its class isn't found or its constructor fails."""
    name, source = run["config"]["model"], run.get("model_source", f"{run['experiment']}.py")  # the reference's runs
    if source is None:
        raise UserError(f"{name} can't be made again: its class was in no file, as in a notebook's cell")
    kind = getattr(import_source(source), name, None)
    if kind is None:
        raise UserError(f"{name} can't be made again: {source} has no such class")
    if recorded(run, "code", "model_code") not in ("", model_code(run["experiment"], kind)):
        warnings.warn(f"{source} has changed since this run: {name} is made as it is now", stacklevel=5)
    model = make_model(kind, {name: value for name, value in run["config"].items() if name not in TAKEN})
    if any(map(is_lazy, model.parameters())):
        try_model(model, Execution(torch.device("cpu"), "fp32", "none"), sizes=[])
    return model


def known_models(weights: dict[str, Tensor]) -> list[nn.Module]:
    """This repository's models, as wide as the weights are: shapes without memory, since a file may claim any width."""
    fast_net = import_source("fast_model.py").FastNet  # not from the top: scripts import this module
    with torch.device("meta"):
        models = [LeNet()]
        for model, first in ((ResNet18, "conv1.weight"), (fast_net, "groups.0.conv1.weight")):
            width = weights[first].shape[:1].numel() if first in weights else 0
            models.append(model(width) if 0 < width < 10_000 else model())
    return models


def shapes_of(state: dict[str, object]) -> dict[str, torch.Size]:
    """The shapes of a state dict's tensors, by their plain names."""
    return {plain_name(name): value.shape for name, value in state.items() if isinstance(value, Tensor)}
