"""Earlier runs' files, kept when another run takes their folder."""

import itertools
from pathlib import Path

from cifar10lab.terminal.errors import UserError

RESULTS = ("best_model.pth", "model.pth", "loss.json", "loss.png")


def move_earlier(folder: Path, *names: str) -> Path:
    """Move those of the files that are there into a new folder in `folder`, such as earlier-1; which one. UserError."""
    to = next(new for number in itertools.count(1) if not (new := folder / f"earlier-{number}").exists())
    try:
        to.mkdir()
        for path in (folder / name for name in names):
            if path.is_file():
                path.rename(to / path.name)
    except OSError as error:
        raise UserError(f"{error.filename} can't be moved to {to}: {error.strerror}") from error
    return to
