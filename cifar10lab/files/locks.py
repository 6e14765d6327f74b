"""Folders that one process uses at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from cifar10lab.files.writing import TEMPORARY
from cifar10lab.terminal.errors import UserError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # where a file system has no locks


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
def locked_run_folder(folder: Path) -> Iterator[None]:
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
