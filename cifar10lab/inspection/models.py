"""Which model saved weights are of, and that model ready to use."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cifar10lab.files.tensors import read_torch
from cifar10lab.inspection.weights import read_weights, refuse_unknown_pooling, without_prefix
from cifar10lab.models.interface import interface_of, model_input, plain_name, to_device, tried
from cifar10lab.models.lenet import LeNet
from cifar10lab.models.resnet import ResNet18
from cifar10lab.settings.experiment import options_of, stated_settings
from cifar10lab.terminal.errors import UserError


class TrainedModel(nn.Module):
    """A model with its normalisation inside, in eval mode: images (N, 3, 32, 32) -> logits float32 (N, 10).

    Images are uint8 from 0 to 255 or floats from 0 to 1; ValueError for others. Logits are in the order of `CLASSES`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (3, 32, 32) or not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, not uint8 or float (N, 3, 32, 32)")
        if images.is_floating_point():
            if len(images) and not 0 <= images.min() <= images.max() <= 1:
                raise ValueError("float images must have values from 0 to 1, before any normalisation")
            images = 255 * images.float()
        return self.model(model_input(images, interface_of(self.model)))


def load(path: Path | str, key: str | None = None) -> TrainedModel:
    """The model of a run's folder, from its model.pth, or of a weights file, ready to use, on the CPU.

    Where a file holds several networks, `key` chooses: "ema", say. UserError if there is no such file, or if it is of
    no model that is known here: that of the run beside it, LeNet or ResNet-18.
    """
    path = weights_file(Path(path))
    return TrainedModel(recognise(read_weights(path, key), path))


def weights_file(path: Path) -> Path:
    """The path itself, or if it is a folder, model.pth in it, or an unfinished run's checkpoint.pth."""
    if not path.is_dir():
        return path
    finished, unfinished = path / "model.pth", path / "checkpoint.pth"
    return unfinished if unfinished.is_file() and not finished.is_file() else finished


def recognise(weights: dict[str, Tensor], path: Path) -> nn.Module:
    """`known_model`, also if the model is a part of another, as in Lightning; its own names come first."""
    try:
        return known_model(weights, path)
    except UserError:
        inner = without_prefix(weights)
        if inner is not None:
            return recognise(inner, path)
        refuse_unknown_pooling(weights, path)
        raise


def known_model(weights: dict[str, Tensor], path: Path) -> nn.Module:
    """The model whose names and shapes these are, with these weights, in eval mode; UserError if there is none."""
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    others = {}
    for model in candidates(weights, path):
        own = {plain_name(name): (name, tensor) for name, tensor in model.state_dict().items()}
        expected = {name: tuple(tensor.shape) for name, (_, tensor) in own.items()}
        if expected == found:
            typed = {own[name][0]: tensor.to(own[name][1].dtype) for name, tensor in weights.items()}
            model.load_state_dict(typed, assign=True)
            return to_device(model, torch.device("cpu")).eval()
        differing = (name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        others[type(model).__name__] = {name: expected.get(name, "none") for name in differing}
    nearest = min(others.values(), key=len)
    name = min(nearest)
    raise UserError(
        f"{path} is neither {' nor '.join(others)}: {name} is {found.get(name, 'missing')}, expected "
        f"{nearest[name]} ({len(nearest)} tensors differ)"
    )


def candidates(weights: dict[str, Tensor], path: Path) -> list[nn.Module]:
    """What a file may be of: the model of the run that it is of, and those of this repository.

    The latter are shapes without memory, since a file may claim any width.
    """
    stated = stated_model(path)
    models = [] if stated is None else [stated]
    fast = stated_settings("fast_model")  # of a script, which imports this module by way of common
    with torch.device("meta"):
        for model in (LeNet, ResNet18, *([fast.model] if fast else [])):
            models.append(model(**interface_of(model()).options_from(weights)))
    return models


def stated_model(path: Path) -> nn.Module | None:
    """The model of the run that the file is of, as a checkpoint says itself, or the loss.json beside it."""
    run = None
    with contextlib.suppress(UserError):  # weights of another kind
        run = read_torch(path)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no loss.json, or not that of a run
        if not isinstance(run, dict) or not {"experiment", "config"} <= run.keys():
            run = json.loads((path.parent / "loss.json").read_text(encoding="utf-8"))
        stated = stated_settings(run["experiment"])
        if stated and stated.model.__name__ == run["config"]["model"]:
            options = options_of(stated)
            model = stated.model(**{name: run["config"].get(name, value) for name, value in options.items()})
            return tried(model) if any(map(is_lazy, model.parameters())) else model
    return None
