"""Lay saved runs beside each other: a table, pictures, and what the runs say about the four conclusions.

    python compare_results.py                              # everything under modelset/
    python compare_results.py modelset/Resnet RUN_OR_FOLDER …
    python compare_results.py --epochs-to 60               # and when each run first reached 60 %

Prints the table. The comparison of everything writes modelset/README.md, comparison.png and curves.png there;
a part of it writes its two pictures to the current folder, or to --output. Runs that differ by their seed alone
are one row: mean ± standard deviation. Runs in progress are listed; runs on synthetic data stand apart.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from common import HERE
from files.writing import write_file
from internals.conclusions import CONCLUSIONS, RULES, Judgement, judge_all
from internals.original import original_run, percent
from internals.pictures import draw_comparison, draw_curves
from internals.runs import (
    Group,
    Unfinished,
    device_text,
    find_files,
    find_unfinished,
    first_reached,
    group_runs,
    read_run,
    read_unfinished,
)
from internals.speedups import read_scaling
from settings.differences import describe
from terminal.arguments import ArgumentParser, HelpFormatter
from terminal.arguments import number_within as within
from terminal.errors import UserError
from terminal.output import make_output_last

MODELSET = HERE / "modelset" / "reference"

# --- Table ------------------------------------------------------------------------------------

TEXTS = ("experiment", "changed", "device")  # aligned to the left


def table_row(group: Group) -> dict[str, str]:
    """A text for each column's head."""
    original = original_run(group.config) or {}
    theirs = {name: original.get(name) for name in ("last", "best", "total_seconds")}
    epoch = f" ({original['best_epoch']})" if original.get("best_epoch") else ""
    best = group.show("best_on_test")
    if len(group.runs) == 1:
        accuracies = group.runs[0]["history"]["test_accuracy"]
        best += f" ({accuracies.index(max(accuracies)) + 1})"
    timed = group.timed
    part = f" ({len(timed.runs)} of {len(group.runs)} runs)" if len(timed.runs) < len(group.runs) else ""
    return {
        "experiment": group.experiment,
        "changed": describe(group.changes) or "-",
        "seeds": str(group.seeds),
        "parameters": f"{group.runs[0]['result']['parameters']:,}",
        "epochs": str(len(group.runs[0]["history"]["epoch"])),
        "last epoch %": group.show("final_test_accuracy"),
        "original's %": "" if theirs["last"] is None else percent(theirs["last"]),
        "best epoch on the test set %": best,
        "original's best %": "" if theirs["best"] is None else percent(theirs["best"]) + epoch,
        "epoch chosen on validation images %": group.show("chosen_on_validation"),
        "last, with mirrored images %": group.show("mirrored_test_accuracy"),
        "gap": group.show("gap"),
        "s/epoch": timed.show("epoch_seconds", 1) + part,
        "images/s": timed.show("images_per_second", 0),
        "whole run s": timed.show("total_seconds", 0),
        "original's s": "" if theirs["total_seconds"] is None else str(theirs["total_seconds"]),
        "device": group.devices,
    }


def unfinished_row(run: Unfinished) -> dict[str, str]:
    """The same of a run in progress: its last epoch so far."""
    history = run.history
    row = {
        "experiment": run.experiment,
        "changed": describe(run.changes) or "-",
        "seeds": "1",
        "epochs": str(len(history["epoch"])),
    }
    if history["epoch"]:
        row["last epoch %"] = f"{history['test_accuracy'][-1]:.2f}"
        row["best epoch on the test set %"] = f"{max(history['test_accuracy']):.2f}"
        row["gap"] = f"{history['train_accuracy'][-1] - history['test_accuracy'][-1]:.2f}"
        row["s/epoch"] = f"{sum(history['seconds']) / len(history['seconds']):.1f}"
    return row | {"device": f"{run.progress} ({run.folder})"}


def table(rows: list[dict[str, str]]) -> list[list[str]]:
    """The heads and each row's texts; a column that no row fills is left out."""
    heads = [head for head in dict.fromkeys(head for row in rows for head in row) if any(row.get(head) for row in rows)]
    return [heads, *([row.get(head, "") for head in heads] for row in rows)]


def text_table(lines: list[list[str]]) -> str:
    """The lines under their heads, each column as wide as its widest text."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<" if head in TEXTS else ">" for head in lines[0]]
    formats = [f"{side}{width}" for side, width in zip(sides, widths, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{form}}" for cell, form in zip(line, formats, strict=True)).rstrip() for line in lines
    )


def markdown_table(lines: list[list[str]]) -> str:
    """The same as Markdown."""
    rule = ["---" if head in TEXTS else "---:" for head in lines[0]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


# --- The page ---------------------------------------------------------------------------------

NOTE = """Written by `python compare_results.py`: don't edit.

A row is the runs that differ by their seed alone: mean ± standard deviation; a seed that was trained several times
counts once, with its mean. The best epoch on the test set is a choice made with the test labels, so that its accuracy
is no test any more; in brackets, for a single run, the epoch. `gap` is training minus test accuracy after the last
epoch, in points. `s/epoch` and `images/s` are training alone. Times are those of the runs on one machine with the most
threads, as many as the brackets say; from one day to another they have differed by more than half. The original's
figures are those in [original.json](original.json), single runs: LeNet on 4 A100 (the baseline on a CPU), ResNet-18 on
one A100; its seconds are whole runs, evaluations included."""


def page(groups: list[Group], judgements: list[Judgement]) -> str:
    """modelset/README.md, of finished runs on CIFAR-10.

    It is committed, and so holds nothing that only the machine has where it was written: no runs in
    progress, whose checkpoints git ignores, no runs on the stand-in, and no dates.
    """
    parts = ["# Results", NOTE, markdown_table(table([table_row(group) for group in groups]))]
    parts += ["![What the runs say about the four conclusions](comparison.png)", "## Conclusions", RULES]
    for number, ((conclusion, _), judgement) in enumerate(zip(CONCLUSIONS, judgements, strict=True), 1):
        verdict = f"{number}. {conclusion}: **{judgement.verdict}**{judgement.caveat}."
        parts.append("\n   - ".join([verdict, *judgement.details]))
    parts += ["## All curves", "![Losses and accuracies of all runs over the epochs](curves.png)", "## Every run"]
    for experiment in dict.fromkeys(group.experiment for group in groups):
        parts.append(f"### {experiment}")
        parts += [folded_pictures(group) for group in groups if group.experiment == experiment]
    return "\n\n".join(filter(None, parts)) + "\n"


def folded_pictures(group: Group) -> str:
    """The loss.png of each of the group's runs that has one, behind a line to click on."""
    parts = []
    for folder, run in zip(group.folders, group.runs, strict=True):
        if (folder / "loss.png").is_file():
            where = os.path.relpath(folder / "loss.png", MODELSET).replace(os.sep, "/")
            title = f"{group.label}, seed {run['config'].get('seed')} ({device_text(run)})"
            picture = f"![Loss and accuracy](<{where}>)"
            parts.append(f"<details><summary>{title}</summary>\n\n{picture}\n\n</details>")
    return "\n\n".join(parts)


# --- The command ------------------------------------------------------------------------------


def read_all(paths: list[Path]) -> tuple[dict[Path, dict], list[Unfinished]]:
    """Finished runs by the paths of their loss.json, and unfinished ones; a damaged file is a warning."""
    finished, unfinished = {}, []
    for path in [*find_files(paths, "loss.json"), *find_unfinished(paths)]:
        try:
            if path.suffix == ".json":
                finished[path] = read_run(path)
            else:
                unfinished.append(read_unfinished(path))
        except UserError as error:
            if path.exists():  # otherwise the run has ended this moment
                print(f"warning: skipped: {error}", file=sys.stderr)
    if not finished and not unfinished:
        raise UserError(f"no loss.json to compare in {', '.join(map(str, paths))}")
    return finished, unfinished


def print_first_reached(groups: list[Group], accuracy: float) -> None:
    """When each run first reached that test accuracy, in per cent."""
    print(f"\nfirst reached {accuracy:g} % on the test set:")
    for label, run in [(group.label, run) for group in groups for run in group.runs]:
        when = first_reached(run, accuracy)
        reached = f"epoch {when[0]}, {when[1]:.1f} s of training" if when else "never"
        print(f"  {label}, seed {run['config'].get('seed')}: {reached}")


def compare(groups: list[Group], unfinished: list[Unfinished], cifar10: bool) -> list[Judgement]:
    """Print one data set's table and, for CIFAR-10, the four verdicts, which are the answer."""
    print("\nCIFAR-10\n" if cifar10 else "\nSYNTHETIC stand-in (says nothing about CIFAR-10)\n")
    print(text_table(table([*map(table_row, groups), *map(unfinished_row, unfinished)])))
    if not cifar10 or not groups:
        return []
    print(f"\n{RULES}\n")
    judgements = judge_all(groups, read_scaling())
    for number, ((conclusion, _), judgement) in enumerate(zip(CONCLUSIONS, judgements, strict=True), 1):
        print("\n   - ".join([f"{number}. {conclusion}: {judgement.verdict}{judgement.caveat}.", *judgement.details]))
    return judgements


def write(path: Path, content: bytes) -> None:
    write_file(path, content)
    print(f"wrote {path}")


def draw(name: str, groups: list[Group], unfinished: list[Unfinished], judgements: list[Judgement], to: Path) -> None:
    """Write one data set's pictures into a folder: runs in progress have one of their own, which git ignores."""
    suffix = "" if name == "cifar10" else f"-{name}"
    if judgements:
        write(to / f"comparison{suffix}.png", draw_comparison(groups, judgements, read_scaling()))
    if groups:
        write(to / f"curves{suffix}.png", draw_curves(groups, []))
    if unfinished:
        write(to / f"unfinished-{name}.png", draw_curves(groups, unfinished))


def output_folder(paths: list[Path], output: Path | None) -> Path:
    """Where the pictures go: to modelset/ if they show everything in it, otherwise never there; UserError then."""
    modelset = MODELSET.resolve()
    everything = [path.resolve() for path in paths] in ([], [modelset])
    folder = output or (MODELSET if everything else Path())
    if folder.resolve() == modelset and not everything:
        raise UserError(f"the pictures in {MODELSET} show all runs: give --output for those of a part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}") from error
    return folder


def main() -> None:
    make_output_last()
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("paths", nargs="*", type=Path, metavar="RUN_OR_FOLDER", help="what to compare, if not everything in modelset/")
    add("--epochs-to", type=within(float, 0, math.inf), metavar="ACCURACY", help="per cent to reach")
    output_help = "folder of the pictures, otherwise modelset/ or, of a part, the current one"
    add("--output", type=Path, metavar="DIR", help=output_help)
    arguments = parser.parse_args()
    try:
        finished, unfinished = read_all(arguments.paths or [MODELSET])
        folder = output_folder(arguments.paths, arguments.output)
        for outdated in folder.glob("unfinished-*.png"):
            outdated.unlink()
        names = {run["dataset"]["name"] for run in finished.values()} | {run.dataset for run in unfinished}
        for name in sorted(names):
            chosen = {path: run for path, run in finished.items() if run["dataset"]["name"] == name}
            groups, of_name = group_runs(chosen), [run for run in unfinished if run.dataset == name]
            judgements = compare(groups, of_name, name == "cifar10")
            if arguments.epochs_to is not None:
                print_first_reached(groups, arguments.epochs_to)
            print()
            draw(name, groups, of_name, judgements, folder)
            if judgements and folder.resolve() == MODELSET.resolve():
                write(MODELSET / "README.md", page(groups, judgements).encode())
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
