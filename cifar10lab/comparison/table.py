"""The printed table: a row for the runs that differ by their seed alone, and what tells the rows apart."""

import shutil
import textwrap

import pandas as pd
from tabulate import tabulate

from cifar10lab.comparison.differences import INTERVAL, difference, difference_line, time_ratio
from cifar10lab.comparison.runs import first_reached, in_use, setting_text, settings_of, short, values
from cifar10lab.results.reference import mean_text, original_accuracy, reference_accuracies, reference_runs

NOTED = ("images", "commit", "changes", "torch", "threads")
FIRST_LEFT_OUT = ("mirrored %", "seconds", "train loss", "test loss")  # where the terminal is narrow


def common_settings(runs: pd.DataFrame) -> tuple[list[str], pd.DataFrame]:
    """The settings that all runs have in common, as texts, and a column of texts for each in which rows differ."""
    settings = in_use(settings_of(runs))
    differ = [name for name in settings if settings[name].map(str).nunique() > 1]
    same = settings.drop(columns=differ).iloc[0]
    texts = [str(value) if name == "model" else setting_text(name, value) for name, value in same.items()]
    columns = settings[differ].drop(columns=["model", "epochs"], errors="ignore")
    rows = columns.rename(columns=lambda name: name.replace("_", " ")).groupby(runs["row"], sort=False).first()
    return texts, rows.map(lambda value: "-" if value is False else short(value)).reset_index(drop=True)


def table_rows(runs: pd.DataFrame, epochs_to: float | None, baseline: int | None) -> pd.DataFrame:
    """The table as texts, without settings, with the differences to row `baseline` if it is among them."""
    rows, reference, reached = [], reference_runs(), first_reached(runs, epochs_to or 0)
    first = runs[runs["row"] == baseline]
    for (number, name), group in runs.groupby(["row", "name"], sort=False):
        record = group.iloc[0]["record"]
        row = {"run": name, **result_texts(group, record["config"]["epochs"])}
        if epochs_to is not None:
            some = reached.reindex(group.index).dropna()
            text = f"{span(some['epoch'])} ({span(some['took'])} s)"
            row[f"{epochs_to:g} % in epoch"] = text if len(some) == len(group) else f"{len(some)} of {len(group)} runs"
        if len(first) and number != baseline:
            for what, column in (("accuracy", "test_accuracy"), ("gap", "gap")):
                found = difference(values(first, column), values(group, column))
                row |= {f"{what} difference": str(found), "of": found.seeds}
            row["time ratio"] = time_ratio(first, group)
        if not group["reference"].any():
            row["reference %"] = mean_text(reference_accuracies(reference, record))
        if record["dataset"]["name"] == "cifar10":
            row["original %"] = original_accuracy(record["config"])
        rows.append(row)
    table = pd.DataFrame(rows).fillna("")
    table = table.drop(columns="seeds") if table["seeds"].isin(["", "1"]).all() else table
    return table.loc[:, (table != "").any()]


def result_texts(group: pd.DataFrame, epochs: int) -> dict[str, str]:
    """The columns from "epochs" to "seconds" of runs that differ by their seed alone."""
    trained = span(group["epochs_trained"]) + (f" of {epochs}" if group.iloc[0]["unfinished"] else "")
    accuracies, mirrored = (values(group, name).tolist() for name in ("test_accuracy", "mirrored_test_accuracy"))
    if not accuracies:
        return {"epochs": trained, "seeds": ""}
    train_loss, test_loss, best, gap = group[["train_loss", "test_loss", "best_test_accuracy", "gap"]].mean()
    return {
        "epochs": trained,
        "train loss": f"{train_loss:.3f}",
        "test loss": f"{test_loss:.3f}",
        "test accuracy %": mean_text(accuracies),
        "mirrored %": mean_text(mirrored) if len(mirrored) == len(accuracies) else "",  # earlier runs have none
        "seeds": str(len(accuracies)),
        "best (epoch)": f"{best:.2f} ({group['best_epoch'].median():.0f})",
        "gap": f"{gap:.2f}",
        "seconds": span(group["train_seconds"]),
    }


def span(numbers: pd.Series) -> str:
    """From the smallest to the largest: times of several machines or days have no mean."""
    low, high = f"{numbers.min():.0f}", f"{numbers.max():.0f}"
    return low if low == high else f"{low} to {high}"


def notes(runs: pd.DataFrame) -> list[str]:
    """A line for each row that says what of NOTED differs within it, or from rows that its folder alone tells apart."""
    lines = []
    for _, group in runs.groupby("group", sort=False):
        differ = [name for name in NOTED if group[name].nunique() > 1]
        for (_, name), row in group.sort_values("seed").groupby(["row", "name"], sort=False):
            texts = []
            for what, column in row[differ].map(lambda value: short(value) if value else "not recorded").items():
                seeds = row["seed"].astype(str).groupby(column, sort=False).agg(", ".join)
                found = [f"{value} (seed {seed})" if len(seeds) > 1 else value for value, seed in seeds.items()]
                texts.append(f"{what} {', '.join(found)}")
            lines += [f"{name}: {'; '.join(texts)}"] if texts else []
    return lines


def text_table(settings: pd.DataFrame, results: pd.DataFrame, width: int) -> str:
    """The table within `width` characters: names are broken, and what doesn't fit is named in a line below.

    The columns of the `settings`, which the names say, too, are left out first, and without a word.
    """
    figures = results.drop(columns="run")
    fewer = [figures.drop(columns=[*FIRST_LEFT_OUT[:number]], errors="ignore") for number in (0, 2, 4)]
    for shown in (pd.concat([settings, figures], axis=1), *fewer):
        cells = [max(*map(len, head.split()), *column.map(len)) for head, column in shown.items()]
        room = width - sum(cells) - 2 * len(cells)
        if room >= min(20, results["run"].map(len).max()):
            break
    table = pd.concat([results["run"], shown], axis=1)
    lines = [list(table.columns), *table.to_numpy().tolist()]
    text = tabulate(lines, tablefmt="plain", disable_numparse=True, maxcolwidths=[max(room, 14), *cells],
                    colalign=["left", *["right"] * len(cells)], rowalign=["bottom", *["top"] * len(shown)])  # fmt: skip
    missing = ", ".join(figures.columns.drop(shown.columns, errors="ignore"))
    return f"{text}\n\nin a wider terminal: {missing}" if missing else text


def print_table(runs: pd.DataFrame, epochs_to: float | None, baseline: int | None) -> None:
    """What all runs have in common, a row for each that more than a seed tells apart, and what they differ by."""
    first, width = runs.iloc[0], shutil.get_terminal_size((100, 24)).columns
    stand_in = "" if first["dataset"] == "cifar10" else " (says nothing about CIFAR-10)"
    head = f"{first['dataset']}{stand_in}, {first['train_images']:,} training and {first['test_images']:,} test images"
    same, settings = common_settings(runs)
    head += f"; all runs: {', '.join(same)}" if same else ""
    table = text_table(settings, table_rows(runs, epochs_to, baseline), width)
    best = " or ".join(runs["best_chosen_on"].unique())
    note = f"best: per cent, chosen on {best} images; gap: training less test accuracy, in points; ±: over the seeds"
    lines, rows = [note, *notes(runs)], dict([*runs.groupby("row")])
    if baseline in rows:
        lines.append(f"differences: to {rows[baseline].iloc[0]['name']}, in points. {INTERVAL}")
    elif len(rows) == 2 and runs["epochs_trained"].all():
        lines.append(difference_line(*rows.values()))
    head, *lines = ("\n".join(textwrap.wrap(line, width, break_on_hyphens=False)) for line in (head, *lines))
    print(f"\n{head}\n\n{table}\n\n" + "\n".join(lines) + "\n")
