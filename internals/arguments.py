"""argparse as these scripts use it: errors on one line, defaults in the help, numbers within limits."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from internals.files import UserError, WrongOption

if TYPE_CHECKING:
    from common import Settings

SCHEDULES = ("constant", "cosine", "one-cycle")
PADDING_MODES = ("constant", "reflect")
FLIPS = ("random", "alternating")


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
        what, limit = "whole number" if kind is int else "number", f" and below {below}" if below < 2**31 else ""
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


def settings_parser(description: str | None) -> ArgumentParser:
    """A parser with the flags that every experiment has; their defaults are still to be set."""
    parser = ArgumentParser(description=description, formatter_class=HelpFormatter)
    add, on_off = parser.add_argument, argparse.BooleanOptionalAction
    add("--epochs", type=within(int, 1, 2**31), help="passes over the training images")
    add("--lr", type=within(float, 0, math.inf), help="learning rate; with one-cycle the highest")
    add("--momentum", type=within(float, 0, 1), help="SGD momentum")
    add("--nesterov", action=on_off, help="Nesterov's momentum")
    add("--weight-decay", type=within(float, 0, math.inf), help="L2 regularisation")
    add("--batch-size", type=within(int, 1, 2**31), help="images per step, over all GPUs and processes")
    add("--schedule", choices=SCHEDULES, help="of the learning rate, over the run's epochs")
    add("--label-smoothing", type=within(float, 0, 1), help="part of each label that is shared by all classes")
    add("--augment", action=on_off, help="random crop and horizontal flip")
    add("--crop-padding", type=within(int, 0, 32), metavar="PIXELS", help="with --augment: how far crops are shifted")
    add("--padding-mode", choices=PADDING_MODES, help="with --augment: what a shifted crop shows beyond the image")
    add("--flips", choices=FLIPS, help="with --augment: by chance, or every image in every other epoch")
    add("--seed", type=within(int, 0, 2**32), help="of the weights, the order of images, and dropout")
    validation_help = "training images to keep out of training, for choosing the best epoch; 0: the test images choose"
    add("--validation-images", type=within(int, 0, 2**31), metavar="N", help=validation_help)
    add("--device", type=device_name, help="auto, cpu, cuda, cuda:N or mps")
    add("--precision", choices=("auto", "fp32", "bf16"), help="auto: bf16 if the model gains from it on this device")
    dataset_help = "auto: CIFAR-10, or a synthetic stand-in where it can't be had"
    add("--dataset", choices=("auto", "cifar10", "synthetic"), help=dataset_help)
    add("--data-dir", type=Path, metavar="DIR", help="where CIFAR-10 is, or is downloaded to")
    add("--output", type=Path, metavar="DIR", help="folder of the results, if not under modelset/")
    add("--resume", action="store_true", help="continue from the folder's checkpoint.pth")
    return parser


def checked(settings: Settings, config: dict[str, object]) -> Settings:
    """The settings with the plain numbers of `config`; UserError that names those with an impossible value.

    The command line's are checked by argparse already, those of a notebook are not.
    """
    names = {field.name for field in dataclasses.fields(settings)}
    own = {name: value for name, value in config.items() if name in names and name != "model"}
    options = {name: value for name, value in config.items() if name not in names}
    plain = dataclasses.replace(settings, **own, options=options)
    whole = ("epochs", 1), ("batch_size", 1), ("seed", 0), ("validation_images", 0), ("crop_padding", 0)
    possible = {name: type(getattr(plain, name)) is int and getattr(plain, name) >= least for name, least in whole}
    for name, below in (("lr", math.inf), ("weight_decay", math.inf), ("momentum", 1), ("label_smoothing", 1)):
        possible[name] = type(getattr(plain, name)) in (int, float) and 0 <= getattr(plain, name) < below
    possible["crop_padding"] = possible["crop_padding"] and plain.crop_padding <= 31
    truths = ("nesterov", "augment", "data_parallel", "resume")
    possible |= {name: type(getattr(plain, name)) is bool for name in truths}
    possible["schedule"] = plain.schedule in SCHEDULES
    possible["padding_mode"] = plain.padding_mode in PADDING_MODES
    possible["flips"] = plain.flips in FLIPS
    possible["precision"] = plain.precision in ("auto", "fp32", "bf16")
    possible["dataset"] = plain.dataset in ("auto", "cifar10", "synthetic")
    if wrong := [f"{name} {getattr(plain, name)!r}" for name, is_possible in possible.items() if not is_possible]:
        raise UserError(f"impossible settings: {', '.join(wrong)}")
    if plain.nesterov and not plain.momentum:
        raise WrongOption("--nesterov needs a --momentum above 0; --no-nesterov does without")
    return plain
