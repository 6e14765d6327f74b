"""The picture of one run, `loss.png`."""

from __future__ import annotations

import io
import textwrap

from internals.experiments import colour_of, shade
from results.descriptions import describe_result
from settings.differences import describe


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
    figure.suptitle(f"{title}\n{settings}", fontsize=10, parse_math=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
