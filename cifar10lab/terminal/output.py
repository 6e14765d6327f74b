"""Standard output that never ends a run, whatever becomes of what is behind it; the end by a signal."""

import io
import os
import signal
import sys
from typing import NoReturn


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
