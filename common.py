"""What the CIFAR-10 experiments share, from the top: a run, and what it calls, in the order in which it calls it.

what is to be trained -> begun or resumed -> trained: epochs, steps, tests -> saved and written -> the command line

An experiment script states its `Settings` and calls `main`; a notebook calls `run`, and `load` for a trained model.
Nothing runs on import, except that OpenMP is asked, before torch loads it, not to keep a core busy while it waits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import random
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NoReturn

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

from cifar10lab.data.augmentation import augment, cut_out, pad, scaled
from cifar10lab.data.loading import Data, dataset_record, hold_out, load_data
from cifar10lab.devices.execution import (
    Execution,
    InPrecision,
    environment_record,
    own_process_state,
    parallel_network,
    process_settings,
    start_execution,
    tiny_steps,
)
from cifar10lab.devices.processes import (
    all_reduce,
    first_to_say,
    from_rank_0,
    launch_note,
    note_launch,
    share_buffers,
)
from cifar10lab.files.earlier import RESULTS, code_of_results, move_earlier
from cifar10lab.files.locks import locked
from cifar10lab.files.pictures import write_picture
from cifar10lab.files.tensors import read_torch, write_torch
from cifar10lab.files.writing import FileInUse, expanded, write_file
from cifar10lab.inspection.models import load
from cifar10lab.models.interface import Interface, interface_of, model_input, plain_name, to_device
from cifar10lab.models.lenet import LeNet
from cifar10lab.models.resnet import ResNet18
from cifar10lab.models.source import is_being_imported, make_model, source_of
from cifar10lab.models.trial import try_model
from cifar10lab.results.descriptions import describe_epoch, describe_result, describe_seeds
from cifar10lab.results.history import HISTORY, best_epoch, finer_losses
from cifar10lab.results.loss_plot import draw_losses
from cifar10lab.results.reference import standing
from cifar10lab.settings.code import code_record
from cifar10lab.settings.differences import describe, differences
from cifar10lab.settings.experiment import (
    HERE,
    Settings,
    checked,
    config_of,
    options_of,
    parse_arguments,
    stated_settings,
)
from cifar10lab.settings.schedule import learning_rate, resolution, sizes_of
from cifar10lab.terminal.errors import UserError, WrongOption
from cifar10lab.terminal.output import end_by_signal, make_output_last, progress_bar

__all__ = ["Interface", "Interrupted", "LeNet", "ResNet18", "Settings", "UserError", "load", "main", "run"]

CHUNK_IMAGES = {"cpu": 256, "cuda": 8192, "mps": 8192}  # prepared at once; the CPU's stay in its cache
EVALUATION_BATCH_SIZE = {"cpu": 125, "cuda": 2000, "mps": 500}
TRAIN_EVALUATION_IMAGES = 10_000


class Interrupted(Exception):
    """A signal to stop arrived during training, and what was done is saved; `args[0]` is its number."""

    def __str__(self) -> str:
        return f"stopped by signal {self.args[0]} and saved: go on with resume=True"


@dataclass(frozen=True)
class Training:
    """What belongs to one run and stays while its state moves on."""

    settings: Settings
    execution: Execution
    data: Data  # from `ready_to_train` on, on the execution's device
    model: nn.Module  # whose weights are trained and saved
    folder: Path  # of the run's files
    changed: str = ""  # in what the settings differ from the stated ones, as "lr=0.01,seed=1"
    code: dict[str, object] = dataclasses.field(default_factory=dict)  # which code this is, as loss.json keeps it
    started: str = ""  # as "2026-11-29T20:15:00+01:00"
    signals: list[int] = dataclasses.field(default_factory=list)  # numbers of those that have arrived
    network: nn.Module | None = None  # from `ready_to_train` on: the model in its precision, wrapped for its GPUs or
    optimizer: torch.optim.Optimizer | None = None  # processes, and what trains it

    @property
    def interface(self) -> Interface:
        """What the model says of itself."""
        return interface_of(self.model)


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
    parts: list[dict] = dataclasses.field(default_factory=list)  # those before this one, as `parts_so_far` has them
    mirrored_test_accuracy: float | None = None  # of a run that has ended, and trained with flips


def run(settings: Settings, stated: Settings | None = None) -> dict:
    """Train as the experiment's script does with these settings; what it writes to `loss.json`.

    The folder is named after what differs from the `stated` settings, by default those of the experiment's script.
    Raises UserError for what the user can put right, and Interrupted after a signal; the same settings
    with `resume=True` then go on. Under `torchrun`, or in a process group that the caller has made, only rank 0 reads,
    writes and prints. A run in another thread of this process waits for its end.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(own_process_state())
        training, warning = to_be_trained(settings, stated)
        first = training.execution.rank == 0
        if first:
            stack.enter_context(locked(training.folder))
            sys.stderr.write(warning)
            announce(training)
        saved = from_rank_0(saved_run(training) if first else None)
        if saved and "result" in saved:
            return saved
        training = ready_to_train(training, saved)
        stack.enter_context(process_settings(training.execution.device, training.signals))
        state = train(training, continue_from(training, saved) if saved else State())
        record = run_record(training, state)
        if first:
            write_results(training, record, state.best_model)
            note_launch(training.execution.store, training.folder, "finished")
            sys.stderr.writelines(warning.splitlines(keepends=True)[1:2])  # once more, in short
    return record


# --- What is to be trained --------------------------------------------------------------------


def to_be_trained(settings: Settings, stated: Settings | None) -> tuple[Training, str]:
    """The settings' model and data, and where they are trained; and a warning if nobody asked for these data.

    UserError if they don't fit each other.
    """
    stated = stated or stated_settings(settings.experiment) or settings
    settings = checked(settings)
    model = build_model(settings)
    interface = interface_of(model)
    execution = start_execution(settings.device, settings.precision, interface.bf16, settings.data_parallel)
    same = torch.tensor(int(from_rank_0(config_of(settings)) == config_of(settings)))
    if all_reduce(same) < execution.world_size:
        raise UserError("the processes of a group train one model together: all must be given the same settings")
    data, warning = from_rank_0(data_of(settings, execution) if execution.rank == 0 else None)
    data = hold_out(data, settings.validation_images)
    with torch.no_grad():
        interface.initialise(data.train_images)
    last = len(data.train_labels) % settings.batch_size or settings.batch_size
    try_model(model, execution, sizes_of(settings), last // execution.world_size)
    differing = differences(config_of(settings), config_of(stated))
    folder, changed = run_folder(settings, differing, data.name), describe(differing)
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    return Training(settings, execution, data, model, folder, changed, code_record(settings), started), warning


def data_of(settings: Settings, execution: Execution) -> tuple[Data, str]:
    """The settings' data; and a warning if nobody asked for them, which in several processes is a UserError."""
    if execution.parallel != "DistributedDataParallel":
        return load_data(settings.dataset, settings.data_dir)
    try:
        return load_data(settings.dataset.replace("auto", "cifar10"), settings.data_dir)
    except UserError as error:
        raise UserError(f"on {platform.node()}, where rank 0 is: {error}") from error


def build_model(settings: Settings) -> nn.Module:
    """The settings' model, with weights drawn from their seed.

    WrongOption for options and an optimizer that it can't take.
    """
    seed_generators(settings.seed)
    model = make_model(settings.model, options_of(settings))
    if settings.optimizer != "sgd" and interface_of(model).optimizer:
        own = f"{settings.model.__name__} brings its own optimizer"
        raise WrongOption(f"{own}: leave out --optimizer {settings.optimizer}")
    if settings.optimizer != "sgd" and settings.nesterov:
        raise WrongOption("--nesterov is of --optimizer sgd; --no-nesterov does without")
    return model


def run_folder(settings: Settings, differing: dict[str, object], dataset: str) -> Path:
    """modelset/<experiment>/, with a subfolder named after what differs from the stated settings."""
    name = describe(differing if dataset == "cifar10" else differing | {"dataset": dataset})
    return expanded(settings.output or HERE / "modelset" / settings.folder / re.sub(r"[/\\]", "_", name))


def announce(training: Training) -> None:
    """Print what is about to be trained, and in what it differs from the stated settings; all are in loss.json."""
    data, execution = training.data, training.execution
    print(f"{training.settings.experiment}, {training.changed.replace(',', ', ') or 'as stated'}")
    print(f"on {data.name} ({data.source}), {execution.device}, {execution.precision}, parallel: {execution.parallel}")
    if execution.parallel == "DistributedDataParallel":
        print(f"data, checkpoints and results are those of {platform.node()}, where rank 0 is: {training.folder}")
    if training.settings.data_parallel and execution.parallel == "none":
        print("no more than one GPU to use: training without DataParallel")


# --- Begun or resumed -------------------------------------------------------------------------


def saved_run(training: Training) -> dict | None:
    """With `--resume` the folder's checkpoint, or the record of its finished run, or None to start at the beginning.

    Prints which, and why; processes that torchrun starts again continue, too.
    UserError if what is to be continued is damaged or of other settings; without `--resume` a checkpoint is set aside.
    """
    path, resume, again = training.folder / "checkpoint.pth", training.settings.resume, training.execution.again
    note = launch_note(training.execution.store, training.folder)
    if not path.is_file():
        if resume or note == "finished":
            return finished_run(training)
        if again or note:
            print(f"started again, but on {platform.node()} there is no {path}: starting at the beginning")
        return None
    if not (resume or again or note):
        kept = move_earlier(training.folder, path.name)
        print(f"{path} is of an interrupted run, which --resume would continue. Starting afresh; it is now in {kept}.")
        return None
    checkpoint = read_checkpoint(path)
    check_same_run(checkpoint, training, path)
    precision = f" in {checkpoint['parts'][-1]['environment']['precision']}" if checkpoint["parts"] else ""
    print(f"resuming at epoch {checkpoint['epoch']}, step {checkpoint['step']}{precision}")
    if checkpoint["code"] != training.code:
        print("note: the code has changed since; loss.json will say which part is of which")
    return checkpoint


def finished_run(training: Training) -> dict | None:
    """The record of the folder's finished run, or None if there is none; UserError if it is of other settings."""
    folder, path = training.folder, training.folder / "loss.json"
    if not all((folder / name).is_file() for name in ("best_model.pth", "model.pth", "loss.json")):
        print(f"no checkpoint in {folder}: starting at the beginning")
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check_same_run(record, training, path)
        print(f"this run has finished, {describe_result(record['result'])}: {folder}")
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is no result of these scripts: give another --output") from error
    return record


def read_checkpoint(path: Path) -> dict:
    """A `checkpoint.pth`; UserError if it is damaged or another file."""
    checkpoint = read_torch(path)
    needed = {"config", "code", "dataset", "model", "optimizer", *vars(State())}
    if not isinstance(checkpoint, dict) or not needed <= set(checkpoint):
        raise UserError(f"{path} is no checkpoint of these scripts")
    return checkpoint


def check_same_run(saved: dict, training: Training, path: Path) -> None:
    """UserError that lists what differs from the settings and data of a checkpoint or a finished run.

    A constant learning rate does not depend on the epochs to come, so that a checkpoint may have more of them, if all
    images have one size.
    """
    settings, was = training.settings, saved["config"]
    changed = differences(config_of(settings), was)
    independent = settings.schedule == "constant" and len(sizes_of(settings)) == 1
    if independent and settings.epochs >= was["epochs"] and "result" not in saved:
        changed.pop("epochs", None)
    texts = [f"{name} {was.get(name)} -> {value}" for name, value in changed.items()]
    data, before = dataset_record(training.data), saved["dataset"]
    if "checksum" in before:  # the images and their order decide, not the form in which they lie there
        data, before = ({"images": record["source"], "checksum": record["checksum"]} for record in (data, before))
        same = data["checksum"] == before["checksum"]
        texts += [] if same else [f"other images or in another order: {before['images']} -> {data['images']}"]
    else:
        data.pop("checksum")
        texts += [f"{name} {before.get(name)} -> {value}" for name, value in data.items() if before.get(name) != value]
    if texts:
        raise UserError(
            f"{path} is of other settings ({', '.join(texts)}): give the same ones, or start without --resume"
        )


def ready_to_train(training: Training, checkpoint: dict | None = None) -> Training:
    """The same with data and model on their device, and a network and an optimizer; in the checkpoint's precision."""
    execution, settings = training.execution, training.settings
    precision = from_rank_0(execution.precision)  # machines may differ
    if checkpoint and checkpoint["parts"]:
        precision = checkpoint["parts"][-1]["environment"]["precision"]
    execution = dataclasses.replace(execution, precision=precision)
    if execution.rank == 0:
        note_launch(execution.store, training.folder, "begun")
    model, interface = to_device(training.model, execution.device), training.interface
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = interface.optimizer(settings) if interface.optimizer else torch_optimizer(learning, settings)
    for group in optimizer.param_groups:
        group["lr_ratio"] = float(group["lr"]) / settings.lr if settings.lr else 0.0
    if settings.lr and all(group["lr_ratio"] != 1 for group in optimizer.param_groups) and execution.rank == 0:
        ratios = ", ".join(f"{group['lr_ratio']:g}" for group in optimizer.param_groups)
        print(f"the optimizer's own learning rates are --lr times {ratios}, and stay so under every schedule")
    arrays = {
        name: value.to(execution.device) for name, value in vars(training.data).items() if isinstance(value, Tensor)
    }
    data = dataclasses.replace(training.data, **arrays)
    network = parallel_network(InPrecision(model, execution.precision), execution, interface.static_graph)
    started = checkpoint["started"] if checkpoint else training.started
    made = {"execution": execution, "data": data, "network": network, "optimizer": optimizer}
    return dataclasses.replace(training, started=started, **made)


def torch_optimizer(parameters: Iterable, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer that the settings state."""
    if settings.optimizer == "sgd":
        return sgd(parameters, settings)
    rates = {"lr": settings.lr, "betas": (settings.momentum, 0.999), "weight_decay": settings.weight_decay}
    return torch.optim.AdamW(parameters, **rates, fused=True)


def sgd(parameters: Iterable, settings: Settings) -> torch.optim.SGD:
    """SGD as the settings state it, over parameters or groups of them."""
    rates = {"lr": settings.lr, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    return torch.optim.SGD(parameters, **rates, nesterov=settings.nesterov, fused=True)


def continue_from(training: Training, checkpoint: dict) -> State:
    """Load a checkpoint's model and optimizer; its state, as training goes on from it."""
    training.model.load_state_dict(checkpoint["model"])
    training.optimizer.load_state_dict(checkpoint["optimizer"])
    state = State(**{name: checkpoint[name] for name in vars(State()) if name in checkpoint})
    now = {"environment": environment_in_use(training), "code": training.code}
    same = state.parts and now.items() <= state.parts[-1].items()
    # Losses so far are those of all processes: rank 0's share from here on.
    losses = state.losses * (training.execution.rank == 0)
    return dataclasses.replace(state, losses=losses, parts=state.parts[:-1] if same else state.parts)


# --- Trained: epochs, steps, tests ------------------------------------------------------------


def train(training: Training, state: State) -> State:
    """Train on from `state` to the run's last epoch, save it after each, and return it.

    When a signal arrives, the steps so far are saved and Interrupted is raised. Raises UserError when the loss
    becomes NaN or infinite.
    """
    began = time.perf_counter() - state.total_seconds
    while state.epoch <= training.settings.epochs:
        try:
            for reached in train_epoch(training, state):
                state = reached  # also when a signal ends the epoch early
            losses = all_reduce(state.losses)
            check_finite(losses, state.epoch, 0)
            row = evaluate_epoch(training, state, losses)
        except Interrupted:
            save_state(training, dataclasses.replace(state, total_seconds=time.perf_counter() - began))
            raise
        state = next_epoch(training, state, losses, row)
        state = dataclasses.replace(state, total_seconds=time.perf_counter() - began)
        save_state(training, state)
        if training.execution.rank == 0:
            print(describe_epoch(row, training.settings.epochs, len(training.data.train_labels)))
    if training.settings.augment:
        _, accuracy = evaluate(training, training.data.test_images, training.data.test_labels, mirrored=True)
        state = dataclasses.replace(state, mirrored_test_accuracy=accuracy)
    return dataclasses.replace(state, total_seconds=time.perf_counter() - began)


def train_epoch(training: Training, state: State) -> Iterator[State]:
    """Train to the end of the epoch in progress; the state after each chunk, and at the end.

    Raises Interrupted when a signal has arrived: the state before it is then the one to be saved.
    """
    count, size, on_cpu = (
        len(training.data.train_labels),
        training.settings.batch_size,
        training.execution.device.type == "cpu",
    )
    title, done = f"epoch {state.epoch}/{training.settings.epochs}", min(state.step * size, count)
    with tiny_steps(size), progress_bar(title, count, done, hidden=training.execution.rank != 0) as bar:
        started = time.perf_counter() - state.seconds
        for batches, sizes, rates in epoch_chunks(training, state.epoch, state.step):
            check_signals(training)
            losses = train_chunk(training, batches, sizes, rates)
            if on_cpu:  # on a GPU this would make the host wait
                check_finite(losses, state.epoch, state.step)
                bar.set_postfix(loss=f"{losses.sum() * training.execution.world_size / sum(sizes):.3f}", refresh=False)
            bar.update(sum(sizes))
            losses = torch.cat([state.losses.to(losses.device), losses])
            seconds = time.perf_counter() - started
            state = dataclasses.replace(state, step=state.step + len(batches), losses=losses, seconds=seconds)
            yield state
        losses = state.losses.cpu()  # on a GPU, this waits for the last steps
        yield dataclasses.replace(state, losses=losses, seconds=time.perf_counter() - started)


def epoch_chunks(training: Training, epoch: int, step: int) -> Iterator[tuple[list[tuple[Tensor, Tensor]], list, list]]:
    """The epoch's batches from `step` on, prepared a chunk of them at a time.

    Yields this process's shares of the batches, (images float32, labels), the whole batches' sizes, and the learning
    rates of their steps.
    Order and augmentation follow from seed and epoch alone: neither the number of processes nor
    an interruption changes them. Dropout's masks follow from seed, epoch, step and rank, by a stream of their own.
    """
    data, rank, seed, settings = training.data, training.execution.rank, training.settings.seed, training.settings
    count, device = len(data.train_labels), training.execution.device
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    order = torch.randperm(count, generator=generator).to(device)
    shifts = torch.randint(0, 2 * settings.crop_padding + 1, (2, count), generator=generator).to(device)
    flips = torch.rand(count, generator=generator).lt(0.5).to(device)
    centres = torch.randint(0, 32, (2, count), generator=generator).to(device)
    if settings.flips == "alternating":
        first_flips = torch.rand(count, generator=generator.manual_seed(mixed_seed(seed, 0))).lt(0.5).to(device)
        flips = (first_flips ^ (epoch % 2 == 0))[order]
    steps = torch.arange(count, device=device).split(settings.batch_size)  # each one's positions in that order
    chunk_steps = max(1, CHUNK_IMAGES[device.type] // settings.batch_size)
    for first in range(step, len(steps), chunk_steps):
        seed_generators(mixed_seed(seed, epoch, first, rank, 1))  # 0s at the end would change nothing
        chunk = steps[first : first + chunk_steps]
        shares = [positions.tensor_split(training.execution.world_size)[rank] for positions in chunk]
        share_sizes, positions = [len(share) for share in shares], torch.cat(shares)
        images, labels = data.train_images[order[positions]], data.train_labels[order[positions]]
        if settings.augment:
            padded = pad(images, settings.crop_padding, settings.padding_mode)
            images = augment(padded, shifts[:, positions], flips[positions])
        images = model_input(images, training.interface)
        if settings.cutout:
            images = cut_out(images, centres[:, positions], settings.cutout)
        images = scaled(images, resolution(settings, epoch))
        batches = list(zip(images.split(share_sizes), labels.split(share_sizes), strict=True))
        rates = [learning_rate(settings, epoch, (first + i + 0.5) / len(steps)) for i in range(len(chunk))]
        yield batches, [len(positions) for positions in chunk], rates


def mixed_seed(*numbers: int) -> int:
    """A 32-bit seed that depends on all of `numbers`, such as the run's seed and the epoch."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's own generators, from any of which a model may draw."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def train_chunk(
    training: Training, batches: list[tuple[Tensor, Tensor]], sizes: list[int], rates: list[float]
) -> Tensor:
    """One step per batch, on this process's shares of them; float32 (batches,): each loss, summed over its images.

    What is minimised is the mean over the whole batch, whose size `sizes` has, at the learning rate in `rates`.
    """
    set_mode(training, train=True)
    losses, parameters, world_size = [], list(training.model.parameters()), training.execution.world_size
    weights = {size: torch.full((), world_size / size, device=training.execution.device) for size in set(sizes)}
    smoothing = training.settings.label_smoothing
    for (images, labels), size, rate in zip(batches, sizes, rates, strict=True):
        for group in training.optimizer.param_groups:
            group["lr"] = rate * group["lr_ratio"]
        loss = F.cross_entropy(training.network(images), labels, reduction="sum", label_smoothing=smoothing)
        for parameter in parameters:
            parameter.grad = None  # as optimizer.zero_grad() does, which takes ten times as long
        loss.backward(weights[size])
        training.optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def set_mode(training: Training, train: bool) -> None:
    """Put the model into that mode, and an optimizer that has modes, as those of the package schedulefree."""
    training.model.train(train)
    switch = getattr(training.optimizer, "train" if train else "eval", None)
    if switch:
        switch()


def evaluate_epoch(training: Training, state: State, losses: Tensor) -> dict[str, float]:
    """What the ended epoch, whose steps had these losses, adds to the history."""
    data, some = training.data, evaluated_images(training.data)
    seed_generators(mixed_seed(training.settings.seed, state.epoch, training.execution.rank, 2))
    share_buffers(training.model)  # rank 0's are saved
    _, train_accuracy = evaluate(training, data.train_images[some], data.train_labels[some])
    test_loss, test_accuracy = evaluate(training, data.test_images, data.test_labels)
    check_finite(torch.tensor(test_loss), state.epoch, state.step - 1)
    train_loss, rate = losses.sum().item() / len(data.train_labels), learning_rate(training.settings, state.epoch)
    row = (state.epoch, train_loss, train_accuracy, test_loss, test_accuracy, rate, state.seconds)
    validation = {}
    if len(data.validation_labels):
        loss, accuracy = evaluate(training, data.validation_images, data.validation_labels)
        check_finite(torch.tensor(loss), state.epoch, state.step - 1)
        validation = {"validation_loss": loss, "validation_accuracy": accuracy}
    return dict(zip(HISTORY, row, strict=True)) | validation


def evaluate(training: Training, images: Tensor, labels: Tensor, mirrored: bool = False) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in per cent, in eval mode, over all processes; the mode stays.

    Images uint8 (N, 3, 32, 32), labels int64 (N,), on the run's device. If `mirrored`, logits are means of both sides.
    """
    execution, network, sums = training.execution, InPrecision(training.model, training.execution.precision), []
    set_mode(training, train=False)
    with torch.no_grad():
        for batch in torch.arange(len(labels), device=images.device).split(EVALUATION_BATCH_SIZE[images.device.type]):
            check_signals(training)
            share = batch.tensor_split(execution.world_size)[execution.rank]
            views = [images[share], images[share].flip(3)] if mirrored else [images[share]]
            logits = sum(network(model_input(view, training.interface)) for view in views) / len(views)
            loss = F.cross_entropy(logits, labels[share], reduction="sum")
            sums.append(torch.stack([loss, logits.argmax(1).eq(labels[share]).sum()]))
        loss, correct = all_reduce(torch.stack(sums)).double().sum(0).tolist()
    return loss / len(labels), 100 * correct / len(labels)


def evaluated_images(data: Data) -> slice:
    """The training images that the training accuracy is measured on, spread over the classes."""
    return slice(0, None, -(-len(data.train_labels) // TRAIN_EVALUATION_IMAGES))


def check_signals(training: Training) -> None:
    """Interrupted if a signal has arrived: a signal to one process stops all of them after the same step."""
    number = max(training.signals, default=0)
    if training.execution.world_size > 1:
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


# --- Saved and written ------------------------------------------------------------------------


def next_epoch(training: Training, state: State, losses: Tensor, row: dict[str, float]) -> State:
    """The state at the beginning of the next epoch: the ended one's steps had these losses; `row` is its history."""
    history = {name: [*state.history.get(name, []), value] for name, value in row.items()}
    best = best_epoch(history)[0] == row["epoch"]
    size, count = training.settings.batch_size, len(training.data.train_labels)
    return State(
        epoch=state.epoch + 1,
        history=history,
        steps=finer_losses(state.steps, losses.numpy(), state.epoch, size, count),
        best_model=weights_on_cpu(training.model) if best else state.best_model,
        parts=state.parts,
    )


def weights_on_cpu(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict on the CPU, with the names that it has without `torch.compile`."""
    weights = {plain_name(name): value for name, value in model.state_dict().items()}
    return {name: v.detach().cpu().clone() if isinstance(v, Tensor) else v for name, v in weights.items()}


def save_state(training: Training, state: State) -> None:
    """Write `checkpoint.pth`; every process must call this, and rank 0 writes."""
    state = dataclasses.replace(state, losses=all_reduce(state.losses), parts=parts_so_far(training, state))
    if training.execution.rank == 0:
        weights = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
        try:
            write_torch(training.folder / "checkpoint.pth", {**record_head(training), **weights, **vars(state)})
        except FileInUse as error:
            print(f"warning: {error}. The run goes on.", file=sys.stderr)


def record_head(training: Training) -> dict[str, object]:
    """What `loss.json` and the checkpoint begin with: what is trained, on which data, by which code."""
    settings = training.settings
    head = {"experiment": settings.experiment, "model_source": source_of(settings.model), "config": config_of(settings)}
    return {**head, "started": training.started, "code": training.code, "dataset": dataset_record(training.data)}


def parts_so_far(training: Training, state: State) -> list[dict]:
    """A run's parts, each trained in one environment and by one code, with both, its training images and seconds."""
    count, history, size = len(training.data.train_labels), state.history, training.settings.batch_size
    images = count * len(history["epoch"]) + min(state.step * size, count)
    images -= sum(part["images"] for part in state.parts)
    seconds = sum(history["seconds"]) + state.seconds - sum(part["seconds"] for part in state.parts)
    part = {"environment": environment_in_use(training), "code": training.code, "images": images, "seconds": seconds}
    return [*state.parts, part] if images else state.parts


def environment_in_use(training: Training) -> dict[str, object]:
    """Where the run is trained, with the threads that its steps use."""
    with tiny_steps(training.settings.batch_size):
        return environment_record(training.execution)


def run_record(training: Training, state: State) -> dict:
    """What `loss.json` holds of a finished run; docs/settings.md documents it."""
    history, mirrored, parts = state.history, state.mirrored_test_accuracy, parts_so_far(training, state)
    epoch, chosen_on = best_epoch(history)
    result = {
        "final_test_accuracy": history["test_accuracy"][-1],
        "best_test_accuracy": history["test_accuracy"][epoch - 1],
        "best_epoch": epoch,
        "best_epoch_chosen_on": chosen_on,
        **({} if mirrored is None else {"mirrored_test_accuracy": mirrored}),
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "train_accuracy_images": len(training.data.train_labels[evaluated_images(training.data)]),
        "train_seconds": sum(history["seconds"]),
        "total_seconds": state.total_seconds,
        "images_per_second": parts[-1]["images"] / parts[-1]["seconds"],
    }
    where = {"environment": parts[-1]["environment"]} | ({"parts": parts} if len(parts) > 1 else {})
    return {**record_head(training), **where, "history": history, "steps": state.steps, "result": result}


def write_results(training: Training, record: dict, best_model: dict[str, Tensor]) -> None:
    """Put a finished run's four files into its folder; only then is its checkpoint removed.

    Results of other code that are there are moved into a folder of their own.
    """
    folder = training.folder
    if code_of_results(folder) not in (None, training.code):
        kept = move_earlier(folder, *RESULTS)
        print(f"the results that were in {folder} are of other code: they are now in {kept}")
    write_torch(folder / "best_model.pth", best_model)
    write_torch(folder / "model.pth", weights_on_cpu(training.model))
    write_file(folder / "loss.json", json.dumps(record, indent=1, allow_nan=False).encode())
    write_picture(folder / "loss.png", draw_losses, record, training.changed)
    try:
        (folder / "checkpoint.pth").unlink()
    except OSError as error:  # on Windows, another program may have it open
        print(f"warning: the run has ended, but {error.filename} can't be removed: {error.strerror}", file=sys.stderr)
    print(f"{record['result']['train_seconds']:.1f} s of training; results in {folder}")
    print(f"{describe_result(record['result'])}{standing(record)}")


# --- The command line -------------------------------------------------------------------------


def main(stated: Settings, description: str | None) -> None:
    """Run an experiment script: its stated settings, with the command line's changes. Nothing, while it is imported.

    Exit codes: 0; 1 for what went wrong; 2 for wrong arguments. After SIGHUP, Ctrl-C or SIGTERM it ends by that signal.
    """
    if is_being_imported():
        return
    make_output_last()
    try:
        every = parse_arguments(stated, description)
        records = [run(settings, stated) for settings in every]
        if len(records) > 1 and os.environ.get("RANK", "0") == "0":
            print(f"\n{describe_seeds(records)}{standing(records[0])}")
    except WrongOption as error:
        fail(f"{Path(sys.argv[0]).name}: error: {error}", 2)
    except UserError as error:
        fail(f"error: {error}")
    except Interrupted as interruption:
        command = shlex.join(["python", *(word for word in sys.argv if word != "--resume"), "--resume"])
        if dist.is_torchelastic_launched():
            command = "start torchrun again in the same way, with --resume at the end"
        if os.environ.get("RANK", "0") == "0":
            print(f"stopped by signal {interruption.args[0]} and saved; to continue: {command}", file=sys.stderr)
        end_by_signal(interruption.args[0])
    except KeyboardInterrupt:
        end_by_signal(signal.SIGINT)
    except RuntimeError as error:
        if re.search("out of memory|allocate memory|not enough memory", str(error)):
            sizes = [name for name, value in options_of(every[0]).items() if type(value) is int]
            flags = " or ".join(f"--{name.replace('_', '-')}" for name in ["batch_size", *sizes])
            fail(f"error: there is not enough memory: try a smaller {flags}")
        if re.search("Connection (closed|reset) by peer|remote process exited", str(error)):
            fail("error: the connection to another process is lost; its own message says why")
        raise


def fail(message: str, code: int = 1) -> NoReturn:
    """Exit; of torchrun's processes that have the same message, one shows it."""
    if first_to_say(message):
        print(message, file=sys.stderr)
    sys.exit(code)
