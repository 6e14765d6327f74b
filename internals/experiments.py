"""The experiments in the order of the README's table, each with its short name and its colour in every picture."""

from __future__ import annotations

import zlib

# Okabe and Ito's colours, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/). They stand
# for the models, too: blues for plain LeNet, vermilion for ResNet-18.
EXPERIMENTS = {
    "original_version_model": ("LeNet baseline", "#56B4E9"),
    "original_version_model_multigpu": ("LeNet", "#0072B2"),
    "l2_regularization": ("LeNet + L2", "#009E73"),
    "dropout_regularization": ("LeNet + dropout", "#CC79A7"),
    "resnet_model": ("ResNet-18", "#D55E00"),
    "fast_model": ("fast model", "#E69F00"),
}
OTHER_COLOURS = ("#000000", "#808080", "#857A00")  # the last is their yellow, darkened to be seen on paper


def short_name(experiment: str) -> str:
    """The experiment's name in pictures, where there is little room."""
    return EXPERIMENTS[experiment][0] if experiment in EXPERIMENTS else experiment


def colour_of(experiment: str) -> str:
    """The experiment's colour, as #RRGGBB; that of an unknown one follows from its name alone."""
    if experiment in EXPERIMENTS:
        return EXPERIMENTS[experiment][1]
    return OTHER_COLOURS[zlib.crc32(experiment.encode()) % len(OTHER_COLOURS)]


def shade(colour: str, by: float) -> str:
    """#RRGGBB mixed with white, for `by` from 0 to 1, or with black, for 0 to -1."""
    towards = 255 if by > 0 else 0
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + abs(by) * (towards - part)):02X}" for part in parts)


def table_order(experiment: str) -> tuple[int, str]:
    """A key to sort by: the order of the README's table, then all others by their names."""
    names = list(EXPERIMENTS)
    return (names.index(experiment) if experiment in names else len(names)), experiment
