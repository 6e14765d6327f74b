"""Which runs differ by nothing but their seed: a row of a comparison, and what the reference's figures are of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

MODELSET = Path(__file__).resolve().parents[2] / "modelset"
REFERENCE = (MODELSET / "reference").resolve()  # also where modelset/ is a link
AUGMENTATION = ("crop_padding", "padding_mode", "flips", "cutout")  # settings that do nothing without it
UNSAID = {"optimizer": "sgd"}  # of files that don't name it; any other setting is off then
NOT_COMPARED = ("seed", "precision")  # the precision used is compared, not the one asked for


def settings_in_use(config: dict[str, object], without: tuple[str, ...] = NOT_COMPARED) -> dict[str, object]:
    """The entries of a config without those of these names, and without what is 0 or off, or does nothing."""
    without = without if config.get("augment") else (*without, *AUGMENTATION)
    config = UNSAID | config
    return {name: value for name, value in config.items() if name not in without and value}


def recorded(run: dict, record: str, name: str) -> str:
    """An entry of a run's "environment" or "code", "" where there is none; "1, then 2" if it changed on resuming."""
    parts = [part.get(record) or run.get(record) or {} for part in run.get("parts") or [run]]
    return ", then ".join(dict.fromkeys(str(part[name]) for part in parts if part.get(name) is not None))


def row_key(run: dict) -> dict[str, object]:
    """What the runs of a row have in common besides their code; `run` is as in loss.json or checkpoint.pth.

    The images are the same if their number is, wherever they came from. All CPUs are one kind of device.
    """
    dataset = run["dataset"]
    return {
        "settings": settings_in_use(run["config"]),
        "data": [dataset["name"], dataset["train_images"], dataset["test_images"]],
        "precision": recorded(run, "environment", "precision"),
        "device": recorded(run, "environment", "device"),
        "processes": recorded(run, "environment", "world_size"),
        "unfinished": "result" not in run,
    }


def model_code(run: dict) -> str:
    """The hash of the code of the run's script and model; "", which matches any, where it isn't recorded."""
    return recorded(run, "code", "model_code")


def without_seed(path: Path) -> Path:
    """The path without what names a seed: a/seed=1 -> a, a/epochs=50,seed=1 -> a/epochs=50."""
    parts = (",".join(word for word in part.split(",") if not re.fullmatch(r"seed=\d+", word)) for part in path.parts)
    return Path(*filter(None, parts))


def grouped(runs: dict[Path, dict]) -> list[list[list[Path]]]:
    """The runs' files by row, in groups of rows that nothing but their folders tells apart.

    The runs of a row have the same `row_key` and `model_code`; the reference's are never in one with others. Where a
    seed is still there twice, a row is the runs of one folder but for their seeds, or at last a single run: a seed is
    never averaged with itself.
    """
    found = []
    for same in split(runs, lambda path: json.dumps([REFERENCE in path.resolve().parents, row_key(runs[path])])):
        several = len({model_code(runs[path]) for path in same} - {""}) > 1
        for group in split(same, lambda path: model_code(runs[path])) if several else [same]:
            rows = [group]
            for folder in (without_seed, str):
                seeds = [[runs[path]["config"]["seed"] for path in row] for row in rows]
                if any(len(set(row)) < len(row) for row in seeds):
                    rows = split(group, folder)
            found.append(rows)
    return found


def split(paths: Iterable[Path], by: Callable[[Path], object]) -> list[list[Path]]:
    """The paths in groups that have the same value, in the order of their firsts."""
    groups: dict[object, list[Path]] = {}
    for path in paths:
        groups.setdefault(by(path), []).append(path)
    return list(groups.values())
