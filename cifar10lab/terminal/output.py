"""Standard output that never ends a run, whatever becomes of what is behind it; progress; the end by a signal."""

import io
import os
import signal
import sys
from typing import NoReturn

from tqdm import tqdm


class LastingFile(io.FileIO):
    """A file that takes what is written in silence when nobody is behind it any more: a terminal, or a pipe."""

    def write(self, content: bytes) -> int:
        try:
            return super().write(content)
        except OSError:
            return len(content)


def make_output_last() -> None:
    """Call this first in a script. A notebook's output stays as it is."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started the script
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # A log file shows each line when it is written; a character that it can't show is no reason to stop.
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
            if isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO):  # not the console of Windows
                lasting = io.BufferedWriter(LastingFile(stream.fileno(), "w", closefd=False))
                setattr(sys, name, io.TextIOWrapper(lasting, stream.encoding, stream.errors, line_buffering=True))


def end_by_signal(number: int) -> NoReturn:
    """End by that signal: after an exit code, a shell's loop would go on. A notebook, whose process stays, exits."""
    sys.stdout.flush()
    sys.stderr.flush()
    if not hasattr(sys, "ps1"):
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    sys.exit(128 + number)


def progress_bar(title: str, images: int, done: int, hidden: bool) -> tqdm:
    """Of an epoch's images, `done` of them so far; it shows where output is a terminal, unless it is hidden."""
    off = True if hidden else None  # None: tqdm looks whether output is a terminal
    return tqdm(total=images, initial=done, desc=title, unit=" images", unit_scale=True, leave=False, disable=off)
