"""Saved runs, finished or in progress, as a table with one row per run."""

import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from cifar10lab.files.writing import printable
from cifar10lab.results.reference import AUGMENTATION, NOT_COMPARED, REFERENCE, UNRECORDED, recorded, row_key
from cifar10lab.terminal.errors import UserError

FILES = ("loss.json", "checkpoint.pth")
RESULTS = ("parameters", "total_seconds", "images_per_second", "mirrored_test_accuracy")  # some files lack
# What tells rows of the same settings apart; the second ones only where the first don't.
TELL_APART = (("reference", "unfinished", "experiment", "precision", "device", "processes"), ("model_code", "folder"))


def settings_of(runs: pd.DataFrame) -> pd.DataFrame:
    """A column for each setting that is compared and on in some run, NaN where a run has none of that name."""
    configs = runs["record"].sort_index().map(lambda run: run["config"] | UNRECORDED | run["config"])
    settings = pd.DataFrame([*configs], configs.index, dtype=object).loc[runs.index]
    hidden = [*NOT_COMPARED, *([] if settings["augment"].any() else AUGMENTATION)]
    settings = settings.drop(columns=hidden, errors="ignore").map(lambda value: "None" if value is None else value)
    return settings.loc[:, (settings.notna() & settings.astype(bool)).any()]


def epochs_of(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per `run`, by its number in `runs`, and epoch: the histories, and `took`, the seconds to its end."""
    histories = {number: pd.DataFrame(run["history"]) for number, run in runs["record"].items()}
    epochs = pd.concat(histories, names=["run"]).astype(float).reset_index("run")
    return epochs.assign(took=epochs.groupby("run")["seconds"].cumsum())


def with_names(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with the `name` of each one's row: its model, and settings in which it differs from most of its model.

    A setting that is 0 or off is named only if most of the others have it on. Where names are the same, what else
    differs follows, as TELL_APART has it.
    """
    settings = in_use(settings_of(runs)).groupby(runs["row"]).first()
    names = settings["model"].map(str)
    for _, same in settings.drop(columns="model").groupby(names):
        for setting, column in same.items():
            most = column.map(str).mode()
            unusual = column.map(str) != most[0]
            if len(most) > 1 or unusual.sum() * 2 > len(same):
                unusual = column.map(bool)
            names = named(names, setting, column[unusual])
    parts = runs["file"].map(lambda file: without_seed(Path(file).absolute()).parent.parts[1:])  # without a drive
    folders = parts.map(os.sep.join).groupby(runs["row"]).agg(list).map(os.path.commonpath)
    folders = folders.apply(os.path.relpath, start=os.path.commonpath([*folders]))
    first = runs.groupby("row").first().assign(folder=folders)
    for kinds in TELL_APART:
        for _, same in first.groupby(names):
            for kind in [kind for kind in kinds if same[kind].nunique() > 1]:
                names = named(names, kind, same[kind][same[kind].map(str) != "False"])
    return runs.assign(name=runs["row"].map(names))


def in_use(settings: pd.DataFrame) -> pd.DataFrame:
    """The settings with False for those that are 0, off or not recorded, which are alike."""
    return settings.map(lambda value: value if value == value and value else False)  # NaN is not itself


def named(names: pd.Series, what: str, values: pd.Series) -> pd.Series:
    """The names of rows, those in `values` with what they have there: "LeNet" -> "LeNet, 50 epochs"."""
    words = values.astype(object).map(lambda value: f", {setting_text(what, value)}")
    return names + words.reindex(names.index, fill_value="")


def read_runs(paths: list[Path]) -> pd.DataFrame:
    """All runs in these folders and files: a row each, as `read_run`, `with_rows` and `with_names` say; the best first.

    Other files are skipped with a warning; UserError if no run is left.
    """
    found = []
    for path in find_runs(paths):
        try:
            found.append(read_run(path))
        except UserError as error:
            if path.exists():  # otherwise the run has ended this moment
                print(f"warning: skipped: {error}", file=sys.stderr)
    if not found:
        raise UserError(f"no loss.json to compare in {', '.join(map(str, paths))}")
    runs = with_rows(pd.DataFrame(found))
    best_first = runs.groupby("row")["test_accuracy"].transform("mean").sort_values(ascending=False, kind="stable")
    return with_names(runs.loc[best_first.index])


def with_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with the numbers of each one's `group` and `row`: those of one row differ by their seed alone.

    A group is the runs of the same `key` and model code; code that isn't recorded matches any other. It is one row,
    unless it has two runs of a seed, which are never averaged: then each folder, `without_seed`, is a row, or each run.
    """
    keys, codes = runs["key"], runs["model_code"].where(runs["model_code"] != "")
    groups = keys + codes.where(codes.groupby(keys).transform("nunique") > 1).fillna("")
    labels = keys.map(lambda _: "")
    for finer in (runs["file"].map(lambda file: str(without_seed(Path(file)))), runs["file"]):
        twice = pd.concat([groups, labels, runs["seed"]], axis=1).duplicated().groupby(groups).transform("any")
        labels = labels.where(~twice, finer)
    return runs.assign(group=groups.factorize()[0], row=(groups + labels).factorize()[0])


def without_seed(path: Path) -> Path:
    """The path without its seed: a/seed=1 -> a, a/epochs=50,seed=1 -> a/epochs=50."""
    parts = (",".join(word for word in part.split(",") if not re.fullmatch(r"seed=\d+", word)) for part in path.parts)
    return Path(*filter(None, parts))


def find_runs(paths: list[Path]) -> list[Path]:
    """Each loss.json and checkpoint.pth in these folders and theirs, and files as named.

    Links are followed, and each run is found once. UserError for a path that doesn't exist.
    """
    found, visited = {}, set()
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
        files = [path] if path.is_file() else []
        for folder, subfolders, _ in os.walk(path, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:  # or a link to a folder above would have no end
                subfolders.clear()
            visited.add(real)
            subfolders.sort()
            files += [file for name in FILES if (file := Path(folder, name)).is_file()]
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def read_run(path: Path) -> dict[str, object]:
    """A run's row of the table, with the `record` that was read; UserError if the file isn't a run's."""
    try:
        if path.suffix == ".json":
            run = json.loads(path.read_text(encoding="utf-8"))
        else:
            from cifar10lab.files.tensors import read_torch  # torch takes a second: only for a run in progress

            run = read_torch(path)
        history = pd.DataFrame(run["history"]).astype(float)
        if not np.isfinite(history).all(axis=None) or ("result" in run and history.empty):
            raise ValueError("it has no epochs, or other things than finite numbers in its columns")
        config, dataset, result, key = run["config"], run["dataset"], run.get("result", {}), row_key(run)
        row = {"experiment": str(run["experiment"]), "seed": int(config["seed"]), "file": printable(path)}
        row |= {"folder": printable(path.parent), "reference": REFERENCE in path.resolve().parents}
        row |= {"dataset": str(dataset["name"]), "source": dataset["source"], "images": dataset.get("checksum", "")}
        row |= {name: int(dataset[name]) for name in ("train_images", "test_images")}
        row |= {name: key[name] for name in ("unfinished", "precision", "device", "processes")}
        row |= {"model_code": recorded(run, "code", "model_code"), "changes": recorded(run, "code", "changed")}
        commit = re.sub(r"(\w{7})\w{33}", r"\1", recorded(run, "code", "commit"))
        row |= {"commit": commit, "machine": machine_text(run)}
        row |= {name: recorded(run, "environment", name) for name in ("torch", "threads")}
        chosen_on = "validation" if "validation_accuracy" in history else "test"
        row |= {"epochs_trained": len(history), "train_seconds": history["seconds"].sum(), "best_chosen_on": chosen_on}
        history = history if len(history) else history.reindex([0])  # NaN
        last, best = history.iloc[-1], history.nlargest(1, f"{chosen_on}_accuracy").iloc[0]
        row |= {name: last[name] for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy")}
        row |= {"gap": last["train_accuracy"] - last["test_accuracy"]}
        row |= {"best_test_accuracy": best["test_accuracy"], "best_epoch": best["epoch"]}
        row |= {name: float(result.get(name) or math.nan) for name in RESULTS}
        return row | {"record": run, "key": json.dumps([row["reference"], result.get("parameters"), key])}
    except (OSError, ValueError, ArithmeticError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no run of these scripts ({type(error).__name__}: {error})") from error


def values(runs: pd.DataFrame, name: str) -> pd.Series:
    """A column of a row's runs by their seeds."""
    return runs.set_index("seed")[name].dropna().sort_index()


def first_reached(runs: pd.DataFrame, accuracy: float) -> pd.DataFrame:
    """The first epoch in which each run had that test accuracy, by its number; runs that never had it are left out."""
    epochs = epochs_of(runs)
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
