"""modelset/reference/README.md and its picture: the results that come with the repository."""

from __future__ import annotations

import pandas as pd
from tabulate import tabulate

from cifar10lab.comparison.conclusions import CONCLUSIONS, EVIDENCE, NAMED, judge_all, named_rows
from cifar10lab.comparison.curves import COLOURS, DPI, WIDTH
from cifar10lab.comparison.runs import Runs, values
from cifar10lab.comparison.table import notes, table_rows
from cifar10lab.files.pictures import default_style, png
from cifar10lab.results.reference import mean_text, original_run

NOTE = """Written by `python compare_results.py --conclusions`: don't edit. The images were an image-folder copy of
CIFAR-10 in lossless WebP, pixel-exact but for 98 of the 60,000.

A row is the runs that differ by their seed alone: mean ± standard deviation. `best (epoch)`, in per cent, was chosen on
the test images, or on validation images where there are any. `gap`: training minus test accuracy at the end, in points.
`seconds`: of training alone, shortest to longest run. The original's: single runs of [original.json](original.json)."""
RULES = """What is compared was named beforehand, not chosen by its result. ±: half the width of a difference's 95 %
confidence interval, by the paired t test of three or more seeds in common, otherwise by Welch's with three seeds each.
Within it a difference is undecided, without one it can't be judged. A time is the epochs to an accuracy by the seconds
that `benchmarks/throughput.py` measured for both side by side; it is decided where all seeds agree. A speed-up is
considerable if it is more than half of what the further devices could add."""


def page(runs: Runs) -> str:
    """The README of the reference results, which are on CIFAR-10."""
    table = table_rows(runs, with_reference=True).drop(columns="reference %")
    parts = ["# Reference results", NOTE, markdown(table), "\n".join(f"- {note}" for note in notes(runs))]
    parts += ["![Test accuracies of the scripts, and what regularisation does](results.png)", "## Conclusions", RULES]
    for number, (conclusion, (verdict, lines)) in enumerate(zip(CONCLUSIONS, judge_all(runs), strict=True), 1):
        parts += [f"{number}. {conclusion}: **{verdict}**", markdown(pd.DataFrame(lines, columns=EVIDENCE))]
    return "\n\n".join(filter(None, parts)) + "\n"


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown, its numbers as they are."""
    return tabulate(table, headers=list(table.columns), tablefmt="pipe", showindex=False, disable_numparse=True)


@default_style()
def draw_results(runs: Runs) -> bytes:
    """Left, scripts' test accuracies at the end, a dot a seed; right, training and test accuracy of three LeNets."""
    from matplotlib.figure import Figure

    figure, rows = Figure(figsize=(WIDTH, 4.5), layout="constrained"), named_rows(runs)
    left, right = figure.subplots(1, 2, width_ratios=[5, 4])
    scripts = [name for name in list(NAMED)[:6] if len(rows[name])]
    for place, name in enumerate(scripts):
        accuracies, device = values(rows[name], "test_accuracy"), rows[name].iloc[0]["device"]
        left.plot(accuracies, [-place] * len(accuracies), "o", color=COLOURS[place], markersize=6, alpha=0.75)
        original = original_run(runs.records[rows[name].index[0]]["config"])
        if original and original["last"] is not None:
            left.plot([original["last"]], [0.2 - place], "*", ms=10, markerfacecolor="none", markeredgecolor="black")
        left.text(102, -place, f"{mean_text(accuracies.tolist())} %", va="center", clip_on=False)
        scripts[place] = name if device == "cpu" else f"{name}\n{device}"
    left.set_yticks([-place for place in range(len(scripts))], scripts)
    left.set(xlim=(55, 101), ylim=(-len(scripts) + 0.5, 0.5), xlabel="test accuracy after the last epoch (%)")
    left.set_title("● a seed   ☆ the original   right: the mean", fontsize=10, loc="left")
    left.grid(alpha=0.3, axis="x")
    kinds = {"plain": "LeNet", "L2": "LeNet + L2", "dropout": "LeNet + dropout"}
    for place, (name, colour) in enumerate(zip(kinds.values(), COLOURS[1:], strict=False)):
        train, test = (rows[f"{name}, 200 epochs"][f"{kind}_accuracy"].mean() for kind in ("train", "test"))
        right.plot([place, place], [test, train], color=colour, linewidth=3, alpha=0.4)
        right.plot(place, test, "o", color=colour, markersize=9)
        right.plot(place, train, "o", color=colour, markersize=9, markerfacecolor="white", markeredgewidth=2)
        texts = {test: f"{test:.1f}", train: f"{train:.1f}", (test + train) / 2: f"gap {train - test:.0f}"}
        for y, text in texts.items():
            right.text(place + 0.12, y, text, va="center")
    right.set_xticks(range(len(kinds)), list(kinds))
    right.set(xlim=(-0.4, 2.9), ylim=(55, 102), ylabel="mean accuracy (%)")
    right.set_title("LeNet, 200 epochs: ○ training   ● test", fontsize=10, loc="left")
    right.grid(alpha=0.3, axis="y")
    return png(figure, DPI)
