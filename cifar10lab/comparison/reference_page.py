"""modelset/reference/README.md and its picture: the results that come with the repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from tabulate import tabulate

from cifar10lab.comparison.conclusions import CONCLUSIONS, Evidence
from cifar10lab.comparison.curves import COLOURS, DPI, WIDTH
from cifar10lab.comparison.runs import Runs, config_of_row, values
from cifar10lab.comparison.table import common_settings, table_rows
from cifar10lab.files.pictures import default_style, png
from cifar10lab.results.reference import mean_text, original_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCRIPTS = {  # in the order of the README's table: the name in the picture, and the epochs
    "original_version_model": ("LeNet, 5 epochs", 5),
    "original_version_model_multigpu": ("LeNet, 50 epochs", 50),
    "l2_regularization": ("LeNet + L2, 50 epochs", 50),
    "dropout_regularization": ("LeNet + dropout, 50 epochs", 50),
    "resnet_model": ("ResNet-18, 25 epochs", 25),
    "fast_model": ("fast model, 12 epochs", 12),
}
NOTE = """Written by `python compare_results.py --conclusions`: don't edit. The images were an image-folder copy of
CIFAR-10 in lossless WebP, pixel-exact but for 98 of the 60,000.

A row is the runs that differ by their seed alone: mean ± standard deviation. `best (epoch)`, in per cent, is chosen on
the test set and so is no test any more. `gap` is training minus test accuracy after the last epoch, in points.
`seconds` are of training alone, the median epoch times the epochs, from the shortest run to the longest: they are of
several machines. The original's figures are those in [original.json](original.json), single runs."""
RULES = """A difference stands with the half-width of its 95 % confidence interval, by Student's t. The deviation from
seed to seed is pooled over all of a model's settings. Where the best or worst of several settings was chosen, the
interval is wider for it (Bonferroni). A difference within its interval is undecided; a run of fewer than 5 epochs is no
evidence. The epochs to an accuracy are interpolated; times are compared on one machine alone."""


def page(runs: Runs, judged: list[tuple[str, list[Evidence]]]) -> str:
    """The README of the reference results, which are on CIFAR-10."""
    without = ["reference %", *(name.replace("_", " ") for name in common_settings(runs)[1])]  # the names say them
    table = table_rows(runs, with_reference=True).drop(columns=without, errors="ignore")
    parts = ["# Reference results", NOTE, markdown(table)]
    parts += ["![Test accuracies of the scripts, and what regularisation does](results.png)", "## Conclusions", RULES]
    for number, (conclusion, (verdict, lines)) in enumerate(zip(CONCLUSIONS, judged, strict=True), 1):
        parts += [f"{number}. {conclusion}: **{verdict}**", markdown(pd.DataFrame(lines))]
    return "\n\n".join(filter(None, parts)) + "\n"


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown, its numbers as they are."""
    heads = [name.replace("_", " ") for name in table.columns]
    return tabulate(table, headers=heads, tablefmt="pipe", showindex=False, disable_numparse=True)


@default_style()
def draw_results(runs: Runs) -> bytes:
    """Left, each script's test accuracy at the end; right, training and test accuracy of three LeNets."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[5, 4])
    draw_scripts(left, runs)
    draw_gaps(right, runs)
    return png(figure, DPI)


def of_script(runs: Runs, experiment: str, epochs: int) -> pd.DataFrame:
    """The script's runs with its stated settings but for the epochs: those of the shortest folder name."""
    table = runs.table[(runs.table["experiment"] == experiment) & (runs.table["validation_images"] == 0)]
    table = table[table["epochs"] == epochs]
    return table[table["key"] == table.loc[table["folder"].str.len().idxmin(), "key"]] if len(table) else table


def draw_scripts(axes: Axes, runs: Runs) -> None:
    """A row per script, the first one at the top."""
    found = {name: of_script(runs, experiment, epochs) for experiment, (name, epochs) in SCRIPTS.items()}
    found = {name: group for name, group in found.items() if len(group)}
    for place, group in enumerate(found.values()):
        accuracies, y, colour = values(group, "test_accuracy"), -place, COLOURS[place]
        axes.plot(accuracies, [y] * len(accuracies), "o", color=colour, markersize=6, alpha=0.75)
        original = original_run(config_of_row(runs, group.iloc[0]))
        if original and original["last"] is not None:
            axes.plot([original["last"]], [y + 0.2], "*", ms=10, markerfacecolor="none", markeredgecolor="black")
        axes.text(102, y, f"{mean_text(accuracies.tolist())} %", va="center", clip_on=False)
    axes.set_yticks([-place for place in range(len(found))], list(found))
    axes.set(xlim=(55, 101), ylim=(-len(found) + 0.5, 0.5), xlabel="test accuracy after the last epoch (%)")
    axes.set_title("● a seed   ☆ the original   right: the mean", fontsize=10, loc="left")
    axes.grid(alpha=0.3, axis="x")


def draw_gaps(axes: Axes, runs: Runs) -> None:
    """Training and test accuracy of the three LeNets at 200 epochs, as dumbbells."""
    scripts = ("original_version_model_multigpu", "l2_regularization", "dropout_regularization")
    shown = list(zip(scripts, ("plain", "L2", "dropout"), strict=True))
    for place, (experiment, _) in enumerate(shown):
        group, colour = of_script(runs, experiment, 200), COLOURS[list(SCRIPTS).index(experiment)]
        if group.empty:
            continue
        train, test = (values(group, f"{kind}_accuracy").mean() for kind in ("train", "test"))
        axes.plot([place, place], [test, train], color=colour, linewidth=3, alpha=0.4)
        axes.plot([place], [test], "o", color=colour, markersize=9)
        axes.plot([place], [train], "o", color=colour, markersize=9, markerfacecolor="white", markeredgewidth=2)
        for y in (test, train):
            axes.text(place + 0.12, y, f"{y:.1f}", va="center")
        axes.text(place - 0.1, (train + test) / 2, f"gap {train - test:.0f}", va="center", ha="right")
    axes.set_xticks(range(len(shown)), [name for _, name in shown])
    axes.set(xlim=(-0.95, 2.75), ylim=(55, 102), ylabel="mean accuracy (%)")
    axes.set_title("LeNet, 200 epochs: ○ training   ● test", fontsize=10, loc="left")
    axes.grid(alpha=0.3, axis="y")
