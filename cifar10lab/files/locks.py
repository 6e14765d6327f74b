"""Folders that one process uses at a time."""

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from cifar10lab.files.writing import TEMPORARY
from cifar10lab.terminal.errors import UserError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # where a file system has no locks


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Make `folder`, keep other processes out of it, and remove what dead ones left half written.

    The system lets go of a dead process's lock. Where the file system has none, as on some clusters, nobody is kept out
    and nothing removed. With `wait` it waits, and a read-only folder is used as it is; otherwise, UserError for both.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock", fallback_to_soft=False)  # or a dead process's file would lock for ever
            try:
                stack.enter_context(lock.acquire(blocking=False))
            except Timeout:
                if not wait:
                    raise UserError(f"{folder} is in use by another process: wait or choose another --output") from None
                print(f"waiting for another process, which is preparing {folder}", file=sys.stderr)
                stack.enter_context(lock.acquire())
            for leftover in folder.glob(TEMPORARY.format("*")):
                leftover.unlink()
        except OSError as error:
            if error.errno in NO_LOCKS:
                print(f"{folder} can't be locked ({error.strerror}): start no second run that uses it", file=sys.stderr)
            elif not wait:
                raise UserError(f"{folder} can't be written: {error.strerror}") from error
        yield
