"""comparison.png and comparison.html: the losses and accuracies of all runs, laid over each other."""

import html
import itertools
import textwrap
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cifar10lab.comparison.runs import epochs_of, settings_of

WIDTH, DPI = 10, 166  # inches: for sharp screens twice the 830 pixels that code hosts give a picture on a page
# Okabe and Ito's, with a darker yellow: colour-blind readers can tell them apart (https://jfly.uni-koeln.de/color/).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#857A00")
GREY = "#BBBBBB"
LINES = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")  # of each row, columns of its history


@dataclass(frozen=True)
class Curve:
    """A row's runs: `mean` and `deviation` have LINES and the seconds so far, `took`, as columns; a row an epoch."""

    name: str
    label: str  # with its test accuracy at the end
    mean: pd.DataFrame
    deviation: pd.DataFrame
    seeds: int


def curves_of(runs: pd.DataFrame) -> list[Curve]:
    """Each row's curves, the best at the end first. Its seconds are those of the machine with the most of its runs."""
    found = []
    for (_, name), group in runs[runs["epochs_trained"] > 0].groupby(["row", "name"], sort=False):
        epochs, seeds = epochs_of(group), len(group)
        timed = epochs["run"].map(group["machine"]) == group["machine"].mode()[0]
        by_epoch = epochs.assign(took=epochs["took"].where(timed)).groupby("epoch")[[*LINES, "took"]]
        complete = by_epoch.size() == seeds  # not the epochs that only some seeds were trained for
        mean, deviation = by_epoch.mean()[complete], by_epoch.std().fillna(0)[complete]
        label = f"{mean['test_accuracy'].iloc[-1]:.2f} %  {name}" + (f" ({seeds} seeds)" if seeds > 1 else "")
        found.append(Curve(name, label, mean, deviation, seeds))
    return sorted(found, key=lambda curve: -curve.mean["test_accuracy"].iloc[-1])


def places(curve: Curve, name: str, over: str) -> np.ndarray:
    """Where a column stands over "epochs" or "seconds": a mean training loss in an epoch's middle, else its end."""
    ends = curve.mean.index.to_numpy(float) if over == "epochs" else curve.mean["took"].to_numpy()
    return ends - np.diff(ends, prepend=0) / 2 if name == "train_loss" else ends


def stand_in(runs: pd.DataFrame) -> str:
    """How the title begins if the runs, all on one data set, were not on CIFAR-10."""
    name = runs["dataset"].iloc[0]
    return "" if name == "cifar10" else f"{name.upper()} data, not CIFAR-10; "


def draw_comparison(figure: object, runs: pd.DataFrame, over: str = "epochs") -> None:
    """Loss and accuracy over "epochs" or "seconds": test full, training pale, seeds as a mean with a band."""
    from matplotlib.lines import Line2D

    curves = curves_of(runs)
    figure.set(size_inches=(WIDTH, 4.6 + 0.2 * len(curves[: len(COLOURS) + 2])), dpi=DPI)
    loss, accuracy = figure.subplots(1, 2)
    colours = [*COLOURS, *[GREY] * len(curves)][: len(curves)]
    for curve, colour in reversed([*zip(curves, colours, strict=True)]):  # the best on top
        for name in LINES if colour != GREY else ("test_loss", "test_accuracy"):
            kind, what = name.split("_")
            style = {"linestyle": "--", "linewidth": 1.2, "alpha": 0.55} if kind == "train" else {"linewidth": 1.8}
            style |= {"linewidth": 0.8} if colour == GREY else {}
            axes, x, y = loss if what == "loss" else accuracy, places(curve, name, over), curve.mean[name]
            axes.plot(x, y, color=colour, marker="o" if len(x) == 1 else "", label=f"{curve.name}, {kind}", **style)
            if curve.seeds > 1 and colour != GREY:
                low, high = y - curve.deviation[name], y + curve.deviation[name]
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    note = "\n(training loss with label smoothing where there is any)" if "label_smoothing" in settings_of(runs) else ""
    x = {"epochs": "epoch", "seconds": "seconds of training (of a row, on one machine)"}[over]
    loss.set(xlabel=x + note, ylabel="loss (cross-entropy)", ylim=(0, 1.05 * loss.get_ylim()[1]))
    accuracy.set(xlabel=x, ylabel="accuracy (%)")
    ends = [places(curve, "test_loss", over)[-1] for curve in curves]
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


def comparison_page(runs: pd.DataFrame) -> bytes:
    """The same over epochs or seconds, linear or logarithmic, in a file that needs no network; values by pointing."""
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    curves, titles = curves_of(runs), ["loss (cross-entropy)", "accuracy (%)"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.06)
    for curve, colour in zip(curves, itertools.cycle([*COLOURS, *qualitative.Dark24]), strict=False):
        run, label = (html.escape(text, quote=False) for text in (curve.name, curve.label))  # plotly reads tags in them
        for name in LINES:
            kind, what = name.split("_")
            digits = 4 if what == "loss" else 2
            around = f" ± %{{customdata:.{digits}f}}" if curve.seeds > 1 else ""
            hover = f"{run}<br>{kind} {what} at %{{x:.6g}}: %{{y:.{digits}f}}{around}<extra></extra>"
            values = {"x": places(curve, name, "epochs"), "y": curve.mean[name], "customdata": curve.deviation[name]}
            style = {"name": label, "legendgroup": label, "showlegend": name == "test_loss", "hovertemplate": hover}
            style |= {"mode": "lines+markers" if len(curve.mean) == 1 else "lines"}
            style |= {"line": {"color": colour, "dash": "solid" if kind == "test" else "dash", "width": 2}}
            figure.add_scatter(**values, **style, row=1, col=1 if what == "loss" else 2)
    buttons = []
    for over, name in (("epochs", "epoch"), ("seconds", "seconds of training")):
        x = [places(curve, line, over) for curve in curves for line in LINES]
        for kind in ("linear", "log"):
            layout = {"xaxis.title.text": name, "xaxis2.title.text": name, "xaxis.type": kind, "xaxis2.type": kind}
            buttons.append({"label": f"{name}, {kind}", "method": "update", "args": [{"x": x}, layout]})
    place = {"x": 0, "xanchor": "left", "y": 1.08, "yanchor": "bottom"}
    menus = [{"type": "buttons", "direction": "right", "buttons": buttons, **place}]
    text = "full: test, dashed: training. A click on a run below hides it, a double click singles it out."
    title = {"text": stand_in(runs) + text, "font": {"size": 14}, "y": 0.99, "yanchor": "top", "yref": "container"}
    height, margin = 560 + 24 * len(curves), {"t": 130, "b": 80 + 24 * len(curves), "l": 60, "r": 30}  # pixels
    figure.update_layout(template="plotly_white", title=title, updatemenus=menus, height=height, margin=margin)
    legend = {"title": {"text": "test accuracy at the end"}, "yanchor": "top", "x": 0, "y": -60 / 350}
    figure.update_layout(legend=legend).update_xaxes(title_text="epoch")
    return figure.to_html(include_plotlyjs=True, config={"displaylogo": False}).encode()
