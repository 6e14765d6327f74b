"""What an experiment is: its settings, each with its flag and its limits."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from torch import nn

from cifar10lab.data.loading import DATA_DIR
from cifar10lab.devices.execution import device_name
from cifar10lab.files.writing import expanded
from cifar10lab.models.source import HERE, import_source
from cifar10lab.terminal.arguments import ArgumentParser, HelpFormatter
from cifar10lab.terminal.errors import WrongOption

OPTIMIZERS = ("sgd", "adamw")  # torch's own
SCHEDULES = ("constant", "cosine", "linear", "one-cycle")  # as `learning_rate` in schedule.py computes them
PADDINGS = ("constant", "reflect")  # black, or the image mirrored
FLIPS = ("random", "alternating")
PRECISIONS = ("auto", "fp32", "bf16")
DATASETS = ("auto", "cifar10", "synthetic")
RESOLUTIONS_HELP = "training images' sizes, as 24,28,32, each for an equal part of the epochs; tested at 32"
VALIDATION_HELP = "training images to keep out of training, for choosing the best epoch; 0: the test images choose"


def image_sizes(text: str) -> str:
    """ "24, 28,32" -> "24,28,32"; "" for none. ValueError for anything but sizes from 1 to 32 pixels."""
    sizes = [int(word) for word in text.split(",")] if text else []
    if not all(1 <= size <= 32 for size in sizes):
        raise ValueError("sizes are from 1 to 32 pixels")
    return ",".join(map(str, sizes))


def flag(help_text: str, default: object = dataclasses.MISSING, **limits: object) -> dataclasses.Field:
    """A setting with a flag on the command line, and the limits within which `checked` accepts it.

    `limits`: `at_least` and `below` for numbers, `choices` for texts, or `parse`, a function that returns the value in
    its own form or raises ValueError with the reason. `metavar` and `action` are argparse's.
    """
    return dataclasses.field(default=default, metadata={"help": help_text, **limits})


@dataclass(frozen=True)
class Settings:
    """One experiment: its script's stated settings, with the command line's changes."""

    experiment: str  # the script's name
    folder: str  # under modelset/
    model: type[nn.Module]  # takes float32 images (N, 3, 32, 32), gives logits (N, 10)
    epochs: int = flag("passes over the training images", at_least=1, below=2**31)
    lr: float = flag("learning rate; with one-cycle the highest", at_least=0)
    momentum: float = flag("SGD's momentum, or AdamW's first beta", at_least=0, below=1)
    batch_size: int = flag("images per step, over all GPUs and processes", at_least=1, below=2**31)
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)  # arguments of the model's constructor
    optimizer: str = flag("torch.optim.SGD or AdamW", "sgd", choices=OPTIMIZERS)
    nesterov: bool = flag("Nesterov's momentum, with SGD", False)
    weight_decay: float = flag("L2 regularisation; as the optimizer defines it", 0.0, at_least=0)
    schedule: str = flag("of the learning rate, over the run's epochs", "constant", choices=SCHEDULES)
    resolutions: str = flag(RESOLUTIONS_HELP, "", parse=image_sizes, metavar="PIXELS")
    label_smoothing: float = flag("part of each label that is shared by all classes", 0.0, at_least=0, below=1)
    augment: bool = flag("random crop and horizontal flip", False)
    crop_padding: int = flag("with --augment: how far crops are shifted", 4, at_least=0, below=32, metavar="PIXELS")
    padding_mode: str = flag("with --augment: what a shifted crop shows beyond the image", "constant", choices=PADDINGS)
    flips: str = flag("with --augment: by chance, or every image in every other epoch", "random", choices=FLIPS)
    cutout: int = flag(
        "with --augment: side of a square without content; 0: none", 0, at_least=0, below=64, metavar="PIXELS"
    )
    data_parallel: bool = False  # started without torchrun: nn.DataParallel over all visible GPUs
    seed: int = flag("of the weights, the order of images, and dropout", 0, at_least=0, below=2**32)
    validation_images: int = flag(VALIDATION_HELP, 0, at_least=0, below=2**31, metavar="N")
    device: str = flag("auto, cpu, cuda, cuda:N or mps", "auto", parse=device_name)
    precision: str = flag("auto: bf16 if the model gains from it on this device", "auto", choices=PRECISIONS)
    dataset: str = flag("auto: CIFAR-10, or a synthetic stand-in where it can't be had", "auto", choices=DATASETS)
    data_dir: Path = flag("where CIFAR-10 is, or is downloaded to", DATA_DIR, parse=expanded, metavar="DIR")  # noqa: RUF009
    output: Path | None = flag("folder of the results, if not under modelset/", None, parse=expanded, metavar="DIR")  # noqa: RUF009
    resume: bool = flag("continue from the folder's checkpoint.pth", False, action="store_true")


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
KINDS = typing.get_type_hints(Settings)
# The settings that decide a run's result, in the order of loss.json and of folders' names; there, the model's own
# options come after the first four.
RECORDED = ("lr", "momentum", "weight_decay", "batch_size", "augment", "schedule", "precision", "epochs", "seed",
            "nesterov", "label_smoothing", "crop_padding", "padding_mode", "flips", "validation_images",
            "resolutions", "optimizer", "cutout")  # fmt: skip


def options_of(settings: Settings) -> dict[str, object]:
    """What the model's constructor gets: its defaults, as far as JSON can keep them, updated with `settings.options`.

    Defaults that are named like a setting, such as `device`, are left out; WrongOption for such an option.
    """
    if clash := KINDS.keys() & settings.options.keys():
        raise WrongOption(f"{settings.model.__name__} can't have an option {min(clash)}: every run has such a setting")
    defaults = {name: p.default for name, p in inspect.signature(settings.model).parameters.items()}
    return {name: v for name, v in defaults.items() if name not in KINDS and is_json(v)} | dict(settings.options)


def is_json(value: object) -> bool:
    """Whether JSON can keep the value: a number, text or None; or lists, tuples and dictionaries of these."""
    with contextlib.suppress(TypeError, ValueError):
        return bool(json.dumps(value, allow_nan=False))
    return False


def option_kinds(model: type[nn.Module]) -> dict[str, type]:
    """Each constructor argument's type: as annotated (int for `int | None`), otherwise its default's."""
    try:
        hints = typing.get_type_hints(model.__init__ if isinstance(model, type) else model)
    except Exception:  # annotations may name what only a type checker imports
        hints = {}
    kinds = {}
    for name, parameter in inspect.signature(model).parameters.items():
        kind = hints.get(name, type(parameter.default))
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            kind = next(inner for inner in typing.get_args(kind) if inner is not type(None))
        kind = typing.get_origin(kind) or kind
        kinds[name] = kind if kind in (bool, int, float, str, tuple) else type(parameter.default)
    return kinds


def recorded_options(config: Mapping[str, object], model: type[nn.Module]) -> dict[str, object]:
    """The model's options in a run's `config`; JSON's lists become tuples where the constructor takes tuples."""
    kinds, options = option_kinds(model), {name: value for name, value in config.items() if name not in KINDS}
    tuples = [name for name, value in options.items() if isinstance(value, list) and kinds.get(name) is tuple]
    return options | {name: tuple(options[name]) for name in tuples}


def config_of(settings: Settings) -> dict[str, object]:
    """The settings that decide a run's result, as in `loss.json`; WrongOption for options that JSON can't keep."""
    values = {name: getattr(settings, name) for name in RECORDED}
    first = {name: values.pop(name) for name in RECORDED[:4]}
    config = {"model": settings.model.__name__, **first, **options_of(settings), **values}
    try:  # NumPy's numbers become Python's
        return json.loads(json.dumps(config, allow_nan=False, default=operator.methodcaller("item")))
    except (AttributeError, TypeError, ValueError) as error:
        raise WrongOption(f"a model's options must be finite numbers, texts or truth values: {error}") from error


def checked(settings: Settings) -> Settings:
    """The settings in their own types, so that 0.5 from NumPy is Python's and `~` in paths is expanded.

    WrongOption that names a setting beyond its limits. The command line's settings and a notebook's come here alike.
    """
    values = {name: checked_value(name, getattr(settings, name)) for name, field in FIELDS.items() if field.metadata}
    if values["nesterov"] and not values["momentum"]:
        raise WrongOption("--nesterov needs a --momentum above 0; --no-nesterov does without")
    if values["nesterov"] and values["optimizer"] != "sgd":
        raise WrongOption("--nesterov is of --optimizer sgd; --no-nesterov does without")
    if values["cutout"] and not values["augment"]:
        raise WrongOption("--cutout needs --augment")
    settings = dataclasses.replace(settings, **values)
    config = config_of(settings)
    return dataclasses.replace(settings, options=recorded_options(config, settings.model))


def checked_value(name: str, value: object) -> object:
    """A setting's value in the setting's type; WrongOption if it is beyond the setting's limits."""
    limits, kind = FIELDS[name].metadata, KINDS[name]
    try:
        if "parse" in limits:
            return None if value is None else limits["parse"](value)
        typed = kind(value)
        if typed != value:
            raise ValueError(f"it is no {kind.__name__}")
        if typed not in limits.get("choices", [typed]):
            raise ValueError(f"choose from {', '.join(limits['choices'])}")
        low, high = limits.get("at_least", -math.inf), limits.get("below", math.inf)
        if kind in (int, float) and not low <= typed < high:
            raise ValueError(f"at least {low}" if high == math.inf else f"at least {low} and below {high}")
        return typed
    except (TypeError, ValueError) as error:
        raise WrongOption(f"--{name.replace('_', '-')} can't be {str(value)!r}: {error}") from error


class ScriptsParser(ArgumentParser):
    """Raises WrongOption for wrong arguments, so that of several processes with the same ones, one prints the error."""

    def error(self, message: str) -> NoReturn:
        raise WrongOption(message)


def parse_arguments(stated_settings: Settings, description: str | None) -> list[Settings]:
    """The stated settings with the command line's changes, once for each seed; `checked` is still to see them.

    WrongOption for arguments that can't be read.
    """
    parser, options = ScriptsParser(description=description, formatter_class=HelpFormatter), options_of(stated_settings)
    model = stated_settings.model
    either = parser.add_mutually_exclusive_group()
    for name, field in FIELDS.items():
        if field.metadata:
            add_flag(either if name == "seed" else parser, name, KINDS[name], field.metadata)
    several = "several runs, one after another: 3 for the seeds 0, 1 and 2, or a list as 0,3,7"
    either.add_argument("--seeds", type=seed_list, default=argparse.SUPPRESS, help=several)
    own = parser.add_argument_group(model.__name__, inspect.cleandoc(model.__doc__ or ""))
    kinds = option_kinds(model)
    for name, value in options.items():
        kind = kinds.get(name, type(value))
        if kind in (bool, int, float, str):
            add_flag(own, name, kind, {"help": "of the model"})
    parser.add_argument("--local-rank", help=argparse.SUPPRESS)  # python -m torch.distributed.launch gives it
    parser.set_defaults(**vars(stated_settings) | options)
    values = vars(parser.parse_args())
    del values["local_rank"]
    seeds = values.pop("seeds", None)
    settings = Settings(**values | {"options": {name: values.pop(name) for name in options}})
    if seeds is None:
        return [settings]
    output = settings.output and expanded(settings.output)
    return [dataclasses.replace(settings, seed=seed, output=output and output / f"seed={seed}") for seed in seeds]


def add_flag(parser: argparse._ActionsContainer, name: str, kind: Callable, about: Mapping[str, object]) -> None:
    """Add the flag of a setting or a model's option; `about` is the metadata that `flag` makes. `checked` limits it."""
    how: dict[str, object] = {"type": str if "parse" in about else kind, "metavar": about.get("metavar")}
    if "choices" in about:
        how["metavar"] = f"{{{','.join(about['choices'])}}}"
    if kind is bool:
        how = {"action": about.get("action", argparse.BooleanOptionalAction)}
    parser.add_argument(f"--{name.replace('_', '-')}", **how, help=about["help"])


def seed_list(text: str) -> list[int]:
    """An argparse type: "3" -> [0, 1, 2]; "0,3,7" -> [0, 3, 7]."""
    numbers = [int(word) for word in text.split(",")]
    seeds = numbers if len(numbers) > 1 else list(range(numbers[0]))
    if not seeds or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of runs, as 3, nor a list of seeds, as 0,3,7")
    return seeds


def settings_of_script(experiment: str) -> Settings | None:
    """The stated settings of the experiment's script; None if there is no such script beside common.py.

    UserError if the script can't be imported.
    """
    if not os.path.isfile(HERE / f"{experiment}.py"):
        return None
    settings = getattr(import_source(f"{experiment}.py"), "SETTINGS", None)
    # By name, since a notebook may have reloaded the class.
    return settings if type(settings).__name__ == Settings.__name__ else None
