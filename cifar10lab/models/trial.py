"""One trial of a model, as it will be trained and tested, before anything is written."""

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
    device = execution.device
    model.to(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        attempt(model, execution, (2, 3, 32, 32), training=False)
        parameters = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
        places = [(module, *named) for module in model.modules() for named in module.named_buffers(recurse=False)]
        buffers = [(module, name, buffer, buffer.clone()) for module, name, buffer in places]
        for size in sizes:
            attempt(model, execution, (2, 3, size, size), training=True)
        if smallest < 2:
            attempt(model, execution, (1, 3, sizes[-1], sizes[-1]), training=True)
    with torch.no_grad():
        for parameter, value in parameters:
            parameter.copy_(value)
            parameter.grad = None
        for module, name, buffer, value in buffers:
            setattr(module, name, buffer.copy_(value))
    model.train()


def attempt(model: nn.Module, execution: Execution, shape: tuple[int, ...], training: bool) -> None:
    """Forward, and backward if `training`, on black images (N, 3, H, W). UserError if that fails or gives no logits."""
    device, count = execution.device, shape[0]
    few = "" if count > 1 else ", as some steps have with this --batch-size"
    cant = f"{type(model).__name__} can't be {'trained' if training else 'tested'} on images {shape}{few}"
    model.train(training)
    try:
        with torch.set_grad_enabled(training):
            with torch.autocast(device.type, torch.bfloat16, enabled=execution.precision == "bf16"):
                logits = model(model_input(torch.zeros(shape, device=device), interface_of(model)))
            if isinstance(logits, Tensor) and logits.shape == (count, 10):
                loss = F.cross_entropy(logits.float(), torch.zeros(count, dtype=torch.int64, device=device))
                return loss.backward() if training else None
    except Exception as error:  # whatever a model may raise
        raise UserError(f"{cant}: {in_one_line(error)}") from error
    given = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    raise UserError(f"{cant}: it makes {given} of them, not logits ({count}, 10)")
