"""The results that come with the repository, and the original's own: how a run stands beside them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

MODELSET = Path(__file__).resolve().parents[2] / "modelset"
REFERENCE = MODELSET / "reference"
ORIGINAL_RESULTS = ("last", "best", "best_epoch", "train_accuracy", "total_seconds", "hardware", "reported_only")
AUGMENTATION = ("crop_padding", "padding_mode", "flips")  # settings that do nothing without it
NOT_COMPARED = ("seed", "precision")  # settings that runs of one row may differ in


def settings_in_use(config: dict[str, object], without: tuple[str, ...] = NOT_COMPARED) -> dict[str, object]:
    """The entries of a config without those of these names, and without what is 0 or off, or does nothing."""
    without = without if config.get("augment") else (*without, *AUGMENTATION)
    return {name: value for name, value in config.items() if name not in without and value}


def original_run(config: dict[str, object]) -> dict[str, object] | None:
    """The original's run with the model, settings and global batch size of `config`, a config of loss.json, or None.

    The answer is an entry of "runs" in original.json, which explains its keys: "last" and "best" are test accuracies in
    per cent, null if not known.
    """
    path = REFERENCE / "original.json"
    if not path.is_file():  # somebody has emptied modelset/
        return None
    runs, wanted = json.loads(path.read_text(encoding="utf-8"))["runs"], settings_in_use(config)
    return next((run for run in runs if settings_in_use(run, (*NOT_COMPARED, *ORIGINAL_RESULTS)) == wanted), None)


def original_accuracy(config: dict[str, object]) -> str:
    """The original's test accuracy at the end, as in "64.99", or at best, as in "65.75 at best"; "" if not known."""
    run = original_run(config) or {}
    if run.get("last") is None:
        return f"{run['best']:.2f} at best" if run.get("best") is not None else ""
    return str(run["last"]) if isinstance(run["last"], int) else f"{run['last']:.2f}"


def reference_runs() -> list[dict]:
    """The loss.json of every run that comes with the repository."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(REFERENCE.rglob("loss.json"))]


def reference_accuracies(runs: list[dict], config: dict[str, object], dataset: dict[str, object]) -> list[float]:
    """Test accuracies at the end, in per cent, of those `runs` with that config and data: one for each seed."""
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        if settings_in_use(run["config"]) == settings_in_use(config) and data_key(run["dataset"]) == data_key(dataset):
            by_seed.setdefault(run["config"]["seed"], []).append(run["result"]["final_test_accuracy"])
    return [statistics.mean(accuracies) for accuracies in by_seed.values()]


def data_key(dataset: dict[str, object]) -> tuple[object, ...]:
    """What tells one data set from another: its name and size, wherever the images came from."""
    return dataset["name"], dataset["train_images"], dataset["test_images"]


def mean_text(values: list[float]) -> str:
    """As in "61.51 ± 1.30", the mean and the standard deviation; of a single value itself, of none nothing."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}" if values else ""


def standing(run: dict[str, object]) -> str:
    """For a run's last line: " (reference: 61.51 ± 1.30 over 3 seeds; the original: 60 %)", or nothing to compare with.

    `run` is as in loss.json.
    """
    values = reference_accuracies(reference_runs(), run["config"], run["dataset"])
    original = original_accuracy(run["config"])
    seeds = f" over {len(values)} seeds" if len(values) > 1 else ""
    texts = [f"reference: {mean_text(values)}{seeds}"] if values else []
    if original and run["dataset"]["name"] == "cifar10":
        texts.append(f"the original: {original} %")
    return f" ({'; '.join(texts)})" if texts else ""
