"""Files that are whole or not there, folders that one process uses at a time, and errors for people."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import filelock
import torch

TEMPORARY = ".cifar10-{}.tmp"  # names that only these scripts use, since dead runs' are deleted


class UserError(Exception):
    """Something the person at the keyboard can put right: shown as one line, exit code 1."""


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of `folder`, and remove what dead ones left half written.

    The system lets go of a dead process's lock. Raises UserError if another process holds it and
    `wait` is false, OSError if the folder can't be written.
    """
    lock, holder = filelock.FileLock(folder / ".lock"), folder / ".lock-holder"
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        process = f"process {holder.read_text()}" if holder.is_file() else "another process"
        if not wait:
            raise UserError(f"{folder} is in use by {process}: wait for it, or choose another --output") from None
        print(f"waiting for {process}, which is preparing {folder}", file=sys.stderr)
        lock.acquire()
    try:
        for leftover in folder.glob(TEMPORARY.format("*")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        holder.write_text(str(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


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
        unsafe = "Unsupported global" in str(error) or "weights_only" in str(error).lower()
        what = "holds pickled objects, which are never executed" if unsafe else "is cut short or no torch.save file"
        raise UserError(f"{path} {what}: expected tensors and plain data") from error
