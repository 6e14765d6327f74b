"""argparse as these scripts use it: errors on one line, defaults in the help, numbers within limits."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from internals.files import UserError

if TYPE_CHECKING:
    from common import Settings


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


def finite(text: str) -> float:
    """An argparse type: a float that is neither infinite nor NaN."""
    with contextlib.suppress(ValueError):
        if math.isfinite(float(text)):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no finite number")


def kind_of(default: object) -> dict[str, object]:
    """What argparse is to be told of a flag with this default."""
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction}
    return {"type": finite if isinstance(default, float) else type(default)}


def device_name(text: str) -> str:
    """An argparse type: "auto", or a device that this machine has."""
    cuda = re.fullmatch(r"cuda(?::(\d+))?", text)
    there = int(cuda[1] or 0) < torch.cuda.device_count() if cuda else text in ("auto", "cpu", "mps")
    if not there or (text == "mps" and not torch.backends.mps.is_available()):
        gpus = torch.cuda.device_count()
        raise argparse.ArgumentTypeError(f"{text!r} is no device of this machine, which has {gpus} CUDA devices")
    return text


def checked(settings: Settings, config: dict[str, object]) -> Settings:
    """The settings with the plain numbers of `config`; UserError that names those with an impossible value.

    The command line's are checked by argparse already, those of a notebook are not.
    """
    names = {field.name for field in dataclasses.fields(settings)}
    own = {name: value for name, value in config.items() if name in names and name != "model"}
    options = {name: value for name, value in config.items() if name not in names}
    plain = dataclasses.replace(settings, **own, options=options)
    whole = ("epochs", 1), ("batch_size", 1), ("seed", 0), ("validation_images", 0)
    possible = {name: type(getattr(plain, name)) is int and getattr(plain, name) >= least for name, least in whole}
    for name, below in (("lr", math.inf), ("weight_decay", math.inf), ("momentum", 1)):
        possible[name] = type(getattr(plain, name)) in (int, float) and 0 <= getattr(plain, name) < below
    possible["schedule"] = plain.schedule in ("constant", "cosine")
    possible["precision"] = plain.precision in ("auto", "fp32", "bf16")
    possible["dataset"] = plain.dataset in ("auto", "cifar10", "synthetic")
    if wrong := [f"{name} {getattr(plain, name)!r}" for name, is_possible in possible.items() if not is_possible]:
        raise UserError(f"impossible settings: {', '.join(wrong)}")
    return plain
