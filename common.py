"""What the CIFAR-10 experiments share, in the order a run flows.

settings and command line -> models -> one run's parts -> training and evaluation -> its state -> results -> a run

An experiment script states its `Settings` and calls `main`; a notebook calls `run`. Nothing runs on import.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from internals.arguments import checked, kind_of, settings_parser
from internals.cifar10 import DATA_DIR, Data, dataset_record, hold_out, load_data
from internals.execution import (
    Execution,
    InPrecision,
    environment_record,
    parallel_network,
    process_settings,
    start_execution,
    tiny_steps,
)
from internals.files import UserError, WrongOption, expanded, opened, read_torch, write_file, write_torch
from internals.loss_plot import draw_losses, finer_losses
from internals.original import original_text
from internals.output import make_output_last, progress_bar
from internals.processes import from_rank_0, leave_processes, total
from internals.words import LATER, describe, describe_epoch, describe_result, differences

HERE = Path(__file__).resolve().parent


class Interrupted(Exception):
    """A signal to stop arrived during training, and what was done is saved; `args[0]` is its number."""

    def __str__(self) -> str:
        return f"stopped by signal {self.args[0]} and saved: go on with resume=True"


# --- Settings and command line ----------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """One experiment: what its script states, with what the command line changed."""

    experiment: str  # the script's name
    folder: str  # under modelset/
    model: type[nn.Module]  # takes float32 images (N, 3, 32, 32), gives logits (N, 10)
    epochs: int
    lr: float
    momentum: float
    batch_size: int  # over all processes and GPUs together
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)  # arguments of the model's constructor
    nesterov: bool = False
    weight_decay: float = 0.0  # L2 regularisation, as torch.optim.SGD defines it
    schedule: str = "constant"  # or another one of `learning_rate`
    label_smoothing: float = 0.0  # as torch.nn.CrossEntropyLoss defines it
    augment: bool = False  # random crop and horizontal flip
    crop_padding: int = 4  # pixels on each side
    padding_mode: str = "constant"  # black, or "reflect"
    flips: str = "random"  # or "alternating": an image flipped in one epoch isn't in the next
    data_parallel: bool = False  # started without torchrun: nn.DataParallel over all visible GPUs
    seed: int = 0
    validation_images: int = 0  # training images, kept out of training, that choose the best epoch
    device: str = "auto"
    precision: str = "auto"
    dataset: str = "auto"
    data_dir: Path = DATA_DIR
    output: Path | None = None
    resume: bool = False


def options_of(settings: Settings) -> dict[str, object]:
    """What the model's constructor gets: its own defaults, and the settings' options in their place.

    A default whose name is that of a setting, such as `device`, is left alone. WrongOption for such an option.
    """
    names = {field.name for field in dataclasses.fields(Settings)}
    if clash := names & settings.options.keys():
        raise WrongOption(f"{settings.model.__name__} can't have an option {min(clash)}: every run has such a setting")
    parameters = inspect.signature(settings.model).parameters.values()
    plain = {p.name: p.default for p in parameters if isinstance(p.default, (bool, int, float, str))}
    return {name: value for name, value in plain.items() if name not in names} | dict(settings.options)


def config_of(settings: Settings) -> dict[str, object]:
    """The settings that decide a run's result, as `loss.json` keeps them; WrongOption if it can't."""
    optimisation = {name: getattr(settings, name) for name in ("lr", "momentum", "weight_decay", "batch_size")}
    rest = {name: getattr(settings, name) for name in ("augment", "schedule", "precision", "epochs", "seed", *LATER)}
    config = {"model": settings.model.__name__, **optimisation, **options_of(settings), **rest}
    try:
        return json.loads(json.dumps(config, allow_nan=False))  # plain numbers, also where numpy's were given
    except (TypeError, ValueError) as error:
        raise WrongOption(f"settings must be finite numbers, texts or truth values: {error}") from error


def parse_arguments(stated: Settings, description: str | None) -> Settings:
    """The stated settings with the command line's changes; wrong arguments exit with code 2."""
    parser, options = settings_parser(description), options_of(stated)
    own = parser.add_argument_group(stated.model.__name__, inspect.cleandoc(stated.model.__doc__ or ""))
    for name, value in options.items():
        own.add_argument(f"--{name.replace('_', '-')}", **kind_of(value), help="of the model")
    parser.set_defaults(**vars(stated) | options)
    values = vars(parser.parse_args())
    return Settings(**values | {"options": {name: values.pop(name) for name in options}})


def stated_settings(experiment: str) -> Settings | None:
    """What the experiment's script states; None if it isn't one of the scripts beside this file.

    UserError if the script can't be imported.
    """
    if not re.fullmatch(r"\w{1,99}", experiment) or not (HERE / f"{experiment}.py").is_file():
        return None
    try:
        settings = getattr(importlib.import_module(experiment), "SETTINGS", None)
    except (Exception, SystemExit) as error:  # whatever somebody's script does
        raise UserError(f"{experiment}.py can't be imported: {type(error).__name__}: {error}") from error
    return settings if isinstance(settings, Settings) else None


def run_folder(settings: Settings, stated: Settings, dataset: str) -> Path:
    """modelset/<experiment>/, with a subfolder named after what differs from the stated settings."""
    changed = differences(config_of(settings), config_of(stated))
    if dataset != "cifar10":
        changed["dataset"] = dataset
    return expanded(settings.output or HERE / "modelset" / settings.folder / re.sub(r"[/\\]", "_", describe(changed)))


# --- Models -----------------------------------------------------------------------------------
#
# A model is a class whose constructor's arguments are its options; it raises ValueError for values that it can't
# take. What else it may say of itself, as attributes: `mean` and `std` of its normalisation, per channel from 0
# to 1 (else CIFAR-10's own); `channels_last` and `bf16`, whether it gains from them (else not); `options_from`,
# which options a state dict is of (else the defaults); `optimizer(settings)`, which makes its own, whose groups may
# have a factor on the schedule's learning rate, `lr_factor` (else `sgd`); `initialise(images)`, called once before
# training with all training images, uint8 (N, 3, 32, 32), in order of their classes if they are from a folder.

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class LeNet(nn.Module):
    """LeNet of PyTorch's tutorial "Training a classifier": 62,006 parameters.

    Images float32 (N, 3, 32, 32) -> logits (N, 10). `dropout` is the probability, from 0 to below 1, of dropout
    between the linear layers. https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
    """

    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError("dropout must be a number of at least 0 and below 1")
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        # The tutorial's ReLU comes before the pooling. The result is the same, for a quarter of the work.
        x = F.relu(F.max_pool2d(self.conv1(images), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        x = self.dropout(F.relu(self.fc2(x)))
        return self.fc3(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, (N, C, H, W) -> (N, channels, H/stride, W/stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem for 32x32 images: 11,173,962 parameters at width 64.

    Images float32 (N, 3, 32, 32) -> logits (N, 10). `width` is the number of channels of the first stage.
    He et al. 2015, https://arxiv.org/abs/1512.03385
    """

    bf16 = True

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        if width < 1:
            raise ValueError("width must be a whole number of at least 1")
        # Convolutions of many channels are faster in channels_last. Below 16 channels, oneDNN's strided 1x1
        # convolutions write out of bounds in that layout (torch 2.14.1 on AVX-512): narrow models crash.
        self.channels_last = width >= 16
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1), BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(BasicBlock(2 * width, 4 * width, 2), BasicBlock(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(BasicBlock(4 * width, 8 * width, 2), BasicBlock(8 * width, 8 * width, 1))
        self.linear = nn.Linear(8 * width, 10)

    @staticmethod
    def options_from(weights: Mapping[str, Tensor]) -> dict[str, object]:
        """The options of the model whose state dict this may be."""
        stem = weights.get("conv1.weight")
        return {"width": len(stem)} if stem is not None and stem.ndim == 4 and len(stem) else {}

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


def build_model(settings: Settings) -> nn.Module:
    """The settings' model, with weights drawn from their seed; WrongOption for values that it can't take."""
    torch.manual_seed(settings.seed)
    options = options_of(settings)
    try:
        return settings.model(**options)
    except ValueError as error:
        given = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
        raise WrongOption(f"{settings.model.__name__} with {given}: {error}") from error


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` on `device`, in the memory layout that it gains from."""
    fast = getattr(model, "channels_last", False)
    return model.to(device, memory_format=torch.channels_last if fast else torch.contiguous_format)


def normalise(images: Tensor, model: nn.Module) -> Tensor:
    """uint8 (N, 3, 32, 32) -> float32, less the model's channel means, over its standard deviations, in its layout."""
    means, deviations = getattr(model, "mean", CIFAR10_MEAN), getattr(model, "std", CIFAR10_STD)
    # Filled on the device, since a copy from the host would make it wait for a GPU.
    fill = [[torch.full((1, 1), 255 * x, device=images.device) for x in values] for values in (means, deviations)]
    images = images.float().sub_(torch.stack(fill[0])).div_(torch.stack(fill[1]))
    return images.to(memory_format=torch.channels_last) if getattr(model, "channels_last", False) else images


# --- One run's parts --------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What belongs to one run and stays while its state moves on."""

    settings: Settings
    execution: Execution
    data: Data  # on the execution's device
    model: nn.Module  # whose weights are trained and saved
    network: nn.Module  # the model as training calls it: in its precision, wrapped for several GPUs or processes
    optimizer: torch.optim.Optimizer
    folder: Path  # of its files
    signals: list[int]  # numbers of those that have arrived


def sgd(parameters: Iterable, settings: Settings) -> torch.optim.SGD:
    """SGD as the settings state it, over parameters or groups of them."""
    rates = {"lr": settings.lr, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    return torch.optim.SGD(parameters, **rates, nesterov=settings.nesterov, fused=True)


def prepare_run(settings: Settings, execution: Execution, data: Data, model: nn.Module, folder: Path) -> Run:
    """Everything that training needs, on the execution's device."""
    model = to_device(model, execution.device)
    optimizer = model.optimizer(settings) if hasattr(model, "optimizer") else sgd(model.parameters(), settings)
    arrays = {name: value.to(execution.device) for name, value in vars(data).items() if isinstance(value, Tensor)}
    data = dataclasses.replace(data, **arrays)
    network = parallel_network(InPrecision(model, execution.precision), execution)
    return Run(settings, execution, data, model, network, optimizer, folder, [])


# --- Training and evaluation ------------------------------------------------------------------

CHUNK_IMAGES = {"cpu": 256, "cuda": 8192, "mps": 8192}  # prepared at once; the CPU's stay in its cache
EVALUATION_BATCH_SIZE = {"cpu": 125, "cuda": 2000, "mps": 500}
TRAIN_EVALUATION_IMAGES = 10_000
ONE_CYCLE_PEAK = 0.23  # the part of the run at which the learning rate is highest, as in fast_model.py's paper
HISTORY = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "seconds")


def train(run: Run, state: dict) -> dict:
    """Train on from `state` to the run's last epoch, save it after each, and return it.

    When a signal arrives, the steps so far are saved and Interrupted is raised. Raises UserError when the loss
    becomes NaN or infinite.
    """
    began = time.perf_counter() - state["total_seconds"]
    run.model.train()
    while state["epoch"] <= run.settings.epochs:
        try:
            losses = train_epoch(run, state)
            row = evaluate_epoch(run, state, losses)
        except Interrupted:
            save_state(run, state | {"total_seconds": time.perf_counter() - began})
            raise
        state = next_epoch(run, state, losses, row) | {"total_seconds": time.perf_counter() - began}
        save_state(run, state)
        if run.execution.rank == 0:
            print(describe_epoch(row, run.settings.epochs, len(run.data.train_labels)))
    mirrored = {}
    if run.settings.augment:
        images, labels = run.data.test_images, run.data.test_labels
        mirrored = {"mirrored_test_accuracy": evaluate(run, images, labels, mirrored=True)[1]}
    return state | {"mirrored": mirrored, "total_seconds": time.perf_counter() - began}


def train_epoch(run: Run, state: dict) -> Tensor:
    """Train to the end of the epoch in progress; float32 (steps,): the losses of all its steps and processes.

    `state` follows chunk by chunk, so that it can be saved when a signal ends the epoch early.
    """
    with tiny_steps(run.settings.batch_size), progress_bar(run, state) as bar:
        started = time.perf_counter()
        for batches, sizes, rates in epoch_chunks(run, state["epoch"], state["step"]):
            check_signals(run)
            losses = train_chunk(run, batches, sizes, rates)
            if run.execution.device.type == "cpu":  # on a GPU this would make the host wait
                check_finite(losses, state["epoch"], state["step"])
                bar.set_postfix(loss=f"{losses.sum() * run.execution.world_size / sum(sizes):.3f}", refresh=False)
            bar.update(sum(sizes))
            state["losses"].append(losses)
            state["step"] += len(batches)
            started, state["seconds"] = time.perf_counter(), state["seconds"] + time.perf_counter() - started
        losses = epoch_losses(state)  # on a GPU, what waits for the last steps
        state["seconds"] += time.perf_counter() - started
    check_finite(losses, state["epoch"], 0)
    return losses


def train_chunk(run: Run, batches: list[tuple[Tensor, Tensor]], sizes: list[int], rates: list[float]) -> Tensor:
    """One step per batch, on this process's shares of them; float32 (batches,): each loss, summed over its images.

    What is minimised is the mean over the whole batch, whose size `sizes` has, at the learning rate in `rates`.
    """
    losses, parameters, world_size = [], list(run.model.parameters()), run.execution.world_size
    weights = {size: torch.full((), world_size / size, device=run.execution.device) for size in set(sizes)}
    smoothing = run.settings.label_smoothing
    for (images, labels), size, rate in zip(batches, sizes, rates, strict=True):
        for group in run.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1)
        loss = F.cross_entropy(run.network(images), labels, reduction="sum", label_smoothing=smoothing)
        for parameter in parameters:
            parameter.grad = None  # as optimizer.zero_grad() does, which takes ten times as long
        loss.backward(weights[size])
        run.optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def epoch_chunks(run: Run, epoch: int, step: int) -> Iterator[tuple[list[tuple[Tensor, Tensor]], list, list]]:
    """The epoch's batches from `step` on, prepared a chunk of them at a time.

    Yields this process's shares of the batches, (images float32, labels), the whole batches' sizes, and the learning
    rates of their steps.
    Order and augmentation follow from seed and epoch alone: neither the number of processes nor
    an interruption changes them. Dropout's masks follow from seed, epoch, step and rank.
    """
    data, rank, seed, settings = run.data, run.execution.rank, run.settings.seed, run.settings
    count, device = len(data.train_labels), run.execution.device
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    order = torch.randperm(count, generator=generator).to(device)
    shifts = torch.randint(0, 2 * settings.crop_padding + 1, (2, count), generator=generator).to(device)
    flips = torch.rand(count, generator=generator).lt(0.5).to(device)
    if settings.flips == "alternating":
        first_flips = torch.rand(count, generator=generator.manual_seed(mixed_seed(seed, 0))).lt(0.5).to(device)
        flips = (first_flips ^ (epoch % 2 == 0))[order]
    positions = torch.arange(count, device=device).split(settings.batch_size)
    chunk_steps = max(1, CHUNK_IMAGES[device.type] // settings.batch_size)
    for first in range(step, len(positions), chunk_steps):
        torch.manual_seed(mixed_seed(seed, epoch, first, rank))
        batches = positions[first : first + chunk_steps]
        shares = [batch.tensor_split(run.execution.world_size)[rank] for batch in batches]
        chunk = torch.cat(shares)
        images, labels = data.train_images[order[chunk]], data.train_labels[order[chunk]]
        if settings.augment:
            images = augment(pad(images, settings), shifts[:, chunk], flips[chunk])
        sizes = [len(share) for share in shares]
        pairs = zip(normalise(images, run.model).split(sizes), labels.split(sizes), strict=True)
        rates = [learning_rate(settings, epoch, (first + i + 0.5) / len(positions)) for i in range(len(batches))]
        yield list(pairs), [len(batch) for batch in batches], rates


def pad(images: Tensor, settings: Settings) -> Tensor:
    """uint8 (N, 3, 32, 32) -> uint8 (N, 3, 32 + 2 P, 32 + 2 P) with P = `crop_padding`, as `padding_mode` says."""
    if settings.padding_mode == "constant":
        return F.pad(images, (settings.crop_padding,) * 4)
    places = torch.arange(-settings.crop_padding, 32 + settings.crop_padding, device=images.device)
    places = 31 - (31 - places.abs()).abs()  # F.pad can't reflect uint8
    return images[:, :, places][..., places]


def augment(padded: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
    """Each padded image cropped to 32x32 at its own place, and flipped or not; uint8 (N, 3, 32, 32).

    `shifts` int64 (2, N), down and right, 0 to twice the padding; `flips` bool (N,).
    """
    windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)  # (N, 3, shifts, shifts, 32, 32)
    crops = windows[torch.arange(len(padded), device=padded.device), :, shifts[0], shifts[1]]
    return torch.where(flips[:, None, None, None], crops.flip(3), crops)


def mixed_seed(*parts: int) -> int:
    """A 32-bit seed that depends on all of `parts`, such as the run's seed and the epoch."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def learning_rate(settings: Settings, epoch: int, part: float = 0.5) -> float:
    """The rate at that part, 0 to 1, of `epoch`, 1 to `epochs`; only "one-cycle" changes within an epoch.

    "cosine" falls to 0 over the run's epochs (Loshchilov & Hutter, https://arxiv.org/abs/1608.03983); "one-cycle" rises
    linearly from a fifth of `lr` to `lr` and falls linearly to 0 (after Smith & Topin, https://arxiv.org/abs/1708.07120).
    """
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "cosine":
        return settings.lr * ((1 + math.cos(math.pi * (epoch - 1) / settings.epochs)) / 2)
    done = (epoch - 1 + part) / settings.epochs
    return settings.lr * min(0.2 + 0.8 * done / ONE_CYCLE_PEAK, (1 - done) / (1 - ONE_CYCLE_PEAK))


def evaluate(run: Run, images: Tensor, labels: Tensor, mirrored: bool = False) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in per cent, in eval mode, over all processes.

    Images uint8 (N, 3, 32, 32), labels int64 (N,), on the run's device. If `mirrored`, logits are means of both sides.
    """
    execution, network, sums = run.execution, InPrecision(run.model, run.execution.precision), []
    run.model.eval()
    with torch.inference_mode():
        for batch in torch.arange(len(labels), device=images.device).split(EVALUATION_BATCH_SIZE[images.device.type]):
            check_signals(run)
            share = batch.tensor_split(execution.world_size)[execution.rank]
            views = [images[share], images[share].flip(3)] if mirrored else [images[share]]
            logits = sum(network(normalise(view, run.model)) for view in views) / len(views)
            loss = F.cross_entropy(logits, labels[share], reduction="sum")
            sums.append(torch.stack([loss, logits.argmax(1).eq(labels[share]).sum()]))
        loss, correct = total(torch.stack(sums)).double().sum(0).tolist()
    run.model.train()
    return loss / len(labels), 100 * correct / len(labels)


def evaluate_epoch(run: Run, state: dict, losses: Tensor) -> dict[str, float]:
    """What the ended epoch, whose steps had these losses, adds to the history."""
    data = run.data
    part = slice(0, None, -(-len(data.train_labels) // TRAIN_EVALUATION_IMAGES))  # spread over the classes
    _, train_accuracy = evaluate(run, data.train_images[part], data.train_labels[part])
    test_loss, test_accuracy = evaluate(run, data.test_images, data.test_labels)
    check_finite(torch.tensor(test_loss), state["epoch"], state["step"] - 1)
    train_loss, rate = losses.sum().item() / len(data.train_labels), learning_rate(run.settings, state["epoch"])
    row = (state["epoch"], train_loss, train_accuracy, test_loss, test_accuracy, rate, state["seconds"])
    validation = {}
    if len(data.validation_labels):
        loss, accuracy = evaluate(run, data.validation_images, data.validation_labels)
        validation = {"validation_loss": loss, "validation_accuracy": accuracy}
    return dict(zip(HISTORY, row, strict=True)) | validation


def check_signals(run: Run) -> None:
    """Interrupted if a signal has arrived: a signal to one process stops all of them after the same step."""
    number = max(run.signals, default=0)
    if run.execution.world_size > 1:
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        number = int(numbers)
    if number:
        raise Interrupted(number)


def check_finite(losses: Tensor, epoch: int, step: int) -> None:
    """UserError that names the step, counted on from `step`, at which a loss is NaN or infinite."""
    finite = losses.isfinite().cpu()
    if not finite.all():
        step += int(finite.int().argmin()) + 1
        raise UserError(f"the loss is no finite number any more at epoch {epoch}, step {step}: try a lower --lr")


# --- A run's state ----------------------------------------------------------------------------


def new_state() -> dict:
    """A run at its beginning, and with model and optimizer what `checkpoint.pth` holds of one.

    No random-number state is needed: `epoch_chunks` derives all of it from seed, epoch and step.
    """
    return {
        "epoch": 1,  # in progress
        "step": 0,  # its steps so far,
        "losses": [],  # their losses, chunk by chunk, summed over this process's images,
        "seconds": 0.0,  # and the time they took
        "total_seconds": 0.0,  # the run's, with evaluations and saving
        "history": {name: [] for name in HISTORY},
        "steps": {"epoch": [], "train_loss": []},
        "best_model": {},
    }


def epoch_losses(state: dict) -> Tensor:
    """float32 (steps,): the losses so far of the epoch in progress, summed over images and processes."""
    return total(torch.cat(state["losses"])) if state["losses"] else torch.zeros(0)


def next_epoch(run: Run, state: dict, losses: Tensor, row: dict[str, float]) -> dict:
    """The state at the beginning of the next epoch: the ended one's steps had these losses; `row` is its history."""
    history = {name: [*state["history"].get(name, []), value] for name, value in row.items()}
    best = best_epoch(history)[0] == row["epoch"]
    size, count = run.settings.batch_size, len(run.data.train_labels)
    return new_state() | {
        "epoch": state["epoch"] + 1,
        "history": history,
        "steps": finer_losses(state["steps"], losses, state["epoch"], size, count),
        "best_model": plain_weights(run.model) if best else state["best_model"],
    }


def best_epoch(history: dict[str, list[float]]) -> tuple[int, str]:
    """The first epoch with the best accuracy, and whether "validation" or "test" images chose it."""
    images = "validation" if "validation_accuracy" in history else "test"
    return history["epoch"][int(np.argmax(history[f"{images}_accuracy"]))], images


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def save_state(run: Run, state: dict) -> None:
    """Write `checkpoint.pth`; every process must call this, and rank 0 writes."""
    state = state | {"losses": epoch_losses(state)}
    if run.execution.rank == 0:
        head = {"experiment": run.settings.experiment, "config": config_of(run.settings)}
        parts = {"dataset": dataset_record(run.data), "model": run.model.state_dict()}
        content = {**head, **parts, "optimizer": run.optimizer.state_dict(), **state}
        write_torch(run.folder / "checkpoint.pth", content)


def saved_state(folder: Path, settings: Settings, dataset: dict[str, object]) -> dict:
    """With `--resume` the folder's checkpoint, else a new state.

    Raises UserError if the checkpoint is damaged, or is of other settings: it lists which. A constant
    learning rate does not depend on the epochs to come, so that there may be more of them.
    """
    path = folder / "checkpoint.pth"
    # A worker that torchrun starts again continues, too.
    resume = settings.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    if not path.is_file():
        if resume:
            print(f"no checkpoint in {folder}: starting at the beginning")
        return new_state()
    try:
        state = read_checkpoint(path)
    except UserError as error:
        if resume:
            raise
        print(f"{error}. Starting afresh.", file=sys.stderr)
        return new_state()
    if not resume:
        print(f"{path} is a checkpoint of epoch {state['epoch']}: --resume continues it. Starting afresh.")
        return new_state()
    was = LATER | state["config"] | state["dataset"]
    changed = differences(config_of(settings) | dataset, was)
    if settings.schedule == "constant" and settings.epochs >= was["epochs"]:
        changed.pop("epochs", None)
    if changed:
        listed = ", ".join(f"{name} {was.get(name)} -> {value}" for name, value in changed.items())
        raise UserError(f"{path} is of other settings ({listed}): give the same ones, or start without --resume")
    print(f"resuming at epoch {state['epoch']}, step {state['step']}")
    return state


def read_checkpoint(path: Path) -> dict:
    """A `checkpoint.pth`; UserError if it is damaged or another file."""
    state = read_torch(path)
    needed = {"config", "dataset", "model", "optimizer", *new_state()} - {"total_seconds"}  # older ones have none
    if not isinstance(state, dict) or not needed <= set(state):
        raise UserError(f"{path} is no checkpoint of these scripts")
    return {"total_seconds": sum(state["history"]["seconds"]), **state}


def continue_from(run: Run, state: dict) -> dict:
    """Load a checkpoint's model and optimizer; the rest of `state`, as training goes on from it."""
    if "model" in state:
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        # Losses so far are those of all processes: rank 0's share from here on.
        state = state | {"losses": [state["losses"].to(run.execution.device) * (run.execution.rank == 0)]}
    return {name: state[name] for name in new_state()}


# --- Results ----------------------------------------------------------------------------------


def run_record(run: Run, state: dict) -> dict:
    """What `loss.json` holds of a finished run; the README documents it."""
    history, seconds = state["history"], sum(state["history"]["seconds"])
    epoch, chosen_on = best_epoch(history)
    result = {
        "final_test_accuracy": history["test_accuracy"][-1],
        "best_test_accuracy": history["test_accuracy"][epoch - 1],
        "best_epoch": epoch,
        "best_epoch_chosen_on": chosen_on,
        **state["mirrored"],
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "train_seconds": seconds,
        "total_seconds": state["total_seconds"],
        "images_per_second": len(run.data.train_labels) * len(history["epoch"]) / seconds,
    }
    head = {"experiment": run.settings.experiment, "config": config_of(run.settings)}
    parts = {"dataset": dataset_record(run.data), "environment": environment_record(run.execution)}
    return {**head, **parts, "history": history, "steps": state["steps"], "result": result}


def write_results(run: Run, record: dict, best_model: dict[str, Tensor]) -> None:
    """Put a finished run's four files into its folder; only then is its checkpoint removed."""
    folder, picture = run.folder, draw_losses(record)
    write_torch(folder / "best_model.pth", best_model)
    write_torch(folder / "model.pth", plain_weights(run.model))
    write_file(folder / "loss.json", json.dumps(record, indent=1, allow_nan=False).encode())
    write_file(folder / "loss.png", picture)
    (folder / "checkpoint.pth").unlink()
    result, original = record["result"], original_text(record["config"])
    beside = f" (the original: {original})" if original and record["dataset"]["name"] == "cifar10" else ""
    print(f"{describe_result(result)}{beside}; {result['train_seconds']:.1f} s of training; results in {folder}")


# --- A run ------------------------------------------------------------------------------------


def run(settings: Settings, stated: Settings | None = None) -> dict:
    """Train as the experiment's script does with these settings; what it writes to `loss.json`.

    The folder is named after what differs from the `stated` settings, by default those of the experiment's script.
    Raises UserError for what the user can put right, and Interrupted after a signal; the same settings
    with `resume=True` then go on. Under `torchrun` only rank 0 reads, writes and prints.
    """
    stated = stated or stated_settings(settings.experiment) or settings
    settings = checked(settings, config_of(settings))
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([]))
        model, execution = build_model(settings), start_execution(settings)
        first = execution.rank == 0
        data, warning = from_rank_0(load_data(settings.dataset, settings.data_dir) if first else None)
        data = hold_out(data, settings.validation_images)
        if hasattr(model, "initialise"):
            with torch.no_grad():
                model.initialise(data.train_images)
        folder = run_folder(settings, stated, data.name)
        if first:
            stack.enter_context(opened(folder))
            sys.stderr.write(warning)
            introduce(settings, execution, data)
        state = from_rank_0(saved_state(folder, settings, dataset_record(data)) if first else None)
        this_run = prepare_run(settings, execution, data, model, folder)
        stack.enter_context(process_settings(execution.device, this_run.signals))
        state = train(this_run, continue_from(this_run, state))
        record = run_record(this_run, state)
        if first:
            write_results(this_run, record, state["best_model"])
            sys.stderr.writelines(warning.splitlines(keepends=True)[1:2])  # once more, in short
        leave_processes()
    return record


def introduce(settings: Settings, execution: Execution, data: Data) -> None:
    """Print what is about to be trained."""
    print(f"{settings.experiment} ({describe(config_of(settings))})")
    print(f"on {data.name} ({data.source}), {execution.device}, {execution.precision}, parallel: {execution.parallel}")
    if settings.data_parallel and execution.parallel == "none":
        print("no more than one GPU to use: training without DataParallel")


def main(stated: Settings, description: str | None) -> None:
    """Run an experiment script: its stated settings, with the command line's changes.

    Exit codes: 0; 1 for what went wrong; 2 for wrong arguments; 129, 130 and 143 after SIGHUP, Ctrl-C and SIGTERM.
    """
    make_output_last()
    settings = parse_arguments(stated, description)
    try:
        run(settings, stated)
    except WrongOption as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Interrupted as interruption:
        command = shlex.join(["python", *(word for word in sys.argv if word != "--resume"), "--resume"])
        if dist.is_torchelastic_launched():
            command = "start torchrun again in the same way, with --resume at the end"
        if os.environ.get("RANK", "0") == "0":
            print(f"stopped by signal {interruption.args[0]} and saved; to continue: {command}", file=sys.stderr)
        sys.exit(128 + interruption.args[0])
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        if re.search("out of memory|allocate memory|not enough memory", str(error)):
            sizes = [name for name, value in options_of(settings).items() if type(value) is int]
            flags = " or ".join(f"--{name.replace('_', '-')}" for name in ["batch_size", *sizes])
            sys.exit(f"error: there is not enough memory: try a smaller {flags}")
        if re.search("Connection (closed|reset) by peer|remote process exited", str(error)):
            sys.exit("error: the connection to another process is lost; its own message says why")
        raise
