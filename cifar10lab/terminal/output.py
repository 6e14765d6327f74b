"""Standard output that never ends a run, whatever becomes of what is behind it; progress; the end by a signal."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import NoReturn

from tqdm import tqdm


class LastingStream:
    """A text stream that goes on in silence when what it writes to is gone: a terminal, or the other end of a pipe."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            self.silence()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            self.silence()

    def silence(self) -> None:
        """Let all that is still to come, and what is buffered, go nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


def make_output_last() -> None:
    """Call this first in a script. A notebook's output stays as it is."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started the script
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # A log file shows each line when it is written; a character that it can't show is no reason to stop.
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
            setattr(sys, name, LastingStream(stream))


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
