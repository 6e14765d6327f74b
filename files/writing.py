"""Files that are whole or not there."""

from __future__ import annotations

import io
import os
import re
import warnings
from pathlib import Path

import torch

from terminal.errors import UserError

TEMPORARY = ".cifar10-{}.tmp"  # names that only these scripts use, since dead runs' are deleted


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; UserError that names it if the disk is full, say."""
    temporary = path.with_name(TEMPORARY.format(path.name))
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} can't be written: {error.strerror}") from error


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
    except Exception as error:  # torch.load raises many kinds on damaged and foreign files
        unsafe = re.search("GLOBAL|Can only (create|build)|for unrecognized function", str(error))
        what = "holds pickled objects, which are never executed" if unsafe else "is cut short or no torch.save file"
        raise UserError(f"{path} {what}: expected tensors and plain data") from error
