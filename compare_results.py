"""Lay saved runs beside each other: a table, a picture, and a page to look into.

    python compare_results.py                        # your own runs, beside the reference's and the original's figures
    python compare_results.py RUN_OR_FOLDER …        # these runs, or all runs in these folders
    python compare_results.py BEFORE AFTER           # and the second's difference to the first

Runs that differ by their seed alone are one row: mean ± standard deviation. Writes comparison.png and comparison.html
to the current folder or --output. Without arguments and with no runs of your own it shows the reference results.
"""

import math
import sys
from pathlib import Path

import pandas as pd

from cifar10lab.comparison.curves import comparison_page, draw_comparison
from cifar10lab.comparison.runs import find_runs, read_runs, settings_of, with_names
from cifar10lab.comparison.table import print_table
from cifar10lab.files.pictures import png
from cifar10lab.files.writing import expanded, write_file
from cifar10lab.results.reference import MODELSET, REFERENCE
from cifar10lab.terminal.arguments import ArgumentParser, HelpFormatter, number_within
from cifar10lab.terminal.errors import UserError
from cifar10lab.terminal.output import make_output_last


def baseline_of(runs: pd.DataFrame, against: Path) -> int:
    """The number of the row whose runs are at or below that path; UserError if that isn't one."""
    inside = runs["file"].map(lambda file: Path(file).resolve().is_relative_to(against.resolve()))
    rows = runs["row"][inside].unique()
    if len(rows) != 1:
        raise UserError(f"--against {against} is of {len(rows)} rows of the table: name a run, or a folder of one row")
    return rows[0]


def write(path: Path, content: bytes) -> None:
    """Write a file, and say so."""
    write_file(path, content)
    print(f"wrote {path}")


def main() -> None:
    """Exit codes: 0; 1 with a line that says what is wrong; 2 for wrong arguments."""
    make_output_last()
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("paths", nargs="*", type=expanded, metavar="RUN_OR_FOLDER", help="what to compare, if not all runs of your own")
    add("--against", type=expanded, metavar="RUN_OR_FOLDER", help="add columns of the differences to these runs' row")
    add("--over", choices=("epochs", "seconds"), default="epochs", help="what the picture's curves are over")
    add("--epochs-to", type=number_within(float, 0, math.inf), metavar="ACCURACY", help="per cent to reach")
    add("--csv", type=expanded, metavar="FILE", help="write one row per run, with all settings and results")
    add("--output", type=expanded, default=Path(), metavar="DIR", help="folder of the picture and the page")
    add("--conclusions", action="store_true", help="write the reference's page, which judges the original's four")
    arguments = parser.parse_args()
    try:
        if arguments.conclusions:
            from cifar10lab.comparison.conclusions import draw_results, page

            runs = read_runs([REFERENCE])
            write(REFERENCE / "README.md", page(runs).encode())
            write(REFERENCE / "results.png", png(draw_results, runs))
            return
        paths = arguments.paths
        if not paths and MODELSET.is_dir():
            paths = [run for run in find_runs([MODELSET]) if REFERENCE not in run.resolve().parents]
            if not paths:
                print("no runs of your own in modelset/ yet: these are the reference results")
        runs = read_runs([*(paths or [REFERENCE]), *([arguments.against] if arguments.against else [])])
        baseline = baseline_of(runs, arguments.against) if arguments.against else None
        if arguments.csv:
            results = runs.drop(columns=["record", "key", "group", "row", "name"])
            table = settings_of(runs).merge(results, left_index=True, right_index=True, suffixes=(" (setting)", ""))
            write(arguments.csv, table.convert_dtypes().to_csv(index=False).encode())
        data = runs.groupby(["dataset", "train_images", "test_images"], sort=False)
        for number, ((dataset, images, _), some) in enumerate(data):
            some, name = with_names(some), f"comparison-{dataset}-{images}" if number else "comparison"
            print_table(some, arguments.epochs_to, baseline)
            if some["epochs_trained"].any():
                write(arguments.output / f"{name}.png", png(draw_comparison, some, arguments.over))
                write(arguments.output / f"{name}.html", comparison_page(some))
    except (OSError, UserError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
