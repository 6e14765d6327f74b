"""Files that are whole or not there, and earlier runs' files, kept when another run takes their folder."""

import contextlib
import itertools
import os
from pathlib import Path

from cifar10lab.terminal.errors import UserError

TEMPORARY = ".cifar10-{}.tmp"  # names that only these scripts use, since dead runs' are deleted
RESULTS = ("best_model.pth", "model.pth", "loss.json", "loss.png")


class FileInUse(UserError):
    """A file that can't be replaced now, as on Windows while another program has it open: the old one stays."""


def expanded(path: str | Path) -> Path:
    """The path with a `~` at its beginning replaced; the shell leaves it as it is in `--output=~/x`."""
    return Path(os.path.expanduser(path))


def printable(path: Path) -> str:
    """A path as it can be printed and drawn, whatever bytes it has."""
    return str(path).encode(errors="replace").decode()


def write_file(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; or to a pipe, a device, a link's target. UserError, FileInUse if it's open."""
    target = Path(os.path.realpath(path))
    temporary = target.parent / TEMPORARY.format(target.name)
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(temporary, target)
        except PermissionError as error:
            raise FileInUse(f"{path} can't be replaced: {error.strerror}; another program may have it open") from error
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):  # where a name is too long, removing it fails, too
            temporary.unlink(missing_ok=True)


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
