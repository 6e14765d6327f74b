"""comparison.png: the losses and accuracies of all runs, laid over each other.

Made to be read at 830 pixels' width, which is what code hosts give a picture on a page.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cifar10lab.comparison.runs import Runs, names_of
from cifar10lab.files.pictures import default_style, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, DPI = 10, 166  # inches: twice 830 pixels, for sharp screens
# Okabe and Ito's colours, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/), the yellow
# darkened to be seen on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#857A00")
GREY = "#BBBBBB"


@dataclass(frozen=True)
class Curve:
    """The runs that differ by their seed alone: columns of `mean` and `deviation` are the history's, a row an epoch."""

    name: str
    label: str  # with its test accuracy at the end
    mean: pd.DataFrame
    deviation: pd.DataFrame
    seeds: int


def curves_of(runs: Runs, over: str) -> list[Curve]:
    """Each row's curves, the highest test accuracy at the end first.

    `over` is "epochs" or "seconds"; over seconds, runs on different machines are curves of their own.
    """
    keys, machine, found = runs.table["row"].astype(str), runs.table["machine"], []
    keys = keys + machine if over == "seconds" else keys
    names = names_of(runs, keys)
    for key, group in runs.table[runs.table["epochs_trained"] > 0].groupby(keys, sort=False):
        epochs, seeds = runs.part(group).epochs, len(group)
        # Of several machines' times, those of the one with the most runs.
        timed = epochs["run"].map(machine) == machine[group.index].mode()[0]
        epochs = epochs.assign(seconds=epochs.groupby("run")["seconds"].cumsum().where(timed))
        columns = ["train_loss", "test_loss", "train_accuracy", "test_accuracy", "seconds"]
        by_epoch = epochs.groupby("epoch")[columns]
        complete = by_epoch.size() == seeds  # not the epochs that only some seeds were trained for
        mean, deviation = by_epoch.mean()[complete], by_epoch.std().fillna(0)[complete]
        label = f"{mean['test_accuracy'].iloc[-1]:.2f} %  {names[key]}" + (f" ({seeds} seeds)" if seeds > 1 else "")
        found.append(Curve(names[key], label, mean, deviation, seeds))
    return sorted(found, key=lambda curve: -curve.mean["test_accuracy"].iloc[-1])


def stand_in(runs: Runs) -> str:
    """How the title begins if the runs, all on one data set, were not on CIFAR-10."""
    name = runs.table["dataset"].iloc[0]
    return "" if name == "cifar10" else f"{name.upper()} data, not CIFAR-10; "


@default_style()
def draw_comparison(runs: Runs, over: str = "epochs") -> bytes:
    """Loss and accuracy over "epochs" or "seconds": test full, training pale, seeds as a mean with a band."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    curves = curves_of(runs, over)
    figure = Figure(figsize=(WIDTH, 4.6 + 0.2 * len(curves[: len(COLOURS) + 2])), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    colours = [*COLOURS, *[GREY] * len(curves)][: len(curves)]
    for curve, colour in reversed([*zip(curves, colours, strict=True)]):  # the best on top
        draw_curve(loss, curve, colour, "loss", over)
        draw_curve(accuracy, curve, colour, "accuracy", over)
    smoothed = runs.settings().get("label_smoothing", pd.Series(0)).any()
    note = "\n(training loss with label smoothing where there is any)" if smoothed else ""
    x = {"epochs": "epoch", "seconds": "seconds of training"}[over]
    loss.set(xlabel=x + note, ylabel="loss (cross-entropy)", ylim=(0, 1.05 * loss.get_ylim()[1]))
    accuracy.set(xlabel=x, ylabel="accuracy (%)")
    ends = [float(curve.mean.index[-1] if over == "epochs" else curve.mean["seconds"].iloc[-1]) for curve in curves]
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        if max(ends) > 10 * min(ends):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        elif over == "epochs":
            axes.xaxis.get_major_locator().set_params(integer=True)
    seeds = ", band: standard deviation over seeds" if any(curve.seeds > 1 for curve in curves) else ""
    figure.suptitle(f"{stand_in(runs)}full: test, pale and dashed: training{seeds}", fontsize=10)
    lines = [Line2D([], [], color=colour, linewidth=2.5) for colour in colours[: len(COLOURS) + 1]]
    labels = [textwrap.fill(curve.label, 100, subsequent_indent="    ") for curve in curves[: len(COLOURS)]]
    if len(curves) > len(labels):
        labels.append(f"{len(curves) - len(labels)} more with a lower test accuracy at the end")
    style = {"title": "test accuracy at the end", "fontsize": 9.5, "frameon": False, "alignment": "left"}
    figure.legend(lines, labels, loc="outside lower center", **style)
    return png(figure, DPI)


def draw_curve(axes: Axes, curve: Curve, colour: str, what: str, over: str) -> None:
    """A run's test and training losses or accuracies; a mean training loss stands at the middle of its epoch."""
    mean = curve.mean
    ends = mean.index.to_numpy(float) if over == "epochs" else mean["seconds"].to_numpy()
    middles = ends - np.diff(ends, prepend=0) / 2
    marker = "o" if len(ends) == 1 else ""
    faint = colour == GREY
    for kind, x in (("train", middles if what == "loss" else ends), ("test", ends)):
        if faint and kind == "train":
            continue
        y, deviation = mean[f"{kind}_{what}"].to_numpy(), curve.deviation[f"{kind}_{what}"].to_numpy()
        style = {"linewidth": 0.8 if faint else 1.8}
        if kind == "train":
            style = {"linestyle": "--", "linewidth": 1.2, "alpha": 0.55}
        axes.plot(x, y, color=colour, marker=marker, label=f"{curve.name}, {kind}", **style)
        if curve.seeds > 1 and not faint:
            axes.fill_between(x, y - deviation, y + deviation, color=colour, alpha=0.15, linewidth=0)
