"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
import warnings
from pathlib import Path

import torch

from cifar10lab.terminal.errors import UserError

REPLACE_SECONDS = 2.0  # how long a file that another program has open is tried to be replaced, on Windows
TEMPORARY = ".cifar10-{}.tmp"  # names that only these scripts use, since dead runs' are deleted


class FileInUse(UserError):
    """A file that can't be replaced now, as on Windows while another program has it open: the old one stays."""


def expanded(path: str | Path) -> Path:
    """The path with a `~` at its beginning replaced; the shell leaves it as it is in `--output=~/x`."""
    return Path(os.path.expanduser(path))


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; UserError that names it if the disk is full, say, FileInUse if it is open."""
    temporary = path.parent / TEMPORARY.format(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
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


def write_torch(path: Path, value: object) -> None:
    """`torch.save`, by way of memory, so that the file is whole or not there."""
    content = io.BytesIO()
    torch.save(value, content)
    write_file(path, content.getbuffer())


def read_torch(path: Path) -> object:
    """What `torch.save` wrote; nothing in the file is executed. UserError if that is not what it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle formats that it may fail to read, which is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except PermissionError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except Exception as error:  # torch.load raises many kinds on damaged and foreign files
        unsafe = re.search("GLOBAL|Can only (create|build)|for unrecognized function", str(error))
        what = "holds pickled objects, which are never executed" if unsafe else "is cut short or no torch.save file"
        raise UserError(f"{path} {what}: expected tensors and plain data") from error
