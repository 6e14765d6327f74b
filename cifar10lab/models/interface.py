"""What a model may say of itself, and what it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Interface:
    """What a model may say of itself, as its attribute `cifar10_interface` or by a method of that name.

    Nothing else of a model is looked at: `Interface(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))`, say.
    """

    # Of the normalisation of its images, per channel from 0 to 1; here CIFAR-10's own.
    mean: Sequence[float] = (0.4914, 0.4822, 0.4465)
    std: Sequence[float] = (0.2470, 0.2435, 0.2616)
    # Whether it gains from that memory layout, and from that precision.
    channels_last: bool = False
    bf16: bool = False
    # Whether its forward does the same with all parameters, whatever the images' values are: it is recorded once, as a
    # CUDA graph, and several processes look for no parameters that are without a gradient.
    static_graph: bool = False
    # `optimizer(settings)` makes its own; each of its groups keeps the ratio of its rate to `settings.lr` under every
    # schedule: {"params": body, "lr": settings.lr / 10}, say. Without it, common.py's `sgd` is used.
    optimizer: Callable[..., torch.optim.Optimizer] | None = None
    # Called once before training with all training images, uint8 (N, 3, 32, 32), in order of their classes if they are
    # from a folder.
    initialise: Callable[[Tensor], None] = lambda images: None
    # Options that weights tell without their run, as the length of a tensor: {"width": "conv1.weight"}.
    lengths: Mapping[str, str] = field(default_factory=dict)


def interface_of(model: nn.Module) -> Interface:
    """What the model says of itself, or the defaults."""
    says = getattr(model, "cifar10_interface", Interface())
    return says() if callable(says) else says


def plain_name(name: str) -> str:
    """A tensor's name in a state dict, as it is without `torch.compile`."""
    return name.replace("_orig_mod.", "")


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` on `device`, in the memory layout that it gains from."""
    fast = interface_of(model).channels_last
    return model.to(device, memory_format=torch.channels_last if fast else torch.contiguous_format)


def model_input(images: Tensor, interface: Interface) -> Tensor:
    """What a model takes, of images uint8 (N, 3, H, W), or of any type if their values are from 0 to 255.

    That is float32, less its channel means, over its standard deviations, in its memory layout.
    """
    # Filled on the device, since a copy from the host would make it wait for a GPU.
    means, deviations = (
        torch.stack([torch.full((1, 1), 255 * x, device=images.device) for x in values])
        for values in (interface.mean, interface.std)
    )
    images = images.to(torch.float32, copy=True).sub_(means).div_(deviations)
    return images.to(memory_format=torch.channels_last) if interface.channels_last else images
