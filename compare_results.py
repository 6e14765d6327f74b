"""Lay saved runs beside each other: a table, curves, and what the runs say about the four conclusions.

    python compare_results.py                              # everything under modelset/
    python compare_results.py modelset/Resnet RUN_OR_FOLDER …
    python compare_results.py --epochs-to 60               # and when each run first reached 60 %

Prints the table, and writes modelset/comparison.png and modelset/README.md. Runs that differ by
their seed alone are one row: mean ± standard deviation. Runs on synthetic data stand apart.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import statistics
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import HERE, HISTORY, config_of, describe, differences, stated_settings
from internals.arguments import ArgumentParser, HelpFormatter, within
from internals.files import UserError, write_file
from internals.output import make_output_last

MODELSET = HERE / "modelset"
# Okabe and Ito's colours, which colour-blind readers can tell apart, then the same with other lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = [(colour, line) for line in ("-", "--", ":") for colour in COLOURS]


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone."""

    experiment: str
    changes: str  # what differs from the experiment's stated settings, without the seed
    runs: list[dict]  # as in loss.json
    folders: list[Path]

    @property
    def config(self) -> dict:
        return self.runs[0]["config"]

    @property
    def label(self) -> str:
        return f"{self.experiment} ({self.changes})" if self.changes else self.experiment

    def results(self, name: str) -> list[float]:
        """One of loss.json's results, or "gap" or "epoch_seconds", of each run."""
        if name == "gap":  # training minus test accuracy after the last epoch, in points
            return [run["history"]["train_accuracy"][-1] - run["history"]["test_accuracy"][-1] for run in self.runs]
        if name == "epoch_seconds":
            return [statistics.mean(run["history"]["seconds"]) for run in self.runs]
        return [run["result"][name] for run in self.runs]

    def mean(self, name: str) -> float:
        return statistics.mean(self.results(name))

    def spread(self, name: str) -> float:
        """The standard deviation over the seeds; 0 for a single run."""
        return statistics.stdev(self.results(name)) if len(self.runs) > 1 else 0.0

    def show(self, name: str, digits: int = 2) -> str:
        deviation = f" ± {self.spread(name):.{digits}f}" if len(self.runs) > 1 else ""
        return f"{self.mean(name):.{digits}f}{deviation}"


# --- Reading ----------------------------------------------------------------------------------


def read_run(path: Path) -> dict:
    """A run's loss.json; UserError if it is cut short, not JSON, or of another shape."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        lengths = {len(run["history"][name]) for name in HISTORY} | {len(run["history"]["epoch"])}
        numbers = [run["result"][name] for name in ("final_test_accuracy", "best_test_accuracy", "best_epoch")]
        numbers += [run["result"][name] for name in ("parameters", "train_seconds", "images_per_second")]
        numbers += itertools.chain(*(run["history"][name] for name in HISTORY))
        texts = [run["experiment"], run["dataset"]["name"], run["config"]["model"], run["environment"]["device"]]
        texts.append(run["environment"]["parallel"])
        whole = len(lengths) == 1 and min(lengths) > 0 and run["environment"]["world_size"] >= 1
        if not whole or not all(isinstance(text, str) for text in texts) or not all(map(math.isfinite, numbers)):
            raise ValueError("its lists are empty or of different lengths, or it has other things than numbers in them")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is no loss.json of these scripts ({type(error).__name__}: {error})") from error
    return run


def find_runs(paths: list[Path]) -> list[Path]:
    """Every loss.json in or below the folders. UserError for a path that isn't there."""
    found: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
        found.update([path] if path.is_file() else path.rglob("loss.json"))
    return sorted(found)


def stated_config(experiment: str) -> dict | None:
    """The settings that the experiment's script states, or None if it isn't one of the scripts here."""
    settings = stated_settings(experiment)
    return settings and config_of(settings)


def group_runs(runs: dict[Path, dict]) -> list[Group]:
    """Runs with the same settings on the same data, device and number of processes, as one group each."""
    groups: dict[str, Group] = {}
    for path, run in runs.items():
        environment = {name: run["environment"][name] for name in ("device", "parallel", "world_size")}
        settings = {name: value for name, value in run["config"].items() if name != "seed"}
        key = json.dumps([run["experiment"], settings, run["dataset"], environment], sort_keys=True)
        if key not in groups:
            stated = stated_config(run["experiment"])
            changes = describe(differences(settings, stated) if stated else settings)
            groups[key] = Group(run["experiment"], changes, [], [])
        groups[key].runs.append(run)
        groups[key].folders.append(path.parent)
    return list(groups.values())


# --- Table and curves -------------------------------------------------------------------------

COLUMNS = ("experiment", "changed", "seeds", "parameters", "epochs", "final %", "best %", "gap", "s/epoch", "images/s")


def table_rows(groups: list[Group]) -> list[list[str]]:
    """A row of texts per group, under COLUMNS and "device"."""
    rows = []
    for group in groups:
        run, digits = group.runs[0], {"epoch_seconds": 1, "images_per_second": 0}
        row = [group.experiment, group.changes or "-", str(len(group.runs)), f"{run['result']['parameters']:,}"]
        row.append(str(len(run["history"]["epoch"])))
        for name in ("final_test_accuracy", "best_test_accuracy", "gap", "epoch_seconds", "images_per_second"):
            row.append(group.show(name, digits.get(name, 2)))
        environment = run["environment"]
        several = f", {environment['parallel']} x{environment['world_size']}"
        rows.append([*row, environment["device"] + several * (environment["parallel"] != "none")])
    return rows


def text_table(rows: list[list[str]]) -> str:
    """The rows under their heads, each column as wide as its widest text."""
    lines = [[*COLUMNS, "device"], *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = range(2, 10)
    aligned = (
        "  ".join(
            f"{cell:>{width}}" if i in numbers else f"{cell:{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return "\n".join(line.rstrip() for line in aligned)


def markdown_table(rows: list[list[str]]) -> str:
    """The same as Markdown."""
    head = [[*COLUMNS, "device"], ["---"] * 2 + ["---:"] * 8 + ["---"]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [*head, *rows])


def draw_comparison(groups: list[Group], title: str) -> bytes:
    """Losses, accuracy and gap over epochs, accuracy over time; a band is the seeds' standard deviation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(15, 9.5), layout="constrained")
    axes = figure.subplots(2, 3).flat
    panels = (
        ("training loss", "cross-entropy", lambda h: h["train_loss"]),
        ("test loss", "cross-entropy", lambda h: h["test_loss"]),
        ("test accuracy", "%", lambda h: h["test_accuracy"]),
        ("overfitting gap: training minus test accuracy", "points", lambda h: h["train_accuracy"] - h["test_accuracy"]),
        ("test accuracy over training time", "%", lambda h: h["test_accuracy"]),
    )
    for panel, (name, unit, value) in zip(axes, panels, strict=False):
        over_time = "time" in name
        panel.set(title=name, ylabel=unit, xlabel="training time (s)" if over_time else "epoch")
        panel.set_xscale("log")
        panel.grid(alpha=0.3)
        for (colour, line), group in zip(itertools.cycle(STYLES), groups, strict=False):
            histories = [{key: np.array(column) for key, column in run["history"].items()} for run in group.runs]
            epochs = min(len(history["epoch"]) for history in histories)
            values = np.stack([value(history)[:epochs] for history in histories])
            seconds = np.mean([history["seconds"][:epochs].cumsum() for history in histories], axis=0)
            where = seconds if over_time else histories[0]["epoch"][:epochs]
            mean, deviation = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0
            panel.plot(where, mean, line, color=colour, label=group.label, marker="o" if epochs == 1 else "")
            panel.fill_between(where, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 3) if over_time else (1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
    handles, labels = axes[0].get_legend_handles_labels()
    labels = [textwrap.fill(label.replace(",", ", "), 56) for label in labels]
    axes[5].axis("off")
    axes[5].legend(handles, labels, loc="center", fontsize=9 if len(labels) <= 16 else 7, frameon=False)
    figure.suptitle(title)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90)
    return content.getvalue()


# --- Conclusions ------------------------------------------------------------------------------

HOLDS, CONTRADICTED, PARTLY, OPEN = "holds", "is contradicted", "holds in part", "can't be judged"


def first_reached(run: dict, accuracy: float) -> tuple[int, float] | None:
    """The epoch, and the seconds of training, at which a run's test accuracy first was that high."""
    seconds = 0.0
    for epoch, reached, took in zip(*(run["history"][n] for n in ("epoch", "test_accuracy", "seconds")), strict=True):
        seconds += took
        if reached >= accuracy:
            return epoch, seconds
    return None


def of_model(groups: list[Group], model: str) -> list[Group]:
    """The model's groups, best mean of best test accuracies first."""
    chosen = [group for group in groups if group.config["model"] == model]
    return sorted(chosen, key=lambda group: -group.mean("best_test_accuracy"))


def judge_model_choice(groups: list[Group]) -> tuple[str, str]:
    """Best ResNet-18 minus best LeNet, against the spread between plain LeNet's settings."""
    resnets, lenets = of_model(groups, "ResNet18"), of_model(groups, "LeNet")
    plain = [g for g in lenets if not any(g.config.get(n) for n in ("weight_decay", "dropout", "augment"))]
    if not resnets or len(plain) < 2:
        missing = "a ResNet-18 run (resnet_model.py)" if not resnets else "a second setting of plain LeNet (--lr, say)"
        return OPEN, f"missing: {missing}."
    best, last = plain[0].mean("best_test_accuracy"), plain[-1].mean("best_test_accuracy")
    choice, tuning = resnets[0].mean("best_test_accuracy") - lenets[0].mean("best_test_accuracy"), best - last
    evidence = (
        f"the best ResNet-18 reached {resnets[0].show('best_test_accuracy')} %, the best LeNet "
        f"{lenets[0].show('best_test_accuracy')} % ({lenets[0].label}): {choice:.2f} points. "
        f"The {len(plain)} settings of plain LeNet lie {tuning:.2f} points apart."
    )
    return HOLDS if choice > tuning else CONTRADICTED, evidence


def judge_efficiency(groups: list[Group]) -> tuple[str, str]:
    """Accuracy, and the training time to the best LeNet's accuracy, on the same device."""
    resnets, lenets = of_model(groups, "ResNet18"), of_model(groups, "LeNet")
    pairs = [(r, n) for r in resnets for n in lenets if where_trained(r) == where_trained(n)]
    if not pairs:
        missing = "ResNet-18 and LeNet on the same device" if resnets and lenets else "ResNet-18" if lenets else "LeNet"
        return OPEN, f"missing: {missing}."
    resnet, lenet = pairs[0]
    accuracies = resnet.mean("best_test_accuracy"), lenet.mean("best_test_accuracy")
    target = min(lenet.results("best_test_accuracy"))
    evidence = f"ResNet-18 {accuracies[0]:.2f} %, LeNet {accuracies[1]:.2f} % at best. "
    slow = min(first_reached(run, target)[1] for run in lenet.runs)
    reached = [when for run in resnet.runs if (when := first_reached(run, target))]
    if not reached:
        return CONTRADICTED, f"{evidence}ResNet-18 never reached LeNet's {target:.2f} %."
    fast = min(seconds for _, seconds in reached)
    evidence += f"ResNet-18 needed {fast:.0f} s of training to LeNet's {target:.2f} %, LeNet {slow:.0f} s."
    verdicts = accuracies[0] > accuracies[1], fast < slow
    return (HOLDS if all(verdicts) else PARTLY if any(verdicts) else CONTRADICTED), evidence


def where_trained(group: Group) -> tuple[str, int]:
    environment = group.runs[0]["environment"]
    return environment["device"], environment["world_size"]


def judge_regularisation(groups: list[Group]) -> tuple[str, str]:
    """The gap with and without, all else the same; "smaller" is by more than the seeds' deviations.

    Without seeds to tell, that is a point, by which LeNet's accuracy moves from one to the next.
    """
    helped, evidence, missing = [], [], []
    for name, what in (("weight_decay", "L2"), ("dropout", "dropout")):
        pairs = [
            (plain, other)
            for plain, other in itertools.permutations(of_model(groups, "LeNet"), 2)
            if other.config.get(name) and set(differences(without_seed(plain), without_seed(other))) == {name}
            and not plain.config.get(name)
        ]
        if not pairs:
            missing.append(f"LeNet with {what} and without, all else the same ({what.lower()}_regularization.py)")
        for plain, other in sorted(pairs, key=lambda pair: pair[0].config["epochs"]):
            smaller = plain.mean("gap") - other.mean("gap")
            helped.append(smaller > (math.hypot(plain.spread("gap"), other.spread("gap")) or 1))
            cost = plain.mean("final_test_accuracy") - other.mean("final_test_accuracy")
            evidence.append(
                f"{what} ({len(plain.runs)}+{len(other.runs)} runs, {plain.config['epochs']} epochs): gap "
                f"{plain.show('gap')} -> {other.show('gap')} points, final test accuracy "
                f"{plain.show('final_test_accuracy')} -> {other.show('final_test_accuracy')} % "
                f"({'costs' if cost > 0 else 'gains'} {abs(cost):.2f})."
            )
    if missing:
        return OPEN, " ".join([f"missing: {'; '.join(missing)}.", *evidence])
    return (HOLDS if all(helped) else PARTLY if any(helped) else CONTRADICTED), " ".join(evidence)


def without_seed(group: Group) -> dict:
    return {name: value for name, value in group.config.items() if name != "seed"}


def judge_parallel(groups: list[Group]) -> tuple[str, str]:
    """images/s on one device and on several of its kind, with the same model and batch size."""
    faster, evidence = [], []
    for one, several in itertools.permutations(groups, 2):
        (device, alone), (other_device, count) = where_trained(one), where_trained(several)
        same = all(one.config.get(n) == several.config.get(n) for n in ("model", "width", "batch_size", "precision"))
        if same and device == other_device and alone == 1 < count:
            ratio = several.mean("images_per_second") / one.mean("images_per_second")
            faster.append(ratio > 1.2)
            parallel = several.runs[0]["environment"]["parallel"]
            evidence.append(
                f"{several.label}: {several.show('images_per_second', 0)} images/s on {count} x {device} ({parallel}), "
                f"{one.show('images_per_second', 0)} on one: {ratio:.2f} times as fast."
            )
    if not faster:
        return OPEN, "missing: the same run on one device and on several."
    return (HOLDS if all(faster) else PARTLY if any(faster) else CONTRADICTED), " ".join(evidence)


CONCLUSIONS = (
    ("The choice of model matters more than tuning parameters", judge_model_choice),
    ("ResNet beats LeNet in accuracy and in training efficiency", judge_efficiency),
    ("Regularisation helps against overfitting, and may cost a little accuracy", judge_regularisation),
    ("Training in parallel on several GPUs speeds training up considerably", judge_parallel),
)


# --- The command ------------------------------------------------------------------------------


def compare(groups: list[Group], data: str, accuracy: float | None) -> str:
    """Print one data set's table, conclusions and times, draw its curves; its part of README.md."""
    cifar10 = data == "cifar10"
    picture = MODELSET / ("comparison.png" if cifar10 else "comparison-synthetic.png")
    heading = "CIFAR-10" if cifar10 else "SYNTHETIC stand-in (says nothing about CIFAR-10)"
    print(f"\n{heading}\n\n{text_table(table_rows(groups))}\n")
    parts = [f"## {heading}", markdown_table(table_rows(groups)), f"![Curves of all runs]({picture.name})"]
    if cifar10:
        parts.append("## Conclusions")
        for number, (conclusion, judge) in enumerate(CONCLUSIONS, 1):
            verdict, evidence = judge(groups)
            print(f"{number}. {conclusion}: {verdict}. {evidence}")
            parts.append(f"{number}. {conclusion}: **{verdict}**. {evidence[0].upper()}{evidence[1:]}")
    if accuracy is not None:
        print(f"\nfirst reached {accuracy:g} %:")
        for label, run in [(group.label, run) for group in groups for run in group.runs]:
            when = first_reached(run, accuracy)
            reached = f"epoch {when[0]}, {when[1]:.1f} s of training" if when else "never"
            print(f"  {label}, seed {run['config'].get('seed')}: {reached}")
    write_file(picture, draw_comparison(groups, heading))
    print(f"\nwrote {picture}")
    for group in groups:
        for folder, run in zip(group.folders, group.runs, strict=True):
            if (folder / "loss.png").is_file():
                where = os.path.relpath(folder / "loss.png", MODELSET).replace(os.sep, "/")
                title = f"### {group.label}, seed {run['config'].get('seed')}"
                parts.append(f"{title}\n\n![Loss and accuracy](<{where}>)")
    return "\n\n".join(parts)


def main() -> None:
    make_output_last()
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    everything = [MODELSET]
    add = parser.add_argument
    add("paths", nargs="*", type=Path, metavar="RUN_OR_FOLDER", default=everything, help="what to compare")
    add("--epochs-to", type=within(float, 0, math.inf), metavar="ACCURACY", help="per cent to reach")
    arguments = parser.parse_args()
    try:
        runs: dict[Path, dict] = {}
        for path in find_runs(arguments.paths):
            try:
                runs[path] = read_run(path)
            except UserError as error:
                print(f"warning: skipped: {error}", file=sys.stderr)
        if not runs:
            raise UserError(f"no loss.json to compare in {', '.join(map(str, arguments.paths))}")
        MODELSET.mkdir(exist_ok=True)
        note = "Written by `python compare_results.py`: don't edit. `gap` is training minus test accuracy, in points."
        parts = ["# Results", note]
        for data in sorted({run["dataset"]["name"] for run in runs.values()}):
            chosen = {path: run for path, run in runs.items() if run["dataset"]["name"] == data}
            parts.append(compare(group_runs(chosen), data, arguments.epochs_to))
        write_file(MODELSET / "README.md", ("\n\n".join(parts) + "\n").encode())
        print(f"wrote {MODELSET / 'README.md'}")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
