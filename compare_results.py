"""Lay saved runs beside each other: a table, a picture, and a page to look into.

    python compare_results.py                        # your own runs, beside the reference's and the original's figures
    python compare_results.py RUN_OR_FOLDER …        # these runs, or all runs in these folders

Runs that differ by their seed alone are one row: mean ± standard deviation. Writes comparison.png and comparison.html
to the current folder or --output. Without arguments and with no runs of your own it shows the reference results.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from cifar10lab.comparison.conclusions import CONCLUSIONS, judge_all
from cifar10lab.comparison.curves import COLOURS, draw_comparison
from cifar10lab.comparison.page import comparison_page
from cifar10lab.comparison.reference_page import draw_results, page
from cifar10lab.comparison.runs import Runs, find_runs, read_runs
from cifar10lab.comparison.table import common_settings, table_rows, text_table
from cifar10lab.files.writing import expanded, write_file
from cifar10lab.results.reference import MODELSET, REFERENCE
from cifar10lab.terminal.arguments import ArgumentParser, HelpFormatter, number_within
from cifar10lab.terminal.errors import UserError
from cifar10lab.terminal.output import make_output_last


def print_table(runs: Runs, with_reference: bool, epochs_to: float | None) -> None:
    """What all runs have in common, then a row for each."""
    first = runs.table.iloc[0]
    synthetic = "" if first["dataset"] == "cifar10" else " (says nothing about CIFAR-10)"
    data = f"{first['dataset']}{synthetic}, {first['train_images']:,} training and {first['test_images']:,} test images"
    same, differ = common_settings(runs)
    print(f"\n{data}{'; all runs: ' * bool(same)}{', '.join(same)}\n")
    note = "best: per cent; gap: training less test accuracy, in points; ±: standard deviation over the seeds"
    print(text_table(table_rows(runs, with_reference, epochs_to), differ), note, sep="\n\n", end="\n\n")


def write(path: Path, content: bytes) -> None:
    """Write a file, and say so."""
    write_file(path, content)
    print(f"wrote {path}")


def write_curves(runs: Runs, over: str, to: Path, suffix: str) -> None:
    """Write the picture and the page of the runs on one data set."""
    if not runs.table["epochs_trained"].any():
        return
    if runs.table["key"].nunique() > len(COLOURS):
        print(f"comparison{suffix}.png: the {len(COLOURS)} runs of the highest test accuracy are coloured, others grey")
    write(to / f"comparison{suffix}.png", draw_comparison(runs, over))
    try:
        write(to / f"comparison{suffix}.html", comparison_page(runs))
    except ModuleNotFoundError as error:
        print(f"no comparison{suffix}.html without {error.name}: pip install {error.name}")


def conclude(runs: Runs) -> None:
    """Print the verdicts on the four conclusions, and write the reference's page and picture."""
    judged = judge_all(runs)
    for number, (conclusion, (verdict, lines)) in enumerate(zip(CONCLUSIONS, judged, strict=True), 1):
        print(f"\n{number}. {conclusion}: {verdict}")
        for line in lines:
            print("   " + "; ".join(filter(None, line)))
    write(REFERENCE / "README.md", page(runs, judged).encode())
    write(REFERENCE / "results.png", draw_results(runs))


def main() -> None:
    """Exit codes: 0; 1 with a line that says what is wrong; 2 for wrong arguments."""
    make_output_last()
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("paths", nargs="*", type=expanded, metavar="RUN_OR_FOLDER", help="what to compare, if not all runs of your own")
    add("--over", choices=("epochs", "seconds"), default="epochs", help="what the picture's curves are over")
    add("--epochs-to", type=number_within(float, 0, math.inf), metavar="ACCURACY", help="per cent to reach")
    add("--csv", type=expanded, metavar="FILE", help="write one row per run, with all settings and results")
    add("--output", type=expanded, default=Path(), metavar="DIR", help="folder of the picture and the page")
    add("--conclusions", action="store_true", help="judge the original's four by the reference, and write its page")
    arguments = parser.parse_args()
    try:
        if arguments.conclusions:
            conclude(read_runs([REFERENCE]))
            return
        own = [run for run in find_runs([MODELSET]) if REFERENCE not in run.parents]
        if not arguments.paths and not own:
            print("no runs of your own in modelset/ yet: these are the reference results")
        runs = read_runs(arguments.paths or own or [REFERENCE])
        if arguments.csv:
            write(arguments.csv, runs.table.drop(columns="key").convert_dtypes().to_csv(index=False).encode())
        data = runs.table[["dataset", "train_images", "test_images"]].apply(tuple, axis=1)
        for number, (one, table) in enumerate(runs.table.groupby(data, sort=False)):
            beside = not table["reference"].any() and one[0] == "cifar10"
            print_table(runs.part(table), beside, arguments.epochs_to)
            suffix = f"-{one[0]}-{one[1]}" if number else ""
            write_curves(runs.part(table), arguments.over, arguments.output, suffix)
    except (OSError, UserError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
