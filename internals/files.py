"""Files that are whole or not there, folders that one process uses at a time, and errors for people."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import torch

TEMPORARY = ".cifar10-{}.tmp"  # names that only these scripts use, since dead runs' are deleted
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # where a file system has no locks


REPLACE_SECONDS = 2.0  # how long a file that another program has open is tried to be replaced, on Windows


class UserError(Exception):
    """Something the person at the keyboard can put right: shown as one line, exit code 1."""


class WrongOption(UserError):
    """A setting, or an argument of the model's constructor, that can't be: exit code 2."""


class FileInUse(UserError):
    """A file that can't be replaced now, as on Windows while another program has it open: the old one stays."""


def expanded(path: str | Path) -> Path:
    """The path with a `~` at its beginning replaced; the shell leaves it as it is in `--output=~/x`."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of `folder`, and remove what dead ones left half written.

    The system lets go of a dead process's lock. Where the file system has no locks, as some of those of clusters,
    nobody is kept out and nothing removed. Raises UserError if another process holds it and `wait` is false,
    OSError if the folder can't be written.
    """
    holder = folder / ".lock-holder"
    try:
        release = lock_file(folder / ".lock", wait=False)
    except (BlockingIOError, filelock.Timeout):
        process = f"process {holder.read_text()}" if holder.is_file() else "another process"
        if not wait:
            raise UserError(f"{folder} is in use by {process}: wait for it, or choose another --output") from None
        print(f"waiting for {process}, which is preparing {folder}", file=sys.stderr)
        release = lock_file(folder / ".lock", wait=True)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"{folder} can't be locked ({error.strerror}): don't start a second run that uses it", file=sys.stderr)
        release = None
    if release is None:
        yield
        return
    try:
        for leftover in folder.glob(TEMPORARY.format("*")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        holder.write_text(str(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        release()


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[None]:
    """Make a run's folder and keep others out of it; UserError if that can't be done."""
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder))
        except OSError as error:
            raise UserError(f"{folder} can't be written: {error.strerror}") from error
        yield


def lock_file(path: Path, wait: bool) -> Callable[[], None]:
    """Lock a file for this process; what lets go of it.

    Raises BlockingIOError or filelock.Timeout if another process holds it, other OSErrors for all else. filelock is
    for Windows: elsewhere it would, where the file system has no locks, go by whether the file exists, and it always
    does after the first run.
    """
    if os.name == "nt":
        lock = filelock.FileLock(path)
        lock.acquire(blocking=wait)
        return lock.release
    import fcntl

    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        file.close()
        raise
    return file.close


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; UserError that names it if the disk is full, say, FileInUse if it is open."""
    temporary = path.with_name(TEMPORARY.format(path.name))
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where a name is too long, removing it fails, too
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path} can't be written: {error.strerror}") from error
    except FileInUse:
        temporary.unlink(missing_ok=True)
        raise


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
    except Exception as error:  # torch.load raises many kinds on damaged and foreign files
        unsafe = re.search("GLOBAL|Can only (create|build)|for unrecognized function", str(error))
        what = "holds pickled objects, which are never executed" if unsafe else "is cut short or no torch.save file"
        raise UserError(f"{path} {what}: expected tensors and plain data") from error
