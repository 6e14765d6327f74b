"""What the CIFAR-10 experiments share, in the order a run flows.

one run's parts -> training and evaluation -> its state and checkpoint -> results -> a run

An experiment script states its `Settings` and calls `main`; a notebook calls `run`, and `load` for a trained model.
Nothing runs on import, except that OpenMP is asked, before torch loads it, not to keep a core busy while it waits.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# GNU OpenMP's threads spin while they wait for one that the system has put aside: with a busy neighbour an epoch takes
# many times as long. Not to spin at all costs two fifths of the speed on an idle machine (benchmarks/README.md).
# OpenMP reads this once, when torch loads it; whoever has asked for anything or has torch keeps it.
if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cifar10lab.data.loading import Data, dataset_record, hold_out, load_data
from cifar10lab.devices.execution import (
    Execution,
    InPrecision,
    environment_record,
    parallel_network,
    process_settings,
    start_execution,
    tiny_steps,
)
from cifar10lab.devices.processes import (
    all_reduce,
    from_rank_0,
    launch_note,
    leave_processes,
    note_launch,
    share_buffers,
)
from cifar10lab.files.locks import locked_run_folder
from cifar10lab.files.pictures import write_picture
from cifar10lab.files.tensors import read_torch, write_torch
from cifar10lab.files.writing import FileInUse, expanded, write_file
from cifar10lab.inspection.models import load
from cifar10lab.models.interface import Interface, interface_of, model_input, plain_name, to_device, tried
from cifar10lab.models.lenet import LeNet
from cifar10lab.models.resnet import ResNet18
from cifar10lab.results.descriptions import describe_epoch, describe_result
from cifar10lab.results.loss_plot import draw_losses
from cifar10lab.results.reference import standing
from cifar10lab.settings.differences import describe, differences
from cifar10lab.settings.experiment import (
    EARLIER_VALUES,
    HERE,
    Settings,
    config_of,
    options_of,
    parse_arguments,
    stated_settings,
    validated,
)
from cifar10lab.terminal.errors import UserError, WrongOption
from cifar10lab.terminal.output import make_output_last, progress_bar

__all__ = ["Interface", "Interrupted", "LeNet", "ResNet18", "Settings", "UserError", "load", "main", "run"]


class Interrupted(Exception):
    """A signal to stop arrived during training, and what was done is saved; `args[0]` is its number."""

    def __str__(self) -> str:
        return f"stopped by signal {self.args[0]} and saved: go on with resume=True"


# --- One run's parts --------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What belongs to one run and stays while its state moves on."""

    settings: Settings
    execution: Execution
    data: Data  # on the execution's device
    model: nn.Module  # whose weights are trained and saved
    interface: Interface  # what it says of itself
    network: nn.Module  # the model as training calls it: in its precision, wrapped for its GPUs or processes
    optimizer: torch.optim.Optimizer
    folder: Path  # of its files
    signals: list[int]  # numbers of those that have arrived


def build_model(settings: Settings) -> nn.Module:
    """The settings' model, with weights drawn from their seed.

    WrongOption for options that it can't take, and for resolutions.
    """
    torch.manual_seed(settings.seed)
    options, name = options_of(settings), settings.model.__name__
    try:
        model = settings.model(**options)
    except ValueError as error:
        given = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
        raise WrongOption(f"{name} with {given}: {error}") from error
    for size in sorted(set(sizes_of(settings)) - {32}):
        try:
            with torch.inference_mode():
                copy.deepcopy(model).eval()(torch.zeros(1, 3, size, size))
        except RuntimeError as error:  # what PyTorch raises for shapes that don't fit
            raise WrongOption(f"{name} can't take images of {size}x{size} pixels: leave out --resolutions") from error
    return model


def check_smallest_share(model: nn.Module, settings: Settings, images: int, processes: int) -> None:
    """UserError if a process gets a single image or none of a step's, and the model has a BatchNorm that needs two."""
    last = images % settings.batch_size or settings.batch_size
    if last // processes > 1:
        return
    try:
        copy.deepcopy(model).train()(model_input(torch.zeros(1, 3, 32, 32), interface_of(model)))
    except ValueError as error:
        shared = f" shared by {processes} processes" * (processes > 1)
        batches = f"{images} images in batches of {settings.batch_size}{shared} leave a single one or none to a step"
        name = type(model).__name__
        raise UserError(f"{batches}, which {name} can't be trained on: try another --batch-size") from error


def sgd(parameters: Iterable, settings: Settings) -> torch.optim.SGD:
    """SGD as the settings state it, over parameters or groups of them."""
    rates = {"lr": settings.lr, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    return torch.optim.SGD(parameters, **rates, nesterov=settings.nesterov, fused=True)


def prepare_run(settings: Settings, execution: Execution, data: Data, model: nn.Module, folder: Path) -> Run:
    """Everything that training needs, on the execution's device."""
    model, interface = to_device(model, execution.device), interface_of(model)
    optimizer = interface.optimizer(settings) if interface.optimizer else sgd(model.parameters(), settings)
    arrays = {name: value.to(execution.device) for name, value in vars(data).items() if isinstance(value, Tensor)}
    data = dataclasses.replace(data, **arrays)
    network = parallel_network(InPrecision(model, execution.precision), execution, interface.cuda_graphs)
    return Run(settings, execution, data, model, interface, network, optimizer, folder, [])


# --- Training and evaluation ------------------------------------------------------------------

CHUNK_IMAGES = {"cpu": 256, "cuda": 8192, "mps": 8192}  # prepared at once; the CPU's stay in its cache
EVALUATION_BATCH_SIZE = {"cpu": 125, "cuda": 2000, "mps": 500}
TRAIN_EVALUATION_IMAGES = 10_000
ONE_CYCLE_PEAK = 0.23  # the part of the run at which the learning rate is highest, as in fast_model.py's paper
HISTORY = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "seconds")


def train(run: Run, state: State) -> State:
    """Train on from `state` to the run's last epoch, save it after each, and return it.

    When a signal arrives, the steps so far are saved and Interrupted is raised. Raises UserError when the loss
    becomes NaN or infinite.
    """
    began = time.perf_counter() - state.total_seconds
    run.model.train()
    while state.epoch <= run.settings.epochs:
        try:
            for reached in train_epoch(run, state):
                state = reached  # also when a signal ends the epoch early
            losses = all_reduce(state.losses)
            check_finite(losses, state.epoch, 0)
            row = evaluate_epoch(run, state, losses)
        except Interrupted:
            save_state(run, dataclasses.replace(state, total_seconds=time.perf_counter() - began))
            raise
        state = next_epoch(run, state, losses, row)
        state = dataclasses.replace(state, total_seconds=time.perf_counter() - began)
        save_state(run, state)
        if run.execution.rank == 0:
            print(describe_epoch(row, run.settings.epochs, len(run.data.train_labels)))
    if run.settings.augment:
        _, accuracy = evaluate(run, run.data.test_images, run.data.test_labels, mirrored=True)
        state = dataclasses.replace(state, mirrored_test_accuracy=accuracy)
    return dataclasses.replace(state, total_seconds=time.perf_counter() - began)


def train_epoch(run: Run, state: State) -> Iterator[State]:
    """Train to the end of the epoch in progress; the state after each chunk, and at the end.

    Raises Interrupted when a signal has arrived: the state before it is then the one to be saved.
    """
    count, size, on_cpu = len(run.data.train_labels), run.settings.batch_size, run.execution.device.type == "cpu"
    title, done = f"epoch {state.epoch}/{run.settings.epochs}", min(state.step * size, count)
    with tiny_steps(size), progress_bar(title, count, done, hidden=run.execution.rank != 0) as bar:
        started = time.perf_counter() - state.seconds
        for batches, sizes, rates in epoch_chunks(run, state.epoch, state.step):
            check_signals(run)
            losses = train_chunk(run, batches, sizes, rates)
            if on_cpu:  # on a GPU this would make the host wait
                check_finite(losses, state.epoch, state.step)
                bar.set_postfix(loss=f"{losses.sum() * run.execution.world_size / sum(sizes):.3f}", refresh=False)
            bar.update(sum(sizes))
            losses = torch.cat([state.losses.to(losses.device), losses])
            seconds = time.perf_counter() - started
            state = dataclasses.replace(state, step=state.step + len(batches), losses=losses, seconds=seconds)
            yield state
        losses = state.losses.cpu()  # on a GPU, this waits for the last steps
        yield dataclasses.replace(state, losses=losses, seconds=time.perf_counter() - started)


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
    an interruption changes them. Dropout's masks follow from seed, epoch, step and rank, by a stream of their own.
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
    steps = torch.arange(count, device=device).split(settings.batch_size)  # each one's positions in that order
    chunk_steps = max(1, CHUNK_IMAGES[device.type] // settings.batch_size)
    for first in range(step, len(steps), chunk_steps):
        torch.manual_seed(mixed_seed(seed, epoch, first, rank, 1))  # 0s at the end would change nothing
        chunk = steps[first : first + chunk_steps]
        shares = [positions.tensor_split(run.execution.world_size)[rank] for positions in chunk]
        share_sizes, positions = [len(share) for share in shares], torch.cat(shares)
        images, labels = data.train_images[order[positions]], data.train_labels[order[positions]]
        if settings.augment:
            images = augment(pad(images, settings), shifts[:, positions], flips[positions])
        images = scaled(model_input(images, run.interface), resolution(settings, epoch))
        batches = list(zip(images.split(share_sizes), labels.split(share_sizes), strict=True))
        rates = [learning_rate(settings, epoch, (first + i + 0.5) / len(steps)) for i in range(len(chunk))]
        yield batches, [len(positions) for positions in chunk], rates


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


def scaled(images: Tensor, size: int) -> Tensor:
    """float32 (N, 3, 32, 32) -> float32 (N, 3, size, size), bilinearly, without smoothing before it."""
    return images if size == 32 else F.interpolate(images, size=(size, size), mode="bilinear")


def sizes_of(settings: Settings) -> list[int]:
    """The training images' sizes in pixels, in the order of the run."""
    return [int(size) for size in (settings.resolutions or "32").split(",")]


def resolution(settings: Settings, epoch: int) -> int:
    """The size in pixels of the training images in `epoch`, 1 to `epochs`."""
    sizes = sizes_of(settings)
    return sizes[(epoch - 1) * len(sizes) // settings.epochs]


def learning_rate(settings: Settings, epoch: int, part: float = 0.5) -> float:
    """The rate at that part, 0 to 1, of `epoch`, 1 to `epochs`.

    "cosine" falls to 0 over the run's epochs, from epoch to epoch (Loshchilov & Hutter,
    https://arxiv.org/abs/1608.03983). The others change at every step: "linear" falls from `lr` to 0; "one-cycle" rises
    linearly from a fifth of `lr` to `lr` and falls linearly to 0 (after Smith & Topin, https://arxiv.org/abs/1708.07120).
    """
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "cosine":
        return settings.lr * ((1 + math.cos(math.pi * (epoch - 1) / settings.epochs)) / 2)
    done = (epoch - 1 + part) / settings.epochs
    if settings.schedule == "linear":
        return settings.lr * (1 - done)
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
            logits = sum(network(model_input(view, run.interface)) for view in views) / len(views)
            loss = F.cross_entropy(logits, labels[share], reduction="sum")
            sums.append(torch.stack([loss, logits.argmax(1).eq(labels[share]).sum()]))
        loss, correct = all_reduce(torch.stack(sums)).double().sum(0).tolist()
    run.model.train()
    return loss / len(labels), 100 * correct / len(labels)


def evaluate_epoch(run: Run, state: State, losses: Tensor) -> dict[str, float]:
    """What the ended epoch, whose steps had these losses, adds to the history."""
    data, part = run.data, evaluated_part(run.data)
    share_buffers(run.model)  # rank 0's are saved
    _, train_accuracy = evaluate(run, data.train_images[part], data.train_labels[part])
    test_loss, test_accuracy = evaluate(run, data.test_images, data.test_labels)
    check_finite(torch.tensor(test_loss), state.epoch, state.step - 1)
    train_loss, rate = losses.sum().item() / len(data.train_labels), learning_rate(run.settings, state.epoch)
    row = (state.epoch, train_loss, train_accuracy, test_loss, test_accuracy, rate, state.seconds)
    validation = {}
    if len(data.validation_labels):
        loss, accuracy = evaluate(run, data.validation_images, data.validation_labels)
        check_finite(torch.tensor(loss), state.epoch, state.step - 1)
        validation = {"validation_loss": loss, "validation_accuracy": accuracy}
    return dict(zip(HISTORY, row, strict=True)) | validation


def evaluated_part(data: Data) -> slice:
    """The training images that the training accuracy is measured on, spread over the classes."""
    return slice(0, None, -(-len(data.train_labels) // TRAIN_EVALUATION_IMAGES))


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


# --- A run's state and its checkpoint ---------------------------------------------------------


@dataclass(frozen=True)
class State:
    """How far a run has come. `checkpoint.pth` has these entries beside those of model and optimizer.

    No random-number state is needed: `epoch_chunks` derives all of it from seed, epoch and step.
    """

    epoch: int = 1  # in progress
    step: int = 0  # its steps so far,
    # their losses, float32 (steps,), summed over this process's images (on disk, over those of all processes),
    losses: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))
    seconds: float = 0.0  # and the time they took
    total_seconds: float = 0.0  # the run's, with evaluations and saving
    history: dict[str, list[float]] = dataclasses.field(default_factory=lambda: {name: [] for name in HISTORY})
    steps: dict[str, list[float]] = dataclasses.field(default_factory=lambda: {"epoch": [], "train_loss": []})
    best_model: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    parts: list[dict] = dataclasses.field(default_factory=list)  # those before this one, as `run_parts` has them
    mirrored_test_accuracy: float | None = None  # of a run that has ended, and trained with flips


def next_epoch(run: Run, state: State, losses: Tensor, row: dict[str, float]) -> State:
    """The state at the beginning of the next epoch: the ended one's steps had these losses; `row` is its history."""
    history = {name: [*state.history.get(name, []), value] for name, value in row.items()}
    best = best_epoch(history)[0] == row["epoch"]
    size, count = run.settings.batch_size, len(run.data.train_labels)
    return State(
        epoch=state.epoch + 1,
        history=history,
        steps=finer_losses(state.steps, losses, state.epoch, size, count),
        best_model=weights_on_cpu(run.model) if best else state.best_model,
        parts=state.parts,
    )


def finer_losses(steps: dict, losses: Tensor, epoch: int, batch_size: int, images: int) -> dict[str, list[float]]:
    """`steps` with the training loss of each twelfth of the epoch, placed at its end."""
    edges = np.linspace(0, len(losses), min(len(losses), 12) + 1).round().astype(int)
    sums = np.add.reduceat(losses.double().numpy(), edges[:-1])
    ends = np.minimum(edges * batch_size, images)
    epochs = (epoch - 1 + ends[1:] / images).round(4)
    means = sums / np.diff(ends)
    return {"epoch": steps["epoch"] + epochs.tolist(), "train_loss": steps["train_loss"] + means.tolist()}


def best_epoch(history: dict[str, list[float]]) -> tuple[int, str]:
    """The first epoch with the best accuracy, and whether "validation" or "test" images chose it."""
    images = "validation" if "validation_accuracy" in history else "test"
    return history["epoch"][int(np.argmax(history[f"{images}_accuracy"]))], images


def weights_on_cpu(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict on the CPU, with the names that it has without `torch.compile`."""
    return {plain_name(name): tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def run_parts(run: Run, state: State) -> list[dict]:
    """A run's parts that were trained in different environments, each with it and its training images and seconds."""
    count, history, size = len(run.data.train_labels), state.history, run.settings.batch_size
    images = count * len(history["epoch"]) + min(state.step * size, count)
    images -= sum(part["images"] for part in state.parts)
    seconds = sum(history["seconds"]) + state.seconds - sum(part["seconds"] for part in state.parts)
    part = {"environment": environment_in_use(run), "images": images, "seconds": seconds}
    return [*state.parts, part] if images else state.parts


def environment_in_use(run: Run) -> dict[str, object]:
    """Where the run is trained, with the threads that its steps use."""
    with tiny_steps(run.settings.batch_size):
        return environment_record(run.execution)


def save_state(run: Run, state: State) -> None:
    """Write `checkpoint.pth`; every process must call this, and rank 0 writes."""
    state = dataclasses.replace(state, losses=all_reduce(state.losses), parts=run_parts(run, state))
    if run.execution.rank == 0:
        head = {"experiment": run.settings.experiment, "config": config_of(run.settings)}
        parts = {"dataset": dataset_record(run.data), "model": run.model.state_dict()}
        content = {**head, **parts, "optimizer": run.optimizer.state_dict(), **vars(state)}
        try:
            write_torch(run.folder / "checkpoint.pth", content)
        except FileInUse as error:
            print(f"warning: {error}. The run goes on.", file=sys.stderr)


def run_to_continue(folder: Path, settings: Settings, dataset: dict[str, object], launch: str) -> dict | None:
    """With `--resume` the folder's checkpoint, or the record of its finished run, or None to start at the beginning.

    Prints which, and why. `launch` is what `launch_note` says: processes that torchrun starts again continue, too.
    UserError if what is to be continued is damaged or of other settings; without `--resume` a checkpoint is set aside.
    """
    path = folder / "checkpoint.pth"
    if not path.is_file():
        if settings.resume or launch == "finished":
            return finished_run(folder, settings, dataset)
        return None
    if not (settings.resume or launch):
        set_aside(path)
        return None
    checkpoint = read_checkpoint(path)
    check_same_settings(checkpoint, settings, dataset, path)
    precision = f" in {checkpoint['parts'][-1]['environment']['precision']}" if checkpoint["parts"] else ""
    print(f"resuming at epoch {checkpoint['epoch']}, step {checkpoint['step']}{precision}")
    return checkpoint


def finished_run(folder: Path, settings: Settings, dataset: dict[str, object]) -> dict | None:
    """The record of the folder's finished run, or None if there is none; UserError if it is of other settings."""
    path = folder / "loss.json"
    if not all((folder / name).is_file() for name in ("best_model.pth", "model.pth", "loss.json")):
        print(f"no checkpoint in {folder}: starting at the beginning")
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check_same_settings(record, settings, dataset, path)
        print(f"this run has finished, {describe_result(record['result'])}: {folder}")
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is no result of these scripts: give another --output") from error
    return record


def set_aside(path: Path) -> None:
    """Give an interrupted run's checkpoint another name, so that a new run doesn't overwrite it."""
    kept = next(name for i in itertools.count(1) if not (name := path.with_name(f"checkpoint-{i}.pth")).exists())
    try:
        path.rename(kept)
    except OSError as error:
        raise UserError(f"{path} can't be renamed to {kept.name}: {error.strerror}") from error
    print(f"{path} is of an interrupted run, which --resume would continue. Starting afresh; it is now {kept.name}.")


def read_checkpoint(path: Path) -> dict:
    """A `checkpoint.pth`; UserError if it is damaged or another file."""
    checkpoint, added_later = read_torch(path), {"total_seconds", "mirrored_test_accuracy", "parts"}
    needed = {"config", "dataset", "model", "optimizer", *vars(State())} - added_later
    if not isinstance(checkpoint, dict) or not needed <= set(checkpoint):
        raise UserError(f"{path} is no checkpoint of these scripts")
    return {"total_seconds": sum(checkpoint["history"]["seconds"]), "parts": [], **checkpoint}


def check_same_settings(saved: dict, settings: Settings, dataset: dict[str, object], path: Path) -> None:
    """UserError that lists what differs from the settings and data of a checkpoint or a finished run.

    A constant learning rate does not depend on the epochs to come, so that a checkpoint may have more of them, if all
    images have one size.
    """
    was = EARLIER_VALUES | saved["config"] | saved["dataset"]
    changed = differences(config_of(settings) | dataset, was)
    independent = settings.schedule == "constant" and len(sizes_of(settings)) == 1
    if independent and settings.epochs >= was["epochs"] and "result" not in saved:
        changed.pop("epochs", None)
    if changed:
        listed = ", ".join(f"{name} {was.get(name)} -> {value}" for name, value in changed.items())
        raise UserError(f"{path} is of other settings ({listed}): give the same ones, or start without --resume")


def continue_from(run: Run, checkpoint: dict) -> State:
    """Load a checkpoint's model and optimizer; its state, as training goes on from it."""
    run.model.load_state_dict(checkpoint["model"])
    run.optimizer.load_state_dict(checkpoint["optimizer"])
    state = State(**{name: checkpoint[name] for name in vars(State()) if name in checkpoint})
    same = state.parts and state.parts[-1]["environment"] == environment_in_use(run)
    # Losses so far are those of all processes: rank 0's share from here on.
    losses = state.losses * (run.execution.rank == 0)
    return dataclasses.replace(state, losses=losses, parts=state.parts[:-1] if same else state.parts)


# --- Results ----------------------------------------------------------------------------------


def run_record(run: Run, state: State) -> dict:
    """What `loss.json` holds of a finished run; docs/settings.md documents it."""
    history, mirrored, parts = state.history, state.mirrored_test_accuracy, run_parts(run, state)
    epoch, chosen_on = best_epoch(history)
    result = {
        "final_test_accuracy": history["test_accuracy"][-1],
        "best_test_accuracy": history["test_accuracy"][epoch - 1],
        "best_epoch": epoch,
        "best_epoch_chosen_on": chosen_on,
        **({} if mirrored is None else {"mirrored_test_accuracy": mirrored}),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "train_accuracy_images": len(run.data.train_labels[evaluated_part(run.data)]),
        "train_seconds": sum(history["seconds"]),
        "total_seconds": state.total_seconds,
        "images_per_second": parts[-1]["images"] / parts[-1]["seconds"],
    }
    head = {"experiment": run.settings.experiment, "config": config_of(run.settings)}
    where = {"dataset": dataset_record(run.data), "environment": parts[-1]["environment"]}
    where |= {"parts": parts} if len(parts) > 1 else {}
    return {**head, **where, "history": history, "steps": state.steps, "result": result}


def write_results(run: Run, record: dict, best_model: dict[str, Tensor], changed: str) -> None:
    """Put a finished run's four files into its folder; only then is its checkpoint removed.

    `changed` says in which settings it differs from the stated ones.
    """
    folder = run.folder
    write_torch(folder / "best_model.pth", best_model)
    write_torch(folder / "model.pth", weights_on_cpu(run.model))
    write_file(folder / "loss.json", json.dumps(record, indent=1, allow_nan=False).encode())
    write_picture(folder / "loss.png", draw_losses, record, changed)
    try:
        (folder / "checkpoint.pth").unlink()
    except OSError as error:  # on Windows, another program may have it open
        print(f"warning: the run has ended, but {error.filename} can't be removed: {error.strerror}", file=sys.stderr)
    print(f"{record['result']['train_seconds']:.1f} s of training; results in {folder}")
    print(f"{describe_result(record['result'])}{standing(record)}")


# --- A run ------------------------------------------------------------------------------------


def run(settings: Settings, stated: Settings | None = None) -> dict:
    """Train as the experiment's script does with these settings; what it writes to `loss.json`.

    The folder is named after what differs from the `stated` settings, by default those of the experiment's script.
    Raises UserError for what the user can put right, and Interrupted after a signal; the same settings
    with `resume=True` then go on. Under `torchrun` only rank 0 reads, writes and prints.
    """
    stated = stated or stated_settings(settings.experiment) or settings
    settings = validated(settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([]))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        model = build_model(settings)
        interface = interface_of(model)
        execution = start_execution(settings.device, settings.precision, interface.bf16, settings.data_parallel)
        first, precision = execution.rank == 0, from_rank_0(execution.precision)  # machines may differ
        data, warning = from_rank_0(load_data(settings.dataset, settings.data_dir) if first else None)
        data = hold_out(data, settings.validation_images)
        with torch.no_grad():
            interface.initialise(data.train_images)
            check_smallest_share(tried(model), settings, len(data.train_labels), execution.world_size)
        differing = differences(config_of(settings), config_of(stated))
        folder, changed = run_folder(settings, differing, data.name), describe(differing)
        if first:
            stack.enter_context(locked_run_folder(folder))
            sys.stderr.write(warning)
            introduce(settings, changed, execution, data)
        launch = launch_note(execution.store, folder)
        earlier = from_rank_0(run_to_continue(folder, settings, dataset_record(data), launch) if first else None)
        if earlier and "result" in earlier:
            leave_processes()
            return earlier
        if earlier and earlier["parts"]:
            precision = earlier["parts"][-1]["environment"]["precision"]
        execution = dataclasses.replace(execution, precision=precision)
        if first:
            note_launch(execution.store, folder, "begun")
        this_run = prepare_run(settings, execution, data, model, folder)
        stack.enter_context(process_settings(execution.device, this_run.signals))
        state = train(this_run, continue_from(this_run, earlier) if earlier else State())
        record = run_record(this_run, state)
        if first:
            write_results(this_run, record, state.best_model, changed)
            note_launch(execution.store, folder, "finished")
            sys.stderr.writelines(warning.splitlines(keepends=True)[1:2])  # once more, in short
        leave_processes()
    return record


def run_folder(settings: Settings, differing: dict[str, object], dataset: str) -> Path:
    """modelset/<experiment>/, with a subfolder named after what differs from the stated settings."""
    name = describe(differing if dataset == "cifar10" else differing | {"dataset": dataset})
    return expanded(settings.output or HERE / "modelset" / settings.folder / re.sub(r"[/\\]", "_", name))


def introduce(settings: Settings, changed: str, execution: Execution, data: Data) -> None:
    """Print what is about to be trained, and what is `changed` from the stated settings; all are in loss.json."""
    print(f"{settings.experiment}, {changed.replace(',', ', ') or 'as stated'}")
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
