"""argparse as these scripts use it: errors on one line, defaults in the help, numbers within limits."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable

import torch


class ArgumentParser(argparse.ArgumentParser):
    """argparse with errors on one line."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message}\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each default, and the script's docstring as it stands."""


def within(kind: type, low: float, below: float) -> Callable[[str], float]:
    """An argparse type: an int or float from `low` up to, but not including, `below`."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= kind(text) < below:
                return kind(text)
        what, limit = "whole number" if kind is int else "number", f" and below {below}" if below == 1 else ""
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what} of at least {low}{limit}")

    return parse


def device_name(text: str) -> str:
    """An argparse type: "auto", or a device that this machine has."""
    cuda = re.fullmatch(r"cuda(?::(\d+))?", text)
    there = int(cuda[1] or 0) < torch.cuda.device_count() if cuda else text in ("auto", "cpu", "mps")
    if not there or (text == "mps" and not torch.backends.mps.is_available()):
        gpus = torch.cuda.device_count()
        raise argparse.ArgumentTypeError(f"{text!r} is no device of this machine, which has {gpus} CUDA devices")
    return text
