"""What an experiment is: its settings, each with its flag and its limits."""

import argparse
import dataclasses
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from cifar10lab.data.loading import DATA_DIR
from cifar10lab.devices.execution import device_name
from cifar10lab.files.writing import expanded
from cifar10lab.models.source import HERE, import_source, option_kinds
from cifar10lab.terminal.arguments import ArgumentParser, HelpFormatter, flag_name, number_within
from cifar10lab.terminal.errors import WrongOption


def image_sizes(text: str) -> str:
    """ "24, 28,32" -> "24,28,32"; "" for none. ValueError for anything but sizes from 1 to 32 pixels."""
    sizes = [int(word) for word in text.split(",")] if text else []
    if not all(1 <= size <= 32 for size in sizes):
        raise ValueError("sizes are from 1 to 32 pixels")
    return ",".join(map(str, sizes))


def flag(help_text: str, read: Callable, default: object = dataclasses.MISSING, **about: object) -> dataclasses.Field:
    """A setting with a flag: `read` makes its value of a text or of one from Python; `about` is for argparse."""
    return dataclasses.field(default=default, metadata={"read": read, "flag": {"help": help_text, **about}})


def choice(help_text: str, *choices: str | bool, **about: object) -> dataclasses.Field:
    """A setting that is one of these values, by default the first."""

    def read(value: object) -> str | bool:
        if value not in choices:
            raise ValueError(f"choose from {', '.join(map(str, choices))}")
        return choices[choices.index(value)]  # not NumPy's

    return flag(help_text, read, choices[0], **about or {"metavar": f"{{{','.join(choices)}}}"})


@dataclasses.dataclass(frozen=True)
class Settings:
    """One experiment: its script's stated settings, with the command line's changes."""

    experiment: str  # the script's name
    folder: str  # under modelset/
    model: type[nn.Module]  # takes float32 images (N, 3, 32, 32), gives logits (N, 10)
    epochs: int = flag("passes over the training images", number_within(int, 1, 2**31))
    lr: float = flag("learning rate; with one-cycle the highest", number_within(float, 0, math.inf))
    momentum: float = flag("SGD's momentum, or AdamW's first beta", number_within(float, 0, 1))
    batch_size: int = flag("images per step, over all GPUs and processes", number_within(int, 1, 2**31))
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)  # arguments of the model's constructor
    optimizer: str = choice("torch.optim.SGD or AdamW", "sgd", "adamw")
    nesterov: bool = choice("Nesterov's momentum, with SGD", False, True, action=argparse.BooleanOptionalAction)
    weight_decay: float = flag("L2 regularisation; as the optimizer defines it", number_within(float, 0, math.inf), 0.0)
    schedule: str = choice("of the learning rate, over the run's epochs", "constant", "cosine", "linear", "one-cycle")
    resolutions: str = flag("training images' sizes, as 24,28,32; tested at 32", image_sizes, "", metavar="PIXELS")
    label_smoothing: float = flag("part of each label that is shared by all classes", number_within(float, 0, 1), 0.0)
    augment: bool = choice("random crop and horizontal flip", False, True, action=argparse.BooleanOptionalAction)
    crop_padding: int = flag("with --augment: crops are shifted so far", number_within(int, 0, 32), 4, metavar="PIXELS")
    padding_mode: str = choice("with --augment: beyond the image, black or the image mirrored", "constant", "reflect")
    flips: str = choice("with --augment: by chance, or every image in every other epoch", "random", "alternating")
    cutout: int = flag("with --augment: a blank square's side; 0: none", number_within(int, 0, 64), 0, metavar="PIXELS")
    data_parallel: bool = False  # started without torchrun: nn.DataParallel over all visible GPUs
    seed: int = flag("of the weights, the order of images, and dropout", number_within(int, 0, 2**32), 0)
    validation_images: int = flag("held out, to choose the best epoch by", number_within(int, 0, 2**31), 0, metavar="N")
    device: str = flag("auto, cpu, cuda, cuda:N or mps", device_name, "auto")
    precision: str = choice("auto: bf16 if the model gains from it on this device", "auto", "fp32", "bf16")
    dataset: str = choice("auto: CIFAR-10, or a stand-in where it can't be had", "auto", "cifar10", "synthetic")
    data_dir: Path = flag("where CIFAR-10 is, or is downloaded to", expanded, DATA_DIR, metavar="DIR")  # noqa: RUF009
    output: Path | None = flag("the results' folder, if not under modelset/", expanded, None, metavar="DIR")  # noqa: RUF009
    resume: bool = choice("continue from the folder's checkpoint.pth", False, True, action="store_true")


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
TAKEN = {*FIELDS, "seeds", "help", "local_rank"}  # names that no option of a model can have
# The settings that decide a run's result, in the order of loss.json and of folders' names; there, the model's own
# options come after the first four.
RECORDED = ("lr", "momentum", "weight_decay", "batch_size", "augment", "schedule", "precision", "epochs", "seed",
            "nesterov", "label_smoothing", "crop_padding", "padding_mode", "flips", "validation_images",
            "resolutions", "optimizer", "cutout")  # fmt: skip


def model_options(model: type[nn.Module], given: Mapping[str, object]) -> dict[str, object]:
    """All arguments of the model's constructor as JSON keeps them: its defaults, updated with those that are given.

    Defaults that JSON can't keep or that are named like a setting are left out; WrongOption for such among the given.
    """
    if not hasattr(model, "__name__"):
        raise WrongOption(f"the model can't be a {type(model).__name__}: give its class, or a function that makes it")
    if clash := TAKEN & given.keys():
        raise WrongOption(f"{model.__name__} can't have an option {min(clash)}: every run has such a setting")
    defaults = {name: p.default for name, p in inspect.signature(model).parameters.items() if name not in TAKEN}
    options = {}
    for name, value in (defaults | dict(given)).items():
        try:  # NumPy's numbers become Python's
            options[name] = json.loads(json.dumps(value, allow_nan=False, default=lambda number: number.item()))
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            if name in given:
                can_be = "options are finite numbers, texts or truth values"
                raise WrongOption(f"{flag_name(name)} can't be {value}: {can_be}") from error
    return options


def config_of(settings: Settings) -> dict[str, object]:
    """The settings that decide a run's result, as in `loss.json`; WrongOption for options that JSON can't keep."""
    values = {name: getattr(settings, name) for name in RECORDED}
    first = {name: values.pop(name) for name in RECORDED[:4]}
    return {"model": settings.model.__name__, **first, **model_options(settings.model, settings.options), **values}


def differences(config: dict[str, object], other: dict[str, object]) -> dict[str, object]:
    """The settings in `config` that differ from `other`. Absent ones have their default, an option then 0 or off."""
    defaults = {name: FIELDS[name].default for name in RECORDED if FIELDS[name].default is not dataclasses.MISSING}
    config, other = config | defaults | config, defaults | other  # in the order of `config`
    return {name: value for name, value in config.items() if (value != other[name] if name in other else value)}


def run_folder(settings: Settings, stated_settings: Settings | None, dataset: str) -> tuple[Path, str]:
    """A run's folder, `--output` or modelset/Resnet/lr=0.01,seed=1/, say; and "lr=0.01,seed=1", what differs.

    From the stated settings, by default those of the script beside common.py; UserError if this can't be imported.
    """
    script = f"{settings.experiment}.py"
    if stated_settings is None and os.path.isfile(HERE / script):
        stated_settings = getattr(import_source(script), "SETTINGS", None)
    differing = differences(config_of(settings), config_of(stated_settings or settings))
    texts = [f"{name}={str(v).removesuffix('.0') if isinstance(v, float) else v}" for name, v in differing.items()]
    name = ",".join(texts if dataset == "cifar10" else [*texts, f"dataset={dataset}"])
    folder = settings.output or HERE / "modelset" / settings.folder / re.sub(r"[/\\]", "_", name)
    return folder, ",".join(texts)


def checked(settings: Settings) -> Settings:
    """The settings in their own types, so that 0.5 from NumPy is Python's and `~` in paths is expanded.

    WrongOption that names a setting beyond its limits. The command line's settings and a notebook's come here alike.
    """
    values = {"options": model_options(settings.model, settings.options)}
    for name, field in FIELDS.items():
        value = getattr(settings, name)
        if field.metadata and value is not field.default:
            try:
                values[name] = field.metadata["read"](value)
            except (AttributeError, TypeError, ValueError, argparse.ArgumentTypeError) as error:
                raise WrongOption(f"{flag_name(name)} can't be {str(value)!r}: {error}") from error
    settings = dataclasses.replace(settings, **values)
    if settings.nesterov and not (settings.optimizer == "sgd" and settings.momentum):
        raise WrongOption("--nesterov needs --optimizer sgd and a --momentum above 0; --no-nesterov does without")
    if settings.cutout and not settings.augment:
        raise WrongOption("--cutout needs --augment")
    if settings.epochs < settings.resolutions.count(",") + 1:
        raise WrongOption("--resolutions needs an epoch for each size")
    return settings


def parse_arguments(stated_settings: Settings, description: str | None) -> list[Settings]:
    """The stated settings with the command line's changes, for each seed; exits or raises WrongOption otherwise."""
    parser, model = ArgumentParser(description=description, formatter_class=HelpFormatter), stated_settings.model
    options, kinds = model_options(model, stated_settings.options), option_kinds(model)
    either = parser.add_mutually_exclusive_group()
    for name, field in FIELDS.items():
        if field.metadata:  # whose "read" is left to `checked`
            (either if name == "seed" else parser).add_argument(flag_name(name), **field.metadata["flag"])
    several = "several runs, one after another: 3 for the seeds 0, 1 and 2, or a list as 0,3,7"
    either.add_argument("--seeds", type=seed_list, default=argparse.SUPPRESS, help=several)
    own = parser.add_argument_group(model.__name__, inspect.cleandoc(model.__doc__ or ""))
    for name, value in options.items():
        kind = kinds.get(name, type(value))
        if kind in (bool, int, float, str):
            how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
            own.add_argument(flag_name(name), **how, help="of the model")
    parser.add_argument("--local-rank", help=argparse.SUPPRESS)  # python -m torch.distributed.launch gives it
    parser.set_defaults(**vars(stated_settings) | options)
    given = vars(parser.parse_args())
    values = {name: given[name] for name in FIELDS} | {"options": {name: given[name] for name in options}}
    settings = checked(Settings(**values))
    if "seeds" not in given:
        return [settings]
    out = settings.output
    return [dataclasses.replace(settings, seed=seed, output=out and out / f"seed={seed}") for seed in given["seeds"]]


def seed_list(text: str) -> list[int]:
    """An argparse type: "3" -> [0, 1, 2]; "0,3,7" -> [0, 3, 7]."""
    numbers = [FIELDS["seed"].metadata["read"](word) for word in text.split(",")]
    seeds = numbers if len(numbers) > 1 else list(range(numbers[0]))
    if not seeds or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of runs, as 3, nor a list of seeds, as 0,3,7")
    return seeds
