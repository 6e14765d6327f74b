"""The original's own runs, from modelset/reference/original.json: to be laid beside ours."""

from __future__ import annotations

import json
from pathlib import Path

from settings.experiment import EARLIER_VALUES as LATER

FILE = Path(__file__).resolve().parent.parent / "modelset" / "reference" / "original.json"
RESULTS = ("last", "best", "best_epoch", "train_accuracy", "total_seconds", "hardware", "reported_only")


def original_run(config: dict[str, object]) -> dict[str, object] | None:
    """The original's run with the model, settings and global batch size of `config`, or None.

    `config` is as in loss.json; seed and precision don't matter. The answer is an entry of "runs" in the
    file, which explains its keys: "last" and "best" are test accuracies in per cent, null if not known.
    """
    if not FILE.is_file():  # somebody has emptied modelset/
        return None
    wanted = settings_in_use(config, ("seed", "precision"))
    runs = json.loads(FILE.read_text(encoding="utf-8"))["runs"]
    return next((run for run in runs if settings_in_use(run, RESULTS) == wanted), None)


def original_text(config: dict[str, object]) -> str:
    """For a run's final line: "65.75 % at best", with the accuracy at the end if known; empty if there is none."""
    run = original_run(config)
    if run is None:
        return ""
    accuracies = ((run["last"], "at the end"), (run["best"], "at best"))
    return ", ".join(f"{percent(accuracy)} % {when}" for accuracy, when in accuracies if accuracy is not None)


def percent(accuracy: float) -> str:
    """With two decimals, unless the original gave none: 65.75, but 60."""
    return str(accuracy) if isinstance(accuracy, int) else f"{accuracy:.2f}"


def settings_in_use(entries: dict[str, object], others: tuple[str, ...] = ()) -> dict[str, object]:
    """Entries of a config without `others` and without what is 0 or off, as later options were in older runs."""
    return {name: value for name, value in (LATER | entries).items() if name not in others and value}
