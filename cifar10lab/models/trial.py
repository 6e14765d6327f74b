"""One trial of a model, as it will be trained and tested, before anything is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar10lab.devices.execution import Execution
from cifar10lab.models.interface import interface_of, model_input
from cifar10lab.terminal.errors import UserError, in_one_line


def try_model(model: nn.Module, execution: Execution, sizes: list[int], smallest: int = 2) -> None:
    """Test the model on two 32x32 images and train it on two of each of `sizes`; UserError with the reason if it fails.

    `smallest` is how many images a process has in the smallest step: if only one, the model is trained on one, too.
    Its weights and buffers stay; it is then on the device, in train mode, and its lazy layers have shapes.
    """
    device, precision = execution.device, execution.precision
    model.to(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        attempt(model, torch.zeros(2, 3, 32, 32, device=device), precision, training=False)
        with restored(model):
            for size in sizes:
                attempt(model, torch.zeros(2, 3, size, size, device=device), precision, training=True)
            if smallest < 2:
                attempt(model, torch.zeros(1, 3, sizes[-1], sizes[-1], device=device), precision, training=True)
    model.train()


def attempt(model: nn.Module, images: Tensor, precision: str, training: bool) -> None:
    """Forward, and backward if `training`, on `images` from 0 to 255. UserError if that fails or gives no logits."""
    doing, name = "trained" if training else "tested", type(model).__name__
    few = "" if len(images) > 1 else ", as some steps have with this --batch-size"
    cant = f"{name} can't be {doing} on images {tuple(images.shape)}{few}"
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    model.train(training)
    try:
        with torch.set_grad_enabled(training):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = model(model_input(images, interface_of(model)))
            if isinstance(logits, Tensor) and logits.shape == (len(images), 10):
                loss = F.cross_entropy(logits.float(), labels)
                return loss.backward() if training else None
    except Exception as error:  # whatever a model may raise
        raise UserError(f"{cant}: {in_one_line(error)}") from error
    given = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    raise UserError(f"{cant}: it makes {given} of them, not logits ({len(images)}, 10)")


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """At the end, give parameters and buffers their values back, and set gradients to None."""
    parameters = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    buffers = [(module, *named) for module in model.modules() for named in module.named_buffers(recurse=False)]
    values = [buffer.clone() for *_, buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in parameters:
                parameter.copy_(value)
                parameter.grad = None
            for (module, name, buffer), value in zip(buffers, values, strict=True):
                setattr(module, name, buffer.copy_(value))
