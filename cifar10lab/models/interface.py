"""What a model may say of itself and what it takes; and a trial of it, before anything is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar10lab.devices.execution import Execution
from cifar10lab.terminal.errors import UserError, in_one_line


@dataclass(frozen=True)
class Interface:
    """What a model may say of itself, as its attribute `cifar10_interface` or a method of that name."""

    # For the normalisation of images from 0 to 1: each channel's mean and standard deviation; by default CIFAR-10's.
    mean: Sequence[float] = (0.4914, 0.4822, 0.4465)
    std: Sequence[float] = (0.2470, 0.2435, 0.2616)
    # Whether the model gains from this memory layout, and from this precision.
    channels_last: bool = False
    bf16: bool = False
    # Whether the model's forward does the same, with all parameters, whatever the images' values are. It is then
    # recorded as a CUDA graph, and DistributedDataParallel doesn't look for unused parameters.
    static_graph: bool = False
    # `optimizer(settings)` makes the model's own optimizer, in place of the one that `settings.optimizer` names. Its
    # groups keep their ratio to `settings.lr` under every schedule: {"params": body, "lr": settings.lr / 10}, say.
    optimizer: Callable[..., torch.optim.Optimizer] | None = None
    # Called once before training with all training images, uint8 (N, 3, 32, 32), an image folder's class by class.
    initialise: Callable[[Tensor], None] = lambda images: None


def interface_of(model: nn.Module) -> Interface:
    """The model's `cifar10_interface`, or the defaults."""
    says = getattr(model, "cifar10_interface", Interface())
    return says() if callable(says) else says


def plain_name(name: str) -> str:
    """A tensor's name in a state dict without what `torch.compile` puts into it."""
    return name.replace("_orig_mod.", "")


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` on `device`, in the memory layout that it gains from."""
    fast = interface_of(model).channels_last
    return model.to(device, memory_format=torch.channels_last if fast else torch.contiguous_format)


def model_input(images: Tensor, interface: Interface) -> Tensor:
    """Images (N, 3, H, W) of any type, from 0 to 255 -> float32, normalised and laid out as the model takes them."""
    # `full` fills on the device: copying from the host would wait for the GPU.
    values = [torch.full((1, 1), 255 * x, device=images.device) for x in (*interface.mean, *interface.std)]
    means, deviations = torch.stack(values).view(2, -1, 1, 1)
    images = images.to(torch.float32, copy=True).sub_(means).div_(deviations)
    return images.to(memory_format=torch.channels_last) if interface.channels_last else images


def try_model(model: nn.Module, execution: Execution, sizes: list[int], smallest: int = 2) -> None:
    """Test the model on two 32x32 images and train it on two of each of `sizes`; UserError with the reason if it fails.

    `smallest` is how many images a process has in the smallest step: if only one, the model is trained on one, too.
    Its weights and buffers stay; it is then on the device, and its lazy layers have shapes.
    """
    device = execution.device
    model.to(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        attempt(model, execution, (2, 3, 32, 32), training=False)
        tensors = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
        buffers = [(module, *named) for module in model.modules() for named in module.named_buffers(recurse=False)]
        for size in sizes:
            attempt(model, execution, (2, 3, size, size), training=True)
        if smallest < 2:
            attempt(model, execution, (1, 3, sizes[-1], sizes[-1]), training=True)
    with torch.no_grad():
        for tensor, value in tensors:
            tensor.copy_(value)
            tensor.grad = None
        for module, name, buffer in buffers:  # training may have put others in their places
            setattr(module, name, buffer)


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
