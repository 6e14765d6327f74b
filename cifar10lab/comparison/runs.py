"""Saved runs, finished or in progress, as two tidy tables: one row per run, and one row per run and epoch."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cifar10lab.files.tensors import read_torch
from cifar10lab.results.history import HISTORY
from cifar10lab.results.reference import NOT_COMPARED, REFERENCE, data_key, settings_in_use
from cifar10lab.settings.experiment import Settings, config_of, stated_settings
from cifar10lab.terminal.errors import UserError

FILES = ("loss.json", "checkpoint.pth")
MACHINE = ("device", "processor", "threads", "parallel", "world_size", "torch")
RESULTS = ("final_test_accuracy", "best_test_accuracy", "best_epoch", "parameters", "train_seconds")
OPTIONAL = ("total_seconds", "images_per_second", "mirrored_test_accuracy", "best_epoch_chosen_on")


@dataclass(frozen=True)
class Runs:
    """A row per run, the best first, with the same `key` where only seeds differ; a row per `run` number and epoch."""

    table: pd.DataFrame
    epochs: pd.DataFrame
    settings: list[str]  # the columns of `table` that are settings

    def part(self, table: pd.DataFrame) -> Runs:
        """The runs in `table`, a part of this one's."""
        return Runs(table, self.epochs[self.epochs["run"].isin(table.index)], self.settings)


def read_runs(paths: list[Path]) -> Runs:
    """All runs in these folders and files; a file that is none of ours is a warning, UserError if there is no other."""
    rows, epochs, settings = [], [], {}
    for path in find_runs(paths):
        try:
            config, row, history = read_run(path)
        except UserError as error:
            if path.exists():  # otherwise the run has ended this moment
                print(f"warning: skipped: {error}", file=sys.stderr)
            continue
        epochs.append(history.assign(run=len(rows)))
        rows.append(config | row)
        settings |= config
    if not rows:
        raise UserError(f"no loss.json to compare in {', '.join(map(str, paths))}")
    table = pd.DataFrame(rows)
    last = table.groupby("key")["test_accuracy"].transform("mean").sort_values(ascending=False, kind="stable")
    return Runs(table.loc[last.index], pd.concat(epochs, ignore_index=True), list(settings))


def find_runs(paths: list[Path]) -> list[Path]:
    """The loss.json or, of one in progress, checkpoint.pth of each run in these folders and theirs; files as named.

    UserError for a path that isn't.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
        folders = sorted({file.parent for name in FILES for file in path.rglob(name)})
        found |= dict.fromkeys([path] if path.is_file() else map(newest, folders))
    return list(found)


def newest(folder: Path) -> Path:
    """The folder's checkpoint.pth if it is newer than its results: a run that has ended removes its own."""
    files = [folder / name for name in FILES if (folder / name).is_file()]
    return max(files, key=lambda file: file.stat().st_mtime)


def read_run(path: Path) -> tuple[dict[str, object], dict[str, object], pd.DataFrame]:
    """Settings, other columns and history of a run, finished or in progress; UserError if the file is no such one."""
    finished = path.suffix == ".json"
    try:
        run = json.loads(path.read_text(encoding="utf-8")) if finished else read_torch(path)
        history, dataset = pd.DataFrame(run["history"])[list(run["history"])], run["dataset"]
        history = history[[*HISTORY, *history.columns.difference(HISTORY)]].astype(float)
        if not np.isfinite(history.to_numpy()).all() or finished > len(history):
            raise ValueError("it has no epochs, or other things than finite numbers in its columns")
        config = with_defaults(str(run["experiment"]), dict(run["config"]))
        row = {"experiment": str(run["experiment"]), "folder": str(path.parent), "unfinished": not finished}
        row |= {"reference": REFERENCE in path.resolve().parents, "dataset": str(dataset["name"]), "machine": ""}
        row |= {name: int(dataset[name]) for name in ("train_images", "test_images")} | {"source": dataset["source"]}
        if finished:
            row |= {name: float(run["result"][name]) for name in RESULTS}
            row |= {name: run["result"][name] for name in OPTIONAL if run["result"].get(name) is not None}
            row |= {name: run["environment"][name] for name in MACHINE}
            row["machine"] = machine_text(run["environment"])
        if len(run.get("parts", [])) > 1:
            history["seconds"], row["machine"] = math.nan, "several machines"
        key = [row["experiment"], settings_in_use(config), data_key(dataset), row["unfinished"], row["reference"]]
        row |= {"key": json.dumps(key, sort_keys=True), **last_epoch(history, config)}
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is no file of these scripts ({type(error).__name__}: {error})") from error
    return config, row, history


def last_epoch(history: pd.DataFrame, config: dict[str, object]) -> dict[str, float]:
    """What follows from a history, NaN if it has no epochs; its `seconds` become medians over images of the same size.

    An epoch that other work on the machine slowed down would count in a sum; in the median it doesn't.
    """
    part = np.arange(len(history)) * (str(config.get("resolutions", "")).count(",") + 1) // int(config["epochs"])
    history["seconds"] = history["seconds"].groupby(part).transform("median")
    best = history["test_accuracy"].max()
    names = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    last = {name: history[name].iloc[-1] if len(history) else math.nan for name in names}
    last |= {"gap": last["train_accuracy"] - last["test_accuracy"], "seconds": history["seconds"].sum(skipna=False)}
    best_epoch = history["epoch"][history["test_accuracy"] == best].min()
    return last | {"epochs_trained": len(history), "best_on_test": best, "best_epoch_on_test": best_epoch}


def machine_text(environment: dict[str, object]) -> str:
    """What times depend on, as in "AMD EPYC, 2 threads" or "4 x NVIDIA A100 (DataParallel)"."""
    device, processes, threads = environment["device"], environment["world_size"], environment["threads"]
    if device != "cpu":
        return f"{processes} x {device} ({environment['parallel']})" if environment["parallel"] != "none" else device
    several = f"{processes} processes of " * (processes > 1)
    return f"{environment['processor']}, {several}{threads} thread{'s' * (threads > 1)}"


def with_defaults(experiment: str, config: dict[str, object]) -> dict[str, object]:
    """A run's settings, with the default of those that came later."""
    try:
        stated = stated_settings(experiment)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
        stated = None
    if stated is None:
        return config
    required = [field.name for field in dataclasses.fields(Settings) if field.default is dataclasses.MISSING]
    plain = Settings(**{name: getattr(stated, name) for name in required if name != "options"})
    return config_of(plain) | config


def config_of_row(runs: Runs, row: pd.Series) -> dict[str, object]:
    """The settings of a run, as in its loss.json."""
    return {name: row[name] for name in runs.settings if name in row and row[name] == row[name]}  # NaN: other models'


def values(runs: pd.DataFrame, name: str) -> pd.Series:
    """A column's value for each seed of a row's runs; one that was trained several times counts once, by its mean."""
    return runs.groupby("seed")[name].mean().dropna()


def names_of(runs: Runs, keys: pd.Series) -> dict[str, str]:
    """A short name for each key: the model, and the settings in which it differs from most of the others of its model.

    A setting that is 0 or off is named only if most of the others have it on.
    """
    first = runs.table.groupby(keys, sort=False).first()
    names = {}
    for _, rows in first.groupby("model"):
        columns = [name for name in runs.settings if name not in ("model", *NOT_COMPARED)]
        for key, row in rows.iterrows():
            parts = [setting_text(name, row[name]) for name in columns if not is_usual(rows[name], row[name])]
            names[key] = ", ".join([str(row["model"]), *parts])
    for extra in ("experiment", "reference", "unfinished"):  # what tells runs of the same settings apart
        if len(set(names.values())) < len(names) and first[extra].nunique() > 1:
            texts = first[extra].map(str).replace({"True": extra, "False": ""})
            names = {key: ", ".join(filter(None, [name, texts[key]])) for key, name in names.items()}
    return names


def is_usual(column: pd.Series, value: object) -> bool:
    """Whether a name can leave this value of its column out."""
    counts = column.map(str).value_counts()
    if len(counts) == 1 or (counts.iloc[0] > counts.iloc[1] and counts.iloc[0] * 2 >= len(column)):
        return str(value) == counts.index[0]
    return not value or value != value  # off, or of a setting that only other runs have


def setting_text(name: str, value: object) -> str:
    """As in "50 epochs", "lr 0.01", "augment" or "no augment"."""
    words, text = name.replace("_", " "), short(value)
    texts, epochs = {"yes": words, "no": f"no {words}"}, f"{text} epoch" + "s" * (text != "1")
    return texts.get(text, {"machine": text, "epochs": epochs}.get(name, f"{words} {text}"))


def short(value: object) -> str:
    """A setting's value as in a table."""
    return f"{value:g}" if isinstance(value, float) else {"True": "yes", "False": "no"}.get(str(value), str(value))
