"""argparse as these scripts use it: errors on one line, defaults in the help, numbers within limits."""

import argparse
import contextlib
import math
from collections.abc import Callable


class ArgumentParser(argparse.ArgumentParser):
    """argparse with errors on one line."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message}\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each default, and the script's docstring as it stands."""


def flag_name(name: str) -> str:
    """ "batch_size" -> "--batch-size"."""
    return f"--{name.replace('_', '-')}"


def number_within(kind: type, at_least: float, below: float) -> Callable[[object], float]:
    """An argparse type, also for numbers: an int or float from `at_least` up to, but not including, `below`."""

    def read(value: object) -> float:
        with contextlib.suppress(OverflowError, TypeError, ValueError):
            number = kind(value)
            if at_least <= number < below and number == float(value):
                return number
        what, limit = "whole number" if kind is int else "number", f" and below {below}" if below < math.inf else ""
        raise argparse.ArgumentTypeError(f"expected a {what} of at least {at_least}{limit}")

    return read
