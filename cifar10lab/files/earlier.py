"""Earlier runs' files, kept when another run takes their folder."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from cifar10lab.terminal.errors import UserError

RESULTS = ("best_model.pth", "model.pth", "loss.json", "loss.png")


def unused_name(path: Path) -> Path:
    """checkpoint.pth -> checkpoint-1.pth, or with the first number that isn't taken."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(1))
    return next(name for name in numbered if not name.exists())


def moved(path: Path, to: Path) -> None:
    """Rename a file; UserError if that can't be done."""
    try:
        to.parent.mkdir(exist_ok=True)
        path.rename(to)
    except OSError as error:
        raise UserError(f"{path} can't be moved to {to}: {error.strerror}") from error


def set_aside(checkpoint: Path) -> None:
    """Give an interrupted run's checkpoint another name, so that a new run doesn't overwrite it."""
    kept = unused_name(checkpoint)
    moved(checkpoint, kept)
    print(
        f"{checkpoint} is of an interrupted run, which --resume would continue. Starting afresh; it is now {kept.name}."
    )


def code_of_results(folder: Path) -> object:
    """What a finished run's loss.json in `folder` says of its code, {} if nothing; None if there is no such run."""
    path = folder / "loss.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("code", {})
    except (OSError, ValueError, AttributeError):  # something else, which isn't to be lost either
        return {}


def move_results(folder: Path) -> None:
    """Move a finished run's files into a folder of their own in `folder`, `earlier-1` for instance."""
    to = unused_name(folder / "earlier")
    for path in (folder / name for name in RESULTS):
        if path.is_file():
            moved(path, to / path.name)
    print(f"the results that were in {folder} are of other code: they are now in {to}")
