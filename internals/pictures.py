"""The pictures of compare_results.py: the four conclusions, and all curves as small multiples.

They are made to be read at 830 pixels' width, which is what code hosts give a picture on a page.
"""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from internals.conclusions import (
    CONCLUSIONS,
    REGULARISERS,
    Judgement,
    by_settings,
    regularised,
)
from internals.experiments import colour_of, shade
from internals.original import original_run
from internals.runs import Group, Unfinished, chosen_on, machine
from internals.speedups import Speedup, whole_run_speedups

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 10, 166  # inches: twice 830 pixels, for sharp screens
SET_APART = 1.35  # pairs of bars that are 0.88 wide
LABEL_INCHES = 0.17  # from one label to the next
TEXT = {"font.size": 9.5, "axes.titlesize": 10, "legend.fontsize": 9}
SHADES = (0.0, -0.45, 0.35, -0.2, 0.2, -0.65, 0.5)  # of an experiment's settings, the stated ones first
LINES = ("-", "--", ":")
Style = dict[str, str]


def png(figure: Figure) -> bytes:
    """The same bytes for the same figure: without the name and version of what drew it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()


def styles(groups: list[Group]) -> dict[str, Style]:
    """A colour and a line for each group's label: its experiment's colour, the settings as shades of it."""
    counts: dict[str, int] = {}
    found = {}
    for label, experiment in {group.short: group.experiment for group in groups}.items():
        number = counts[experiment] = counts.get(experiment, -1) + 1
        colour = shade(colour_of(experiment), SHADES[number % len(SHADES)])
        found[label] = {"color": colour, "linestyle": LINES[number // len(SHADES) % len(LINES)]}
    return found


def columns(group: Group, name: str) -> np.ndarray:
    """A column of each seed's history, float64 (seeds, epochs), cut to the shortest run; a seed's runs are averaged."""
    epochs = min(len(run["history"]["epoch"]) for run in group.runs)
    return np.array([np.mean([run["history"][name][:epochs] for run in runs], 0) for runs in group.by_seed])


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the seeds, each (epochs,)."""
    return values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def best_so_far(run: dict) -> list[float]:
    """After each epoch, the test accuracy of the best one so far, by what the run chooses its best epoch on."""
    history, best, found = run["history"], 0, []
    chosen = history["validation_accuracy" if chosen_on(run) == "validation" else "test_accuracy"]
    for i, accuracy in enumerate(chosen):
        best = i if accuracy > chosen[best] else best
        found.append(history["test_accuracy"][best])
    return found


# --- Labels at the lines' ends ----------------------------------------------------------------


def apart(positions: list[float], gap: float, low: float, high: float) -> list[float]:
    """Sorted positions moved as little as possible to be `gap` apart, between `low` and `high` if there is room."""
    blocks: list[tuple[float, int]] = []  # where neighbours that would touch begin, and how many they are
    for i, position in enumerate(positions):
        start, count = position - i * gap, 1
        while blocks and blocks[-1][0] > start:
            before, more = blocks.pop()
            start, count = (start * count + before * more) / (count + more), count + more
        blocks.append((start, count))
    starts = np.repeat([start for start, _ in blocks], [count for _, count in blocks])
    starts = np.clip(starts, low, max(low, high - (len(positions) - 1) * gap))
    return (starts + gap * np.arange(len(positions))).tolist()


def label_ends(axes: Axes, ends: list[tuple[float, float, str, str]], gap: float) -> None:
    """Labels right of the axes, each with a thin line to (x, y), the end of its curve.

    `ends` are (x, y, text, colour); `gap` is between labels, as a part of the axes' height. To be called
    when the axes' limits are final.
    """
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[1])
    heights = apart([(y - low) / (high - low) for _, y, _, _ in ends], gap, gap / 2, 1 - gap / 2)
    line = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 1, "relpos": (0, 0.5)}
    for (x, y, text, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            text, (x, y), (1.04, height), textcoords="axes fraction", annotation_clip=False,
            color=shade(colour, -0.25), va="center", fontsize=9, arrowprops={**line, "color": colour},
        )


def shortened(label: str) -> str:
    """What the column beside the axes has room for: the settings of an unknown experiment may be many."""
    return textwrap.shorten(label, 58, placeholder=" …")


def star(axes: Axes, x: float, y: float, experiment: str, size: float = 12) -> None:
    """One of the original's figures."""
    about = {"marker": "*", "markersize": size, "markeredgecolor": "black", "markeredgewidth": 0.7, "linestyle": ""}
    axes.plot([x], [y], color=colour_of(experiment), zorder=5, **about)


# --- The four conclusions ---------------------------------------------------------------------


def draw_comparison(groups: list[Group], judgements: list[Judgement], measured: list[Speedup]) -> bytes:
    """comparison.png: a panel for each conclusion, whose title says what was found."""
    import matplotlib
    from matplotlib.figure import Figure

    speedups = [*whole_run_speedups(groups), *measured]
    timed = of_one_kind(by_settings(on_one_device(groups)))
    groups = of_one_kind(by_settings(groups))
    looks = styles(unregularised([*groups, *timed]))
    heights = [max(3.7, 0.9 + LABEL_INCHES * len(groups))] * 2 + [3.9]
    gap = LABEL_INCHES / (heights[0] - 0.85)  # less the title and the axis below
    with matplotlib.rc_context(TEXT):
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        upper, middle, lower = figure.subfigures(3, 1, height_ratios=heights)
        panels = [upper.subplots(), middle.subplots(), *lower.subplots(1, 2)]
        draw_epochs(panels[0], unregularised(groups), looks, gap)
        draw_time(panels[1], unregularised(timed), looks, gap)
        draw_regularisation(panels[2], groups)
        draw_devices(panels[3], speedups)
        for number, (panel, (_, short), judgement) in enumerate(zip(panels, CONCLUSIONS, judgements, strict=True), 1):
            verdict = f" ({judgement.verdict})" if judgement.headline != judgement.verdict else ""
            title = f"{number}. {short}: {judgement.headline}{verdict}"
            panel.set_title(textwrap.fill(title, 105 if number <= 2 else 46), loc="left", fontweight="bold")
        return png(figure)


def of_one_kind(groups: list[Group]) -> list[Group]:
    """Those whose best epoch the test set chose, or validation images if there are no others: they don't mix."""
    kinds = {group.chosen_on for group in groups}
    return [group for group in groups if group.chosen_on == min(kinds)]


def on_one_device(groups: list[Group]) -> list[Group]:
    """The runs on the GPU, or the number of the CPU's threads, that most groups have: other times don't compare."""
    timed = [group.timed for group in groups]
    devices = [machine(group.runs[0])[::2] for group in timed]
    most = max(sorted(set(devices)), key=devices.count)
    return [group for group, device in zip(timed, devices, strict=True) if device == most]


def unregularised(groups: list[Group]) -> list[Group]:
    """Without the LeNets with L2 or dropout, which have a panel of their own."""
    return [
        group
        for group in groups
        if group.config["model"] != "LeNet" or not (group.config.get("weight_decay") or group.config.get("dropout"))
    ]


def empty(axes: Axes, text: str) -> None:
    """Say what is missing instead of drawing it."""
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, textwrap.fill(text, 40), ha="center", va="center", transform=axes.transAxes)


def draw_epochs(axes: Axes, groups: list[Group], looks: dict[str, Style], gap: float) -> None:
    """Test accuracy over epochs of each model's settings."""
    from matplotlib.ticker import LogLocator

    if not groups:
        return empty(axes, "missing: a run without L2 and dropout")
    ends = []
    for group in groups:
        style = looks[group.short]
        mean, deviation = band(columns(group, "test_accuracy"))
        epochs = columns(group, "epoch")[0]
        axes.plot(epochs, mean, **style, marker="o" if len(epochs) == 1 else "")
        axes.fill_between(epochs, mean - deviation, mean + deviation, color=style["color"], alpha=0.2, linewidth=0)
        ends.append((epochs[-1], mean[-1], f"{mean[-1]:.1f} %  {shortened(group.short)}", style["color"]))
        original = original_run(group.config)
        if original and original["best"] is not None:
            star(axes, original["best_epoch"] or original["epochs"], original["best"], group.experiment)
    explained = "labels: last epoch; title: best epoch; ★ the original's best epoch"
    axes.set(xlabel=f"epoch   ({explained})", ylabel="test accuracy (%)", xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    label_ends(axes, ends, gap)
    return None


def draw_time(axes: Axes, groups: list[Group], looks: dict[str, Style], gap: float) -> None:
    """The best test accuracy so far over training time; other processors than the first have dashed lines."""
    from matplotlib.ticker import LogLocator

    if not groups:
        return empty(axes, "missing: a run without L2 and dropout")
    ends = []
    machines = [machine(group.runs[0]) for group in groups]
    most = max(sorted(set(machines)), key=machines.count)
    for group, where in zip(groups, machines, strict=True):
        style = looks[group.short]
        epochs = min(len(run["history"]["epoch"]) for run in group.runs)
        mean, _ = band(np.array([best_so_far(run)[:epochs] for run in group.runs]))
        seconds = columns(group, "seconds").cumsum(1).mean(0)
        line = style["linestyle"] if where == most else "--"
        axes.plot(seconds, mean, color=style["color"], linestyle=line, marker="o" if epochs == 1 else "")
        ends.append((seconds[-1], mean[-1], f"{mean[-1]:.1f} %  {shortened(group.short)}", style["color"]))
    choice = " by validation images" if groups[0].chosen_on == "validation" else ""
    axes.set(ylabel=f"test accuracy, best epoch so far{choice} (%)", xscale="log")
    names = [machine_text(one) for one in sorted(set(machines), key=lambda one: (one != most, one))]
    elsewhere = f"; dashed: {', '.join(names[1:])}" if len(names) > 1 else ""
    axes.set_xlabel(textwrap.fill(f"seconds of training ({names[0]}{elsewhere})", 84))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    label_ends(axes, ends, gap)
    return None


def machine_text(where: tuple[str, str, int]) -> str:
    """A run's device and, of a CPU, which one."""
    device, processor, threads = where
    return device if device != "cpu" else f"{processor or 'CPU not recorded'}, {threads} thread{'s' * (threads > 1)}"


def regularised_sets(groups: list[Group]) -> list[dict[str, Group]]:
    """LeNets that differ by regularisation alone, plain and with each kind, by name, fewest epochs first."""
    sets: dict[int, dict[str, Group]] = {}
    for name, what in REGULARISERS.items():
        for without, other in regularised(groups, name):
            found = sets.setdefault(id(without), {"plain": without})
            if what not in found or other.seeds > found[what].seeds:  # of several strengths, the one with most seeds
                found[what] = other
    return [found for found in sets.values() if len(found) == 1 + len(REGULARISERS)]


def draw_regularisation(axes: Axes, groups: list[Group]) -> None:
    """Training and test accuracy after the last epoch, side by side, at each number of epochs that all kinds have."""
    sets = regularised_sets(groups)
    if not sets:
        return empty(axes, "missing: LeNet plain, with L2 and with dropout, all else the same")
    ticks, place = [], 0.0
    for found in sets:
        for what, group in found.items():
            draw_bars(axes, group, place)
            ticks.append((place + 0.22, f"{what}\nn = {group.seeds}"))
            place += SET_APART
        epochs = next(iter(found.values())).config["epochs"]
        axes.text(place - SET_APART * len(found) / 2 - 0.4, 116, f"{epochs} epochs", ha="center", va="top")
        place += 0.5
    axes.set_xticks([x for x, _ in ticks], [text for _, text in ticks], fontsize=8.5)
    axes.set(ylim=(0, 118), yticks=range(0, 101, 20), ylabel="accuracy after the last epoch (%)")
    axes.set_xlabel("n seeds; pale: training, full: test, ★ the original's")
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    return None


def draw_bars(axes: Axes, group: Group, place: float) -> None:
    """A pale bar for the training accuracy and a full one for the test accuracy, with deviations and the original's."""
    original, colour = original_run(group.config) or {}, colour_of(group.experiment)
    for i, (name, theirs) in enumerate((("final_train_accuracy", "train_accuracy"), ("final_test_accuracy", "last"))):
        mean, deviation, x = group.mean(name), group.deviation(name), place + 0.44 * i
        axes.bar(x, mean, 0.44, color=shade(colour, 0.0 if i else 0.5), yerr=deviation or None, capsize=2)
        top = max(mean + deviation, original.get(theirs) or 0)
        axes.text(x, top + 3.5, f"{mean:.0f}", ha="center", fontsize=9)
        if original.get(theirs) is not None:
            star(axes, x, original[theirs], group.experiment, size=8)


def draw_devices(axes: Axes, speedups: list[Speedup]) -> None:
    """Speed on several devices as a multiple of that on one, against the ideal line; GPUs alone if there are any."""
    speedups = [speedup for speedup in speedups if speedup.device != "cpu"] or speedups
    if not speedups:
        return empty(axes, "missing: the same run on one device and on several (torchrun, benchmarks/scaling.py)")
    colours = {"LeNet": colour_of("original_version_model_multigpu"), "ResNet18": colour_of("resnet_model")}
    most, counts = max(speedup.devices for speedup in speedups), {}
    axes.plot([1, most], [1, most], color="black", linestyle="--", linewidth=1)
    ends = [(most, most, "ideal", "#000000")]
    for speedup in speedups:
        model = speedup.what.split(",")[0]
        number = counts[model] = counts.get(model, -1) + 1
        colour = shade(colours.get(model, "#808080"), SHADES[number % len(SHADES)])
        devices = sorted(speedup.speeds)
        ratios = [speedup.ratios[n] for n in devices]
        axes.plot(devices, ratios, color=colour, marker="o", markersize=4)
        speeds = f"{speedup.speeds[1]:.0f} to {speedup.speeds[devices[-1]]:.0f} images/s"
        whole = " (whole runs)" * ("whole runs" in speedup.source)
        ends.append((devices[-1], ratios[-1], f"{speedup.what}{whole}\n{speeds}", colour))
    unit = "GPUs" if speedups[0].device != "cpu" else "CPU cores"
    axes.set(xlabel=unit, ylabel="images/s over those of one", xticks=range(1, most + 1))
    axes.grid(alpha=0.3)
    label_ends(axes, ends, 0.12)
    return None


# --- All curves -------------------------------------------------------------------------------

ACROSS = 3  # groups in a row


def draw_curves(groups: list[Group], unfinished: list[Unfinished]) -> bytes:
    """Small multiples: losses and accuracies of each group, or of each run in progress if there are any.

    Grey lines are the test accuracies of the experiment's other groups.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = unfinished or groups
    rows = -(-len(shown) // ACROSS)
    with matplotlib.rc_context(TEXT):
        figure = Figure(figsize=(WIDTH, 0.5 + 3.4 * rows), layout="constrained")
        axes = figure.subplots(2 * rows, ACROSS, squeeze=False, height_ratios=[2, 1] * rows)
        cells = zip(axes[::2].flat, axes[1::2].flat, strict=True)
        for one, (upper, lower) in zip(shown, cells, strict=False):
            others = [group for group in groups if group.experiment == one.experiment and group is not one]
            draw_cell(upper, lower, one, others)
            same = [group for group in others if isinstance(one, Group) and group.short == one.short]
            title = f"{one.title}, {one.devices}" if same else one.title
            upper.set_title(textwrap.fill(title, 37), fontsize=9.5, loc="left")
        for unused in axes[-2:, len(shown) - ACROSS * (rows - 1) :].flat:
            unused.axis("off")
        lines = "full: test, pale: training, dots: validation, grey: other settings"
        smoothed = "above accuracies, below losses, those of training with label smoothing where there is any"
        figure.suptitle(f"{lines}; dashes: the original's last, ★ its best\n{smoothed}", fontsize=9.5)
        return png(figure)


def draw_cell(upper: Axes, lower: Axes, one: Group | Unfinished, others: list[Group]) -> None:
    """Accuracies above, losses below, over the epochs."""
    colour = colour_of(one.experiment)
    for other in others:
        upper.plot(columns(other, "epoch")[0], band(columns(other, "test_accuracy"))[0], color="#CCCCCC", linewidth=0.8)
    runs = one.runs if isinstance(one, Group) else [{"config": {}, "history": one.history}]
    group = Group(one.experiment, one.changes, runs, [])
    epochs = columns(group, "epoch")[0]
    marker = "o" if len(epochs) == 1 else ""
    for axes, what in ((upper, "accuracy"), (lower, "loss")):
        for part, tint in (("train", 0.55), ("test", 0.0)):
            mean, deviation = band(columns(group, f"{part}_{what}"))
            axes.plot(epochs, mean, color=shade(colour, tint), marker=marker)
            axes.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
        if f"validation_{what}" in group.runs[0]["history"]:
            mean, _ = band(columns(group, f"validation_{what}"))
            axes.plot(epochs, mean, color=shade(colour, -0.5), linestyle=":", linewidth=1.2)
        axes.grid(alpha=0.3)
    upper.set(ylim=(0, 102), yticks=(0, 20, 40, 60, 80, 100), ylabel="%")
    upper.tick_params(labelbottom=False)
    lower.set(ylabel="loss", xlabel="epoch")
    lower.set_ylim(bottom=0)
    lower.xaxis.get_major_locator().set_params(integer=True)
    upper.sharex(lower)
    margin = max(0.04 * epochs[-1], 0.2) if len(epochs) else 1
    lower.set_xlim(1 - margin, (epochs[-1] if len(epochs) else 1) + margin)
    if isinstance(one, Group):
        draw_originals(upper, one)


def draw_originals(axes: Axes, group: Group) -> None:
    """The original's accuracy after its last epoch as a dashed line, its best one as a star."""
    original = original_run(group.config) or {}
    if original.get("last") is not None:
        axes.axhline(original["last"], color=colour_of(group.experiment), linestyle="--", linewidth=1)
    if original.get("best") is not None:
        star(axes, original["best_epoch"] or original["epochs"], original["best"], group.experiment)
