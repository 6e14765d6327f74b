"""Folders that one process uses at a time."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from cifar10lab.files.writing import TEMPORARY
from cifar10lab.terminal.errors import UserError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # where a file system has no locks


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Make `folder`, keep other processes out of it, and remove what dead ones left half written.

    The system lets go of a dead process's lock. Where the file system has no locks, as some of those of clusters,
    nobody is kept out and nothing removed. UserError if the folder can't be written, or if another process holds it
    and `wait` is false.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locked_file(folder / ".lock", wait=False))
            except (BlockingIOError, TimeoutError):
                if not wait:
                    in_use = f"{folder} is in use by another process"
                    raise UserError(f"{in_use}: wait for it, or choose another --output") from None
                print(f"waiting for another process, which is preparing {folder}", file=sys.stderr)
                stack.enter_context(locked_file(folder / ".lock", wait=True))
            for leftover in folder.glob(TEMPORARY.format("*")):
                leftover.unlink()
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise UserError(f"{folder} can't be written: {error.strerror}") from error
            reason = f"{folder} can't be locked ({error.strerror})"
            print(f"{reason}: don't start a second run that uses it", file=sys.stderr)
        yield


@contextlib.contextmanager
def locked_file(path: Path, wait: bool) -> Iterator[None]:
    """Lock a file for this process; BlockingIOError or TimeoutError if another holds it, OSError for all else.

    filelock is for Windows: elsewhere it may go by whether the file exists, which it always does after the first run.
    """
    if os.name == "nt":
        from filelock import FileLock

        with FileLock(path, blocking=wait):
            yield
    else:
        import fcntl

        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
