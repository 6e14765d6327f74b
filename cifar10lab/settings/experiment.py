"""What an experiment is: its settings, each with its flag and its limits."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import json
import math
import operator
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cifar10lab.data.loading import DATA_DIR
from cifar10lab.devices.execution import device_name
from cifar10lab.files.writing import expanded
from cifar10lab.terminal.arguments import ArgumentParser, HelpFormatter, finite_number, number_within
from cifar10lab.terminal.errors import UserError, WrongOption

HERE = Path(__file__).resolve().parents[2]  # where the scripts are

SCHEDULES = ("constant", "cosine", "linear", "one-cycle")  # as common.py computes them in `learning_rate`
PADDINGS = ("constant", "reflect")  # black, or the image mirrored
FLIPS = ("random", "alternating")
PRECISIONS = ("auto", "fp32", "bf16")
DATASETS = ("auto", "cifar10", "synthetic")
RESOLUTIONS_HELP = "training images' sizes, as 24,28,32, each for an equal part of the epochs; tested at 32"
VALIDATION_HELP = "training images to keep out of training, for choosing the best epoch; 0: the test images choose"


def image_sizes(text: str) -> str:
    """An argparse type: image sizes from 1 to 32 pixels, as "24,28,32"; "" for none."""
    return ",".join(str(number_within(int, 1, 33)(word)) for word in text.split(",")) if text else ""


def flag(help_text: str, default: object = dataclasses.MISSING, **limits: object) -> dataclasses.Field:
    """A setting with a flag on the command line.

    `limits`: `at_least` and `below` for a number, `choices` for a text, or `parse`, an argparse type, for another one.
    """
    return dataclasses.field(default=default, metadata={"help": help_text, **limits})


@dataclass(frozen=True)
class Settings:
    """One experiment: what its script states, with what the command line changed."""

    experiment: str  # the script's name
    folder: str  # under modelset/
    model: type[nn.Module]  # takes float32 images (N, 3, 32, 32), gives logits (N, 10)
    epochs: int = flag("passes over the training images", at_least=1, below=2**31)
    lr: float = flag("learning rate; with one-cycle the highest", at_least=0)
    momentum: float = flag("SGD momentum", at_least=0, below=1)
    batch_size: int = flag("images per step, over all GPUs and processes", at_least=1, below=2**31)
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)  # arguments of the model's constructor
    nesterov: bool = flag("Nesterov's momentum", False)
    weight_decay: float = flag("L2 regularisation", 0.0, at_least=0)  # as torch.optim.SGD defines it
    schedule: str = flag("of the learning rate, over the run's epochs", "constant", choices=SCHEDULES)
    resolutions: str = flag(RESOLUTIONS_HELP, "", parse=image_sizes, metavar="PIXELS")
    # As torch.nn.CrossEntropyLoss defines it.
    label_smoothing: float = flag("part of each label that is shared by all classes", 0.0, at_least=0, below=1)
    augment: bool = flag("random crop and horizontal flip", False)
    crop_padding: int = flag("with --augment: how far crops are shifted", 4, at_least=0, below=32, metavar="PIXELS")
    padding_mode: str = flag("with --augment: what a shifted crop shows beyond the image", "constant", choices=PADDINGS)
    flips: str = flag("with --augment: by chance, or every image in every other epoch", "random", choices=FLIPS)
    data_parallel: bool = False  # started without torchrun: nn.DataParallel over all visible GPUs
    seed: int = flag("of the weights, the order of images, and dropout", 0, at_least=0, below=2**32)
    validation_images: int = flag(VALIDATION_HELP, 0, at_least=0, below=2**31, metavar="N")
    device: str = flag("auto, cpu, cuda, cuda:N or mps", "auto", parse=device_name)
    precision: str = flag("auto: bf16 if the model gains from it on this device", "auto", choices=PRECISIONS)
    dataset: str = flag("auto: CIFAR-10, or a synthetic stand-in where it can't be had", "auto", choices=DATASETS)
    data_dir: Path = flag("where CIFAR-10 is, or is downloaded to", DATA_DIR, parse=expanded, metavar="DIR")  # noqa: RUF009
    output: Path | None = flag("folder of the results, if not under modelset/", None, parse=expanded, metavar="DIR")  # noqa: RUF009
    resume: bool = flag("continue from the folder's checkpoint.pth", False, action="store_true")


FIELDS = dataclasses.fields(Settings)
KINDS = typing.get_type_hints(Settings)
# Settings that older files say nothing of: they were made with what is now the default.
ADDED_LATER = ("nesterov", "label_smoothing", "crop_padding", "padding_mode", "flips", "validation_images")
EARLIER_VALUES = {name: getattr(Settings, name) for name in (*ADDED_LATER, "resolutions")}


def options_of(settings: Settings) -> dict[str, object]:
    """What the model's constructor gets: its own defaults, and the settings' options in their place.

    A default whose name is that of a setting, such as `device`, is left alone. WrongOption for such an option.
    """
    if clash := KINDS.keys() & settings.options.keys():
        raise WrongOption(f"{settings.model.__name__} can't have an option {min(clash)}: every run has such a setting")
    parameters = inspect.signature(settings.model).parameters.values()
    defaults = {p.name: p.default for p in parameters if isinstance(p.default, (bool, int, float, str))}
    return {name: value for name, value in defaults.items() if name not in KINDS} | dict(settings.options)


def config_of(settings: Settings) -> dict[str, object]:
    """The settings that decide a run's result, as `loss.json` keeps them; WrongOption if it can't."""
    optimisation = {name: getattr(settings, name) for name in ("lr", "momentum", "weight_decay", "batch_size")}
    names = ("augment", "schedule", "precision", "epochs", "seed", *EARLIER_VALUES)
    rest = {name: getattr(settings, name) for name in names}
    config = {"model": settings.model.__name__, **optimisation, **options_of(settings), **rest}
    try:  # Python's numbers, also where numpy's were given
        return json.loads(json.dumps(config, allow_nan=False, default=operator.methodcaller("item")))
    except (AttributeError, TypeError, ValueError) as error:
        raise WrongOption(f"settings must be finite numbers, texts or truth values: {error}") from error


def validated(settings: Settings) -> Settings:
    """The settings with Python's numbers in place of numpy's; UserError that names those with an impossible value.

    The command line's are checked by argparse already, those of a notebook are not.
    """
    config = config_of(settings)
    options = {name: config[name] for name in options_of(settings)}
    numbers = {name: value for name, value in config.items() if name in KINDS and name != "model"}
    settings = dataclasses.replace(settings, **numbers, options=options)
    values = {field.name: (getattr(settings, field.name), field.metadata) for field in FIELDS}
    if wrong := [f"{name} {value!r}" for name, (value, limits) in values.items() if not allows(name, limits, value)]:
        raise UserError(f"impossible settings: {', '.join(wrong)}")
    if settings.nesterov and not settings.momentum:
        raise WrongOption("--nesterov needs a --momentum above 0; --no-nesterov does without")
    return settings


def allows(name: str, limits: Mapping[str, object], value: object) -> bool:
    """Whether the setting of that name, with these limits, may have this value."""
    kind = KINDS[name]
    if kind in (int, float):
        kinds = (int,) if kind is int else (int, float)
        return type(value) in kinds and limits["at_least"] <= value < limits.get("below", math.inf)
    if kind is bool:
        return type(value) is bool
    if kind is str and "parse" in limits:
        with contextlib.suppress(argparse.ArgumentTypeError):
            return type(value) is str and limits["parse"](value) == value
        return False
    return value in limits.get("choices", [value])


def parse_arguments(stated: Settings, description: str | None) -> Settings:
    """The stated settings with the command line's changes; wrong arguments exit with code 2."""
    parser, options = ArgumentParser(description=description, formatter_class=HelpFormatter), options_of(stated)
    for field in FIELDS:
        if "help" in field.metadata:
            how = how_to_parse(KINDS[field.name], **field.metadata)
            parser.add_argument(f"--{field.name.replace('_', '-')}", **how, help=field.metadata["help"])
    own = parser.add_argument_group(stated.model.__name__, inspect.cleandoc(stated.model.__doc__ or ""))
    for name, value in options.items():
        parse = finite_number if isinstance(value, float) else type(value)
        how = how_to_parse(type(value), parse=parse)
        own.add_argument(f"--{name.replace('_', '-')}", **how, help="of the model")
    parser.set_defaults(**vars(stated) | options)
    values = vars(parser.parse_args())
    return Settings(**values | {"options": {name: values.pop(name) for name in options}})


def how_to_parse(kind: type, **limits: object) -> dict[str, object]:
    """What argparse is to be told of a flag whose values are of that kind and within these limits."""
    if kind is bool:
        return {"action": limits.get("action", argparse.BooleanOptionalAction)}
    if "choices" in limits:
        return {"choices": limits["choices"]}
    parse = limits.get("parse") or number_within(kind, limits["at_least"], limits.get("below", math.inf))
    return {"type": parse, "metavar": limits.get("metavar")}


def stated_settings(experiment: str) -> Settings | None:
    """What the experiment's script states; None if it isn't one of the scripts beside common.py.

    UserError if the script can't be imported.
    """
    if not re.fullmatch(r"\w{1,99}", experiment) or not (HERE / f"{experiment}.py").is_file():
        return None
    try:
        settings = getattr(importlib.import_module(experiment), "SETTINGS", None)
    except (Exception, SystemExit) as error:  # whatever somebody's script does
        raise UserError(f"{experiment}.py can't be imported: {type(error).__name__}: {error}") from error
    # By its name: what a notebook has reloaded is another class.
    return settings if type(settings).__name__ == Settings.__name__ else None
