"""Saved runs for comparing: reading them, finished or not, and grouping those that differ by their seed alone."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common import HISTORY, config_of, stated_settings
from files.writing import read_torch
from internals.experiments import short_name, table_order
from internals.original import settings_in_use
from settings.differences import describe, differences
from terminal.errors import UserError

# --- One run ----------------------------------------------------------------------------------


def read_run(path: Path) -> dict:
    """A run's loss.json; UserError if it is cut short, not JSON, or of another shape."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        history, result = run["history"], run["result"]
        validation = ["validation_loss", "validation_accuracy"]
        names = list(HISTORY) + validation * (chosen_on(run) == "validation" or any(n in history for n in validation))
        check_history(history, names)
        numbers = [result[name] for name in ("final_test_accuracy", "best_test_accuracy", "best_epoch", "parameters")]
        numbers += [result[name] for name in ("train_seconds", "images_per_second")]
        numbers += [result[name] for name in ("total_seconds", "mirrored_test_accuracy") if name in result]
        texts = [run["experiment"], run["dataset"]["name"], run["config"]["model"], run["environment"]["device"]]
        texts += [run["environment"]["parallel"], processor(run)]
        numbers.append(run["config"].get("seed", 0))
        whole = history["epoch"] and device_count(run) >= 1
        if not whole or not all(isinstance(text, str) for text in texts) or not all(map(math.isfinite, numbers)):
            raise ValueError("it has no epochs, or other things than numbers or texts where they belong")
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is no loss.json of these scripts ({type(error).__name__}: {error})") from error
    return run


def check_history(history: dict, names: list[str]) -> None:
    """ValueError if columns differ in length or hold other things than finite numbers, KeyError if one is missing."""
    if len({len(history[name]) for name in names}) != 1:
        raise ValueError("its columns are of different lengths")
    if not all(map(math.isfinite, itertools.chain(*(history[name] for name in names)))):
        raise ValueError("it has other things than finite numbers in its columns")


def chosen_on(run: dict) -> str:
    """What the best epoch was chosen on, "test" or "validation" images."""
    return run["result"].get("best_epoch_chosen_on", "test")


def processor(run: dict) -> str:
    """The processor's name; "" in files that are older than its record."""
    return run["environment"].get("processor", "")


def machine(run: dict) -> tuple[str, str, int]:
    """(device, processor, threads), what times depend on: they compare, and are averaged, only where it is the same."""
    return run["environment"]["device"], processor(run), threads(run)


def threads(run: dict) -> int:
    """Per process, on the CPU; 1 on other devices, where the CPU's threads don't matter."""
    return run["environment"].get("threads", 1) if run["environment"]["device"] == "cpu" else 1


def device_count(run: dict) -> int:
    """GPUs, or CPU cores: a process with two threads uses two."""
    return run["environment"]["world_size"] * threads(run)


def device_text(run: dict) -> str:
    """As in "AMD EPYC 9R14, 2 processes with 1 thread" or "4 x NVIDIA A100 (DataParallel)"."""
    device, processes, parallel = (run["environment"][name] for name in ("device", "world_size", "parallel"))
    if device != "cpu":
        return f"{processes} x {device} ({parallel})" if parallel != "none" else device
    several = f"{processes} processes with " * (processes > 1)
    return f"{processor(run) or 'cpu'}, {several}{threads(run)} thread{'s' * (threads(run) > 1)}"


def value_of(run: dict, name: str) -> float | None:
    """One of loss.json's results or, where it isn't there, what follows from its history; None if neither."""
    history = run["history"]
    if name == "gap":  # training minus test accuracy after the last epoch, in points
        return history["train_accuracy"][-1] - history["test_accuracy"][-1]
    if name == "final_train_accuracy":
        return history["train_accuracy"][-1]
    if name == "best_on_test":  # of runs that chose their epoch on validation images, too
        return max(history["test_accuracy"])
    if name == "chosen_on_validation":
        return run["result"]["best_test_accuracy"] if chosen_on(run) == "validation" else None
    if name == "epoch_seconds":
        return statistics.mean(history["seconds"])
    return run["result"].get(name)


def first_reached(run: dict, accuracy: float) -> tuple[int, float] | None:
    """The epoch, and the seconds of training, at which a run's test accuracy first was that high."""
    seconds = 0.0
    for epoch, reached, took in zip(*(run["history"][n] for n in ("epoch", "test_accuracy", "seconds")), strict=True):
        seconds += took
        if reached >= accuracy:
            return epoch, seconds
    return None


# --- Groups -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone, and perhaps by the machine that they were trained on."""

    experiment: str
    changes: dict  # what differs from the experiment's stated settings, without the seed
    runs: list[dict]  # as in loss.json
    folders: list[Path]

    @property
    def config(self) -> dict:
        """The settings, without the seed."""
        return {name: value for name, value in self.runs[0]["config"].items() if name != "seed"}

    @property
    def chosen_on(self) -> str:
        return chosen_on(self.runs[0])

    @property
    def by_seed(self) -> list[list[dict]]:
        """The runs of each seed: one that was trained several times counts once, with its mean."""
        runs: dict[object, list[dict]] = {}
        for run in self.runs:
            runs.setdefault(run["config"].get("seed"), []).append(run)
        return list(runs.values())

    @property
    def seeds(self) -> int:
        return len(self.by_seed)

    @property
    def label(self) -> str:
        return f"{self.experiment} ({describe(self.changes)})" if self.changes else self.experiment

    @property
    def short(self) -> str:
        """The label for pictures: "LeNet, 50 epochs, augment"."""
        return short_label(self.experiment, self.changes, self.config.get("epochs"))

    @property
    def title(self) -> str:
        return f"{self.short}, {f'{self.seeds} seeds' if self.seeds > 1 else '1 run'}"

    @property
    def devices(self) -> str:
        return "; ".join(sorted({device_text(run) for run in self.runs}))

    @property
    def timed(self) -> Group:
        """The runs of one machine, since times don't compare across machines: those with the most threads.

        Of several machines, one whose processor is recorded, and with the most runs.
        """
        counts = Counter(map(machine, self.runs))
        return self.on(max(counts, key=lambda one: (one[2], bool(one[1]), counts[one], one)))

    def on(self, wanted: tuple[str, str, int]) -> Group:
        """The runs of that machine."""
        chosen = [(r, f) for r, f in zip(self.runs, self.folders, strict=True) if machine(r) == wanted]
        return dataclasses.replace(self, runs=[r for r, _ in chosen], folders=[f for _, f in chosen])

    def results(self, name: str) -> list[float]:
        """The value of each seed that has one."""
        values = [[v for run in runs if (v := value_of(run, name)) is not None] for runs in self.by_seed]
        return [statistics.mean(of_seed) for of_seed in values if of_seed]

    def mean(self, name: str) -> float:
        return statistics.mean(self.results(name))

    def deviation(self, name: str) -> float:
        """The standard deviation over the seeds; 0 for a single one."""
        results = self.results(name)
        return statistics.stdev(results) if len(results) > 1 else 0.0

    def show(self, name: str, digits: int = 2) -> str:
        """The mean ± the deviation; nothing if no run has it."""
        results = self.results(name)
        if not results:
            return ""
        deviation = f" ± {self.deviation(name):.{digits}f}" if len(results) > 1 else ""
        return f"{self.mean(name):.{digits}f}{deviation}"


def short_label(experiment: str, changes: dict, epochs: object) -> str:
    """A run's name for pictures: {"epochs": 50, "augment": True} -> "LeNet, 50 epochs, augment"."""
    texts = (f"{name.replace('_', ' ')} {value}" for name, value in changes.items() if name not in ("epochs", "model"))
    settings = (text.removesuffix(".0").removesuffix(" True") for text in texts)
    return ", ".join([short_name(experiment), f"{epochs} epochs", *settings])


def changes_of(experiment: str, config: dict) -> dict:
    """What differs from the stated settings, without the seed; all settings if there are none stated."""
    try:
        settings = stated_settings(experiment)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
        settings = None
    stated = config_of(settings) if settings else {}
    return {name: value for name, value in differences(config, stated).items() if name != "seed"}


def group_runs(runs: dict[Path, dict]) -> list[Group]:
    """Runs with the same settings on the same data and in as many processes on a kind of device, as one group each.

    Several processors and numbers of threads may be in one group, since accuracies compare across them. In the order of
    the README's table, the stated settings first, otherwise that of the paths.
    """
    groups: dict[str, Group] = {}
    for path, run in runs.items():
        devices = [run["environment"][name] for name in ("device", "parallel", "world_size")]
        changes = changes_of(run["experiment"], run["config"])
        key = json.dumps([run["experiment"], changes, settings_in_use(run["dataset"]), devices], sort_keys=True)
        group = groups.setdefault(key, Group(run["experiment"], changes, [], []))
        group.runs.append(run)
        group.folders.append(path.parent)
    return sorted(groups.values(), key=lambda group: (table_order(group.experiment), bool(group.changes)))


# --- Files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unfinished:
    """A run in progress, or one that was interrupted, as its checkpoint.pth tells of it."""

    experiment: str
    changes: dict
    seed: object
    epoch: int  # in progress
    epochs: int
    dataset: str
    history: dict[str, list[float]]  # so far
    folder: Path

    @property
    def progress(self) -> str:
        return f"unfinished: epoch {min(self.epoch, self.epochs)} of {self.epochs}"

    @property
    def title(self) -> str:
        return f"{short_label(self.experiment, self.changes, self.epochs)}, seed {self.seed}, {self.progress}"


def read_unfinished(path: Path) -> Unfinished:
    """What checkpoint.pth tells of its run, which is not disturbed; UserError if it is no checkpoint of ours."""
    state = read_torch(path)
    try:
        config, history, dataset = state["config"], state["history"], str(state["dataset"]["name"])
        check_history(history, list(HISTORY))
        experiment = str(state.get("experiment", path.parent.name))
        changes = changes_of(experiment, config)
        epochs = int(config["epochs"])
        return Unfinished(
            experiment, changes, config.get("seed"), int(state["epoch"]), epochs, dataset, history, path.parent
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(f"{path} is no checkpoint of these scripts ({type(error).__name__}: {error})") from error


def find_files(paths: list[Path], name: str) -> list[Path]:
    """Every file of that name in the folders, and named files of its kind. UserError for a path that isn't there."""
    found: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
        found.update(path.rglob(name) if path.is_dir() else [path] if path.suffix == Path(name).suffix else [])
    return sorted(found)


def find_unfinished(paths: list[Path]) -> list[Path]:
    """Every checkpoint.pth whose folder has no newer results: a run that has ended removes its own."""
    found = find_files(paths, "checkpoint.pth")
    return [path for path in found if not is_newer(path.with_name("loss.json"), path)]


def is_newer(path: Path, other: Path) -> bool:
    return path.is_file() and path.stat().st_mtime > other.stat().st_mtime
