"""The learning rate and the size of the training images, from epoch to epoch."""

import math

from cifar10lab.settings.experiment import Settings

ONE_CYCLE_PEAK = 0.23  # the part of the run at which the learning rate is highest, as in fast_model.py's paper


def sizes_of(settings: Settings) -> list[int]:
    """The training images' sizes in pixels, in the order of the run."""
    return [int(size) for size in (settings.resolutions or "32").split(",")]


def resolution(settings: Settings, epoch: int) -> int:
    """The size in pixels of the training images in `epoch`, 1 to `epochs`."""
    sizes = sizes_of(settings)
    return sizes[(epoch - 1) * len(sizes) // settings.epochs]


def learning_rate(settings: Settings, epoch: int, part: float = 0.5) -> float:
    """The rate at that part, 0 to 1, of `epoch`, 1 to `epochs`.

    "cosine" falls to 0 over the run's epochs, from epoch to epoch (Loshchilov & Hutter,
    https://arxiv.org/abs/1608.03983). The others change at every step: "linear" falls from `lr` to 0; "one-cycle" rises
    linearly from a fifth of `lr` to `lr` and falls linearly to 0 (after Smith & Topin, https://arxiv.org/abs/1708.07120).
    """
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "cosine":
        return settings.lr * ((1 + math.cos(math.pi * (epoch - 1) / settings.epochs)) / 2)
    done = (epoch - 1 + part) / settings.epochs
    if settings.schedule == "linear":
        return settings.lr * (1 - done)
    return settings.lr * min(0.2 + 0.8 * done / ONE_CYCLE_PEAK, (1 - done) / (1 - ONE_CYCLE_PEAK))
