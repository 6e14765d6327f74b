"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from cifar10lab.terminal.errors import UserError

REPLACE_SECONDS = 2.0  # how long a file that another program has open is tried to be replaced, on Windows
TEMPORARY = ".cifar10-{}.tmp"  # names that only these scripts use, since dead runs' are deleted


class FileInUse(UserError):
    """A file that can't be replaced now, as on Windows while another program has it open: the old one stays."""


def expanded(path: str | Path) -> Path:
    """The path with a `~` at its beginning replaced; the shell leaves it as it is in `--output=~/x`."""
    return Path(os.path.expanduser(path))


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; UserError that names it if the disk is full, say, FileInUse if it is open.

    A pipe or a device is written to, and a link stays one.
    """
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
        replace(temporary, target)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):  # where a name is too long, removing it fails, too
            temporary.unlink(missing_ok=True)


def replace(new: Path, path: Path) -> None:
    """`os.replace`, tried for `REPLACE_SECONDS` while the system refuses, as Windows does if the file is open."""
    end = time.monotonic() + REPLACE_SECONDS
    while True:
        try:
            return os.replace(new, path)
        except PermissionError as error:
            if time.monotonic() > end:
                reason = f"{error.strerror}; another program may have it open"
                raise FileInUse(f"{path} can't be replaced: {reason}") from error
        time.sleep(0.05)
