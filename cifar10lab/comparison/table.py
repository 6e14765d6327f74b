"""The printed table: a row for the runs that differ by their seed alone, and what tells the rows apart."""

from __future__ import annotations

import math
import shutil

import pandas as pd
from tabulate import tabulate

from cifar10lab.comparison.runs import Runs, config_of_row, names_of, setting_text, short, values
from cifar10lab.results import reference
from cifar10lab.results.reference import AUGMENTATION, NOT_COMPARED, mean_text


def common_settings(runs: Runs) -> tuple[list[str], list[str]]:
    """The settings that all runs have in common, as texts, and the names of those in which they differ."""
    first, hidden = runs.table.iloc[0], NOT_COMPARED + AUGMENTATION * (not runs.table["augment"].any())
    columns = [name for name in runs.settings if name not in hidden]
    differ = [name for name in columns if runs.table[name].map(str).nunique() > 1]
    same = {name: value for name, value in config_of_row(runs, first[columns]).items() if name not in differ and value}
    texts = [str(value) if name == "model" else setting_text(name, value) for name, value in same.items()]
    return texts, [name for name in differ if name not in ("model", "epochs")]


def table_rows(runs: Runs, with_reference: bool = False, epochs_to: float | None = None) -> pd.DataFrame:
    """The table as texts; with the reference's and the original's figures, and when an accuracy was first reached."""
    names, settings, rows = names_of(runs, runs.table["key"]), common_settings(runs)[1], []
    theirs = reference.reference_runs() if with_reference else []
    for key, group in runs.table.groupby("key", sort=False):
        config = config_of_row(runs, group.iloc[0])
        row = {"run": names[key], **{name: short(config.get(name, "-")) for name in settings}, **result_texts(group)}
        if epochs_to is not None:
            row[f"{epochs_to:g} % in epoch"] = first_reached(runs.part(group).epochs, epochs_to)
        if with_reference:
            data = {"name": group.iloc[0]["dataset"], **group.iloc[0][["train_images", "test_images"]]}
            row["reference %"] = mean_text(reference.reference_accuracies(theirs, config, data))
            row["original %"] = reference.original_accuracy(config)
        rows.append(row)
    table = pd.DataFrame(rows).fillna("")
    table = table.drop(columns="seeds") if table["seeds"].isin(["", "1"]).all() else table
    return table.loc[:, (table != "").any()].rename(columns=lambda name: name.replace("_", " "))


def result_texts(group: pd.DataFrame) -> dict[str, str]:
    """The columns from "epochs" to "seconds" of runs that differ by their seed alone."""
    first, accuracies = group.iloc[0], values(group, "test_accuracy").tolist()
    epochs = str(first["epochs_trained"]) + (f" of {first['epochs']}" if first["unfinished"] else "")
    if not accuracies:
        return {"epochs": epochs, "seeds": ""}
    means = {name: values(group, name).mean() for name in ("train_loss", "test_loss", "best_on_test", "gap")}
    mirrored = group.get("mirrored_test_accuracy", pd.Series([math.nan]))  # earlier runs have none
    return {
        "epochs": epochs,
        "train loss": f"{means['train_loss']:.3f}",
        "test loss": f"{means['test_loss']:.3f}",
        "test accuracy %": mean_text(accuracies),
        "mirrored %": "" if mirrored.isna().any() else mean_text(values(group, "mirrored_test_accuracy").tolist()),
        "seeds": str(len(accuracies)),
        "best (epoch)": f"{means['best_on_test']:.2f} ({values(group, 'best_epoch_on_test').median():.0f})",
        "gap": f"{means['gap']:.2f}",
        "seconds": span(group["seconds"]),
    }


def first_reached(epochs: pd.DataFrame, accuracy: float) -> str:
    """The epoch in which runs first had that test accuracy, of the first to the last run, and the seconds to it."""
    reached = epochs.assign(took=epochs.groupby("run")["seconds"].cumsum())
    reached, runs = reached[reached["test_accuracy"] >= accuracy].groupby("run").first(), epochs["run"].nunique()
    if len(reached) < runs:
        return "never" if reached.empty else f"{len(reached)} of {runs} runs"
    seconds = span(reached["took"])
    return span(reached["epoch"]) + f" ({seconds} s)" * bool(seconds)


def span(numbers: pd.Series) -> str:
    """From the smallest to the largest: times of several machines or days have no mean."""
    if numbers.isna().all():
        return ""
    low, high = f"{numbers.min():.0f}", f"{numbers.max():.0f}"
    return low if low == high else f"{low} to {high}"


def text_table(table: pd.DataFrame, settings: list[str]) -> str:
    """The table within the terminal's width, 100 columns where there is none.

    What doesn't fit is left out, first the columns of the `settings`, which the names say, too; then names are broken.
    A line below names what else is left out.
    """
    width, longest = shutil.get_terminal_size((100, 24)).columns, table["run"].map(len).max()
    heads, more, last = [n.replace("_", " ") for n in settings], ["mirrored %", "seconds"], ["train loss", "test loss"]
    results = table.columns.drop(heads, errors="ignore")
    for left_out, least in (([], longest), (heads, longest), (heads, 20), (more, 20), (last, 0)):
        table = table.drop(columns=left_out, errors="ignore")
        cells = [max(*map(len, head.split()), *table[head].map(len)) for head in table.columns[1:]]
        room = width - sum(cells) - 2 * len(cells)
        if room >= min(least, longest):
            break
    lines, aligned = [list(table.columns), *table.values.tolist()], ["left", *["right"] * len(cells)]
    text = tabulate(lines, tablefmt="plain", disable_numparse=True, maxcolwidths=[max(room, 14), *cells],
                    colalign=aligned, rowalign=["bottom", *["top"] * len(table)], break_long_words=False)  # fmt: skip
    left_out = ", ".join(results.difference(table.columns, sort=False))
    return text + f"\n\nin a wider terminal: {left_out}" * bool(left_out)
