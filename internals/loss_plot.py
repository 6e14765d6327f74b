"""The picture of one run, `loss.png`, and the losses within its epochs."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from internals.drawing import default_style, png
from internals.experiments import colour_of, shade
from internals.words import describe, describe_result

if TYPE_CHECKING:
    from torch import Tensor


@default_style()
def draw_losses(run: dict) -> bytes:
    """`loss.png` of what `loss.json` holds: losses and accuracies over the epochs."""
    from matplotlib.figure import Figure  # takes half a second: only when there is something to draw

    history, colour = run["history"], colour_of(run["experiment"])
    pale = shade(colour, 0.5)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(run["steps"]["epoch"], run["steps"]["train_loss"], color="#BBBBBB", label="training, within the epochs")
    marker = "o" if len(history["epoch"]) <= 30 else ""
    for axes, what, unit in ((left, "loss", "cross-entropy"), (right, "accuracy", "%")):
        axes.plot(history["epoch"], history[f"train_{what}"], f"{marker}--", color=pale, ms=4, label="training")
        axes.plot(history["epoch"], history[f"test_{what}"], f"{marker}-", color=colour, ms=4, label="test")
        if f"validation_{what}" in history:
            values = history[f"validation_{what}"]
            axes.plot(history["epoch"], values, f"{marker}:", color="#000000", ms=4, label="validation")
        axes.set(xlabel="epoch", ylabel=f"{what} ({unit})")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    stand_in = "" if run["dataset"]["name"] == "cifar10" else " on SYNTHETIC data, not CIFAR-10"
    title = f"{run['experiment']}{stand_in}: {describe_result(run['result'])}"
    settings = textwrap.fill(describe(run["config"]).replace(",", ", "), 120)
    figure.suptitle(f"{title}\n{settings}", fontsize=10)
    return png(figure, 110)


def finer_losses(steps: dict, losses: Tensor, epoch: int, batch_size: int, images: int) -> dict[str, list[float]]:
    """`steps` with the training loss of each twelfth of the epoch, placed at its end."""
    edges = np.linspace(0, len(losses), min(len(losses), 12) + 1).round().astype(int)
    sums = np.add.reduceat(losses.double().numpy(), edges[:-1])
    ends = np.minimum(edges * batch_size, images)
    epochs = (epoch - 1 + ends[1:] / images).round(4)
    means = sums / np.diff(ends)
    return {"epoch": steps["epoch"] + epochs.tolist(), "train_loss": steps["train_loss"] + means.tolist()}
