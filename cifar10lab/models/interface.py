"""What a model may say of itself, and what it takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Interface:
    """What a model may say of itself, as its attribute `cifar10_interface` or a method of that name.

    In its class, for example: `cifar10_interface = Interface(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))`.
    """

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
    means, deviations = (
        torch.stack([torch.full((1, 1), 255 * x, device=images.device) for x in values])
        for values in (interface.mean, interface.std)
    )
    images = images.to(torch.float32, copy=True).sub_(means).div_(deviations)
    return images.to(memory_format=torch.channels_last) if interface.channels_last else images
