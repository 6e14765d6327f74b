"""Saved runs, finished or in progress, as two tidy tables: one row per run, and one row per run and epoch."""

import functools
import json
import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cifar10lab.results import reference
from cifar10lab.results.reference import REFERENCE, recorded, row_key
from cifar10lab.terminal.errors import UserError

FILES = ("loss.json", "checkpoint.pth")
COLUMNS = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")  # of a history
OPTIONAL = ("total_seconds", "images_per_second", "mirrored_test_accuracy")  # results that some files lack
# What tells rows of the same settings apart; the second line only where the first doesn't.
TELL_APART = (
    ("reference", "unfinished", "experiment", "precision", "device", "processes"),
    ("model_code", "folder"),
)


@dataclass(frozen=True)
class Runs:
    """A row of `table` per run, the best first, with the same `row` number where only seeds differ.

    Rows of the same `group` differ by nothing but their folders. `epochs` has a row per run and epoch; its `run` is the
    index of `table` and the place in `records`, which are as in loss.json.
    """

    table: pd.DataFrame
    epochs: pd.DataFrame
    records: list[dict]

    def part(self, table: pd.DataFrame) -> "Runs":
        """The runs in `table`, a part of this one's."""
        return Runs(table, self.epochs[self.epochs["run"].isin(table.index)], self.records)

    def settings(self) -> pd.DataFrame:
        """A column for each setting that is compared and on in some run, NaN where a run has none of that name."""
        configs = [record["config"] | reference.UNRECORDED | record["config"] for record in self.records]
        settings = pd.DataFrame(configs, dtype=object).loc[self.table.index]
        hidden = [*reference.NOT_COMPARED, *([] if settings["augment"].any() else reference.AUGMENTATION)]
        settings = settings.drop(columns=hidden, errors="ignore")
        return settings.loc[:, (settings.notna() & settings.astype(bool)).any()]

    @functools.cached_property
    def names(self) -> pd.Series:
        """A short name for each row: the model, and the settings in which it differs from most others of its model.

        A setting that is 0 or off is named only if most of the others have it on. Where names are the same, what else
        differs follows, as TELL_APART has it.
        """
        settings = in_use(self.settings()).groupby(self.table["row"]).first()
        names = settings["model"].map(str)
        for _, same in settings.drop(columns="model").groupby(names):
            for setting, column in same.items():
                most = column.map(str).mode()
                unusual = column.map(str) != most[0]
                if len(most) > 1 or unusual.sum() * 2 > len(same):
                    unusual = column.map(bool)
                names = named(names, setting, column[unusual])
        files = self.table["file"].map(lambda file: str(without_seed(Path(file).absolute()).parent))
        folders = files.groupby(self.table["row"]).agg(lambda of_row: os.path.commonpath([*of_row]))
        folders = folders.map(functools.partial(os.path.relpath, start=os.path.commonpath([*folders])))
        first = self.table.groupby("row").first().assign(folder=folders)
        for kinds in TELL_APART:
            for _, same in first.groupby(names):
                for kind in [kind for kind in kinds if same[kind].nunique() > 1]:
                    names = named(names, kind, same[kind][same[kind].map(str) != "False"])
        return names


def in_use(settings: pd.DataFrame) -> pd.DataFrame:
    """The settings with False for those that are 0, off or not recorded, which are alike."""
    return settings.map(lambda value: value if value == value and value else False)  # NaN is not itself


def named(names: pd.Series, what: str, values: pd.Series) -> pd.Series:
    """The names of rows, those in `values` with what they have there: "LeNet" -> "LeNet, 50 epochs"."""
    words = values.astype(object).map(lambda value: f", {setting_text(what, value)}")
    return names + words.reindex(names.index, fill_value="")


def read_runs(paths: list[Path]) -> Runs:
    """All runs in these folders and files. Other files are skipped with a warning; UserError if no run is left."""
    records, columns, keys, histories = {}, [], [], []
    for path in find_runs(paths):
        try:
            record, row, history = read_run(path)
        except UserError as error:
            if path.exists():  # otherwise the run has ended this moment
                print(f"warning: skipped: {error}", file=sys.stderr)
            continue
        histories.append(history.assign(run=len(records)))
        columns.append(row)
        keys.append(json.dumps([row["reference"], row_key(record)]))
        records[path] = record
    if not records:
        raise UserError(f"no loss.json to compare in {', '.join(map(str, paths))}")
    table = with_rows(pd.DataFrame(columns), pd.Series(keys))
    best_first = table.groupby("row")["test_accuracy"].transform("mean").sort_values(ascending=False, kind="stable")
    return Runs(table.loc[best_first.index], pd.concat(histories, ignore_index=True), list(records.values()))


def with_rows(table: pd.DataFrame, keys: pd.Series) -> pd.DataFrame:
    """The table with the numbers of each run's `group` and `row`.

    A group is the runs of the same key and model code; one that isn't recorded matches any other. It is one row, unless
    it has two runs of the same seed, which are never averaged: then each folder, `without_seed`, is a row, or each run.
    """
    codes = table["model_code"].where(table["model_code"] != "")
    groups = keys + codes.where(codes.groupby(keys).transform("nunique") > 1).fillna("")
    labels = keys.map(lambda _: "")
    for finer in (table["file"].map(lambda file: str(without_seed(Path(file)))), table["file"]):
        twice = pd.concat([groups, labels, table["seed"]], axis=1).duplicated().groupby(groups).transform("any")
        labels = labels.where(~twice, finer)
    return table.assign(group=groups.factorize()[0], row=(groups + labels).factorize()[0])


def without_seed(path: Path) -> Path:
    """The path without its seed: a/seed=1 -> a, a/epochs=50,seed=1 -> a/epochs=50."""
    parts = (",".join(word for word in part.split(",") if not re.fullmatch(r"seed=\d+", word)) for part in path.parts)
    return Path(*filter(None, parts))


def find_runs(paths: list[Path]) -> list[Path]:
    """The loss.json, or a newer checkpoint.pth, of each run in these folders and theirs, and files as named.

    Links are followed, and each run is found once. UserError for a path that doesn't exist.
    """
    found, visited = {}, set()
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
        if path.is_file():
            found.setdefault(path.resolve(), path)
        for folder, subfolders, _ in os.walk(path, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:  # or a link to a folder above would have no end
                subfolders.clear()
            elif files := [file for name in FILES if (file := Path(folder, name)).is_file()]:
                newest = max(files, key=lambda file: file.stat().st_mtime)  # a run that ends removes its checkpoint
                found.setdefault(newest.resolve(), newest)
            visited.add(real)
            subfolders.sort()
    return list(found.values())


def read_run(path: Path) -> tuple[dict, dict[str, object], pd.DataFrame]:
    """A run's record, its row of the table, and its history; UserError if the file isn't a run's."""
    try:
        if path.suffix == ".json":
            run = json.loads(path.read_text(encoding="utf-8"))
        else:
            from cifar10lab.files.tensors import read_torch  # torch takes a second: only for a run in progress

            run = read_torch(path)
        history = pd.DataFrame(run["history"]).astype(float)
        history = history[[*COLUMNS, *history.columns.difference(COLUMNS)]]
        if not np.isfinite(history.to_numpy()).all() or ("result" in run and history.empty):
            raise ValueError("it has no epochs, or other things than finite numbers in its columns")
        config, dataset, result, key = run["config"], run["dataset"], run.get("result", {}), row_key(run)
        row = {"experiment": str(run["experiment"]), "seed": int(config["seed"])}
        row |= {"file": str(path), "folder": str(path.parent), "reference": REFERENCE in path.resolve().parents}
        row |= {"dataset": str(dataset["name"]), "source": dataset["source"], "images": dataset.get("checksum", "")}
        row |= {name: int(dataset[name]) for name in ("train_images", "test_images")}
        row |= {name: key[name] for name in ("unfinished", "precision", "device", "processes")}
        row |= {"model_code": recorded(run, "code", "model_code"), "commit": recorded(run, "code", "commit")[:7]}
        row |= {"changes": recorded(run, "code", "changed"), "machine": machine_text(run)}
        row |= {name: recorded(run, "environment", name) for name in ("torch", "threads")}
        row |= from_history(history) | ({"parameters": int(result["parameters"])} if result else {})
        row |= {name: float(result.get(name) or math.nan) for name in OPTIONAL}
    except (OSError, ValueError, ArithmeticError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no run of these scripts ({type(error).__name__}: {error})") from error
    return run, row, history


def from_history(history: pd.DataFrame) -> dict[str, object]:
    """What follows from a history, NaN if it has no epochs: its end, its best epoch, and the seconds of training."""
    chosen_on = "validation" if "validation_accuracy" in history else "test"
    row = {"epochs_trained": len(history), "train_seconds": history["seconds"].sum(), "best_chosen_on": chosen_on}
    history = history if len(history) else history.reindex([0])
    last = history.iloc[-1]
    best = history.sort_values(f"{chosen_on}_accuracy", ascending=False, kind="stable").iloc[0]
    row |= {name: last[name] for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy")}
    row |= {"gap": last["train_accuracy"] - last["test_accuracy"]}
    return row | {"best_test_accuracy": best["test_accuracy"], "best_epoch": best["epoch"]}


def values(runs: pd.DataFrame, name: str) -> pd.Series:
    """A column of a row's runs by their seeds."""
    return runs.set_index("seed")[name].dropna().sort_index()


def first_reached(runs: Runs, accuracy: float) -> pd.DataFrame:
    """The first epoch in which each run had that test accuracy, and `took`, the seconds to its end; not of all runs."""
    epochs = runs.epochs.assign(took=runs.epochs.groupby("run")["seconds"].cumsum())
    return epochs[epochs["test_accuracy"] >= accuracy].groupby("run")[["epoch", "took"]].first()


def machine_text(run: dict) -> str:
    """What a run's times depend on, as in "AMD EPYC, threads 2" or "4 x NVIDIA A100 (DataParallel)"."""
    names = ("device", "processor", "threads", "world_size", "parallel")
    device, processor, threads, processes, parallel = (recorded(run, "environment", name) for name in names)
    text = f"{processor}, threads {threads}" if device == "cpu" else device
    return text if processes in ("", "1") else f"{processes} x {text} ({parallel})"


def setting_text(name: str, value: object) -> str:
    """As in "50 epochs", "lr 0.01", "augment" or "no augment"."""
    words, text = name.replace("_", " "), short(value)
    texts, epochs = {"yes": words, "no": f"no {words}"}, "1 epoch" if text == "1" else f"{text} epochs"
    return texts.get(text, epochs if name == "epochs" else f"{words} {text}")


def short(value: object) -> str:
    """A setting's value as in a table."""
    return f"{value:g}" if isinstance(value, float) else {"True": "yes", "False": "no"}.get(str(value), str(value))
