"""What the CIFAR-10 experiments share: `run`, and below it what `run` calls, in the order of the calls.

what is to be trained -> begun or resumed -> trained: epochs, steps, tests -> saved and written -> the command line

An experiment script states its `Settings` and calls `main`; a notebook calls `run`, and `load` for a trained model.
Importing this runs nothing, but sets one environment variable for OpenMP.
"""

import contextlib
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
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np

# GNU OpenMP's threads spin while they wait for each other: when another program needs a core, an epoch takes many times
# as long. Without any spinning, an idle machine loses two fifths of its speed (benchmarks/README.md). So they spin
# briefly. OpenMP reads the variable when torch loads it; what the user has set stays.
if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cifar10lab.data.augmentation import augment, cut_out
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
from cifar10lab.devices.processes import all_reduce, from_rank_0, share_buffers
from cifar10lab.files.locks import locked
from cifar10lab.files.pictures import write_picture
from cifar10lab.files.tensors import read_torch, write_torch
from cifar10lab.files.writing import RESULTS, FileInUse, move_earlier, write_file
from cifar10lab.inspection.models import load
from cifar10lab.models.interface import Interface, interface_of, model_input, plain_name, to_device, try_model
from cifar10lab.models.lenet import LeNet
from cifar10lab.models.resnet import ResNet18
from cifar10lab.models.source import code_record, is_being_imported, make_model, source_of
from cifar10lab.results.history import HISTORY, best_epoch, describe_epoch, describe_result, draw_losses, finer_losses
from cifar10lab.results.reference import beside_reference, is_repeated, mean_text
from cifar10lab.settings.experiment import Settings, checked, config_of, differences, parse_arguments, run_folder
from cifar10lab.settings.schedule import learning_rate, resolution, sizes_of
from cifar10lab.terminal.errors import UserError, WrongOption, in_one_line
from cifar10lab.terminal.output import end_by_signal, make_output_last

__all__ = ["Interface", "Interrupted", "LeNet", "ResNet18", "Settings", "UserError", "load", "main", "run"]

CHUNK_IMAGES = {"cpu": 256, "cuda": 8192, "mps": 8192}  # prepared at once; a CPU's chunk fits into its cache
EVALUATION_BATCH_SIZE = {"cpu": 125, "cuda": 2000, "mps": 500}
TRAIN_EVALUATION_IMAGES = 10_000
Batch = tuple[Tensor, Tensor]  # images float32 (N, 3, H, W), as the model takes them, and labels int64 (N,)


class Interrupted(Exception):
    """Training was stopped by a signal and saved; `args[0]` is the signal's number."""

    def __str__(self) -> str:
        return f"stopped by signal {self.args[0]} and saved: go on with resume=True"


@dataclass(frozen=True)
class Training:
    """What stays the same in a run while its `State` moves on."""

    settings: Settings
    execution: Execution
    data: Data  # on the CPU; from `ready_to_train` on, on the execution's device
    model: nn.Module  # whose weights are trained and saved
    folder: Path  # for the run's files
    head: dict[str, object] = field(default_factory=dict)  # as `record_head` makes it
    changed: str = ""  # settings that differ from the stated ones, as "lr=0.01,seed=1"
    signals: list[int] = field(default_factory=list)  # numbers of the signals that have arrived
    # Made by `ready_to_train`; `network` is the model in its precision, wrapped for its GPUs or processes.
    network: nn.Module | None = None
    optimizer: torch.optim.Optimizer | None = None


@dataclass(frozen=True)
class State:
    """How far a run has come; `checkpoint.pth` holds it, but no generator's state: `epoch_chunks` seeds them anew."""

    epoch: int = 1  # the one in progress
    step: int = 0  # how many of its steps are done
    # The losses of these steps, float32 (steps,), each summed over this process's images; on disk, over all images.
    losses: Tensor = field(default_factory=lambda: torch.zeros(0))
    seconds: float = 0.0  # that these steps took
    total_seconds: float = 0.0  # of the run, with evaluation and saving
    history: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in HISTORY})
    steps: dict[str, list[float]] = field(default_factory=lambda: {"epoch": [], "train_loss": []})
    best_model: dict[str, Tensor] = field(default_factory=dict)
    parts: list[dict] = field(default_factory=list)  # up to the last start, as `parts_so_far` makes them
    mirrored_test_accuracy: float | None = None  # at the end of a run with `augment`


def run(settings: Settings, stated_settings: Settings | None = None) -> dict:
    """Train as the experiment's script does, with these settings; returns what is written to `loss.json`.

    The folder is named after what differs from `stated_settings`, by default those of the experiment's script.
    Raises UserError for what the user can put right, and Interrupted after a signal: `resume=True` then continues.
    Under `torchrun`, or in a process group that the caller has made, only rank 0 reads, writes and prints.
    Runs in several threads of a process wait for each other.
    """
    if is_being_imported():
        raise UserError("a module that is imported trains nothing: call run under `if __name__ == '__main__':`")
    with own_process_state(), contextlib.ExitStack() as stack:
        training, warning = to_be_trained(settings, stated_settings)
        is_rank_0 = training.execution.rank == 0
        if is_rank_0:
            stack.enter_context(locked(training.folder))
            sys.stderr.write(warning)
            announce(training)
        saved = from_rank_0(saved_run(training) if is_rank_0 else None)
        if saved and "result" in saved:
            return saved
        training = ready_to_train(training, saved)
        stack.enter_context(process_settings(training.execution.device, training.signals))
        state = train(training, continue_from(training, saved) if saved else State())
        record = run_record(training, state)
        if is_rank_0:
            write_results(training, record, state.best_model)
            sys.stderr.writelines(warning.splitlines(keepends=True)[1:2])  # its first line, once more
        check_signals(training)  # one that came since: results are there, but the next run is not to begin
    return record


def to_be_trained(settings: Settings, stated_settings: Settings | None) -> tuple[Training, str]:
    """The settings' model, data and devices, and a warning of a stand-in unasked for; UserError if they don't fit."""
    settings = checked(settings)
    config, model = config_of(settings), build_model(settings)
    interface = interface_of(model)
    execution = start_execution(settings.device, settings.precision, interface.bf16, settings.data_parallel)
    if all_reduce(torch.tensor(int(config != from_rank_0(config)))):
        raise UserError("the processes of a group train one model together: all must be given the same settings")
    processes = execution.parallel == "DistributedDataParallel"  # they never train on a stand-in nobody asked for
    dataset = settings.dataset.replace("auto", "cifar10") if processes else settings.dataset
    data, warning = from_rank_0(load_data(dataset, settings.data_dir) if execution.rank == 0 else None)
    data = hold_out(data, settings.validation_images)
    with torch.no_grad():
        interface.initialise(data.train_images)
    last_batch = len(data.train_labels) % settings.batch_size or settings.batch_size
    try_model(model, execution, sizes_of(settings), last_batch // execution.world_size)
    folder, changed = run_folder(settings, stated_settings, data.name)
    return Training(settings, execution, data, model, folder, record_head(settings, data), changed), warning


def build_model(settings: Settings) -> nn.Module:
    """The settings' model, its weights drawn from their seed; WrongOption for options or an optimizer it can't take."""
    seed_generators(settings.seed)
    model = make_model(settings.model, settings.options)
    if settings.optimizer != "sgd" and interface_of(model).optimizer:
        raise WrongOption(f"{type(model).__name__} brings its own optimizer: leave out --optimizer")
    return model


def record_head(settings: Settings, data: Data) -> dict[str, object]:
    """What `loss.json` and the checkpoint begin with: what is trained, since when, by which code, on which data."""
    head = {"experiment": settings.experiment, "model_source": source_of(settings.model), "config": config_of(settings)}
    head |= {"started": datetime.now().astimezone().isoformat(timespec="seconds")}  # "2026-11-29T20:15:00+01:00"
    return head | {"code": code_record(settings.experiment, settings.model), "dataset": dataset_record(data)}


def announce(training: Training) -> None:
    """Print what is about to be trained, where, on which data, and how it differs from the stated settings."""
    data, execution = training.data, training.execution
    print(f"{training.settings.experiment}, {training.changed.replace(',', ', ') or 'as stated'}")
    print(f"on {data.name} ({data.source}), {execution.device}, {execution.precision}, parallel: {execution.parallel}")
    if execution.parallel == "DistributedDataParallel":
        print(f"data, checkpoints and results are those of {platform.node()}, where rank 0 is: {training.folder}")


def saved_run(training: Training) -> dict | None:
    """The checkpoint to continue from, or a finished run's record; None to start at the beginning. Prints which.

    The second only with `--resume`, the first also after a restart by torchrun; otherwise it is set aside. UserError.
    """
    folder, resume = training.folder, training.settings.resume
    path, results = folder / "checkpoint.pth", [folder / name for name in RESULTS if name != "loss.png"]
    if not (resume or training.execution.restarted):
        if path.is_file():
            kept = move_earlier(folder, path.name)
            print(f"{path}, of an interrupted run that --resume would continue, is now in {kept}: starting afresh")
        return None
    if not path.is_file() and resume and all(result.is_file() for result in results):
        path = folder / "loss.json"
    if not path.is_file():
        print(f"there is no checkpoint in {folder} on {platform.node()}: starting at the beginning")
        return None
    saved = read_saved(path)
    check_same_run(saved, training, path)
    if "result" in saved:
        print(f"this run has finished, {describe_result(saved['result'])}: {folder}")
        return saved
    precision = f" in {saved['parts'][-1]['environment']['precision']}" if saved["parts"] else ""
    print(f"resuming at epoch {saved['epoch']}, step {saved['step']}{precision}")
    if saved["code"] != training.head["code"]:
        print("note: the code has changed since; loss.json will say which part is of which")
    return saved


def read_saved(path: Path) -> dict:
    """What a `checkpoint.pth` or `loss.json` holds; UserError if it is damaged or neither of these scripts."""
    with contextlib.suppress(AttributeError, ValueError):  # of JSON that isn't, or of no dictionary
        saved = read_torch(path) if path.suffix == ".pth" else json.loads(path.read_text(encoding="utf-8"))
        if {"config", "started", "code", "dataset"} <= saved.keys():
            return saved
    raise UserError(f"{path} is damaged, or of other scripts: give another --output, or start without --resume")


def check_same_run(saved: dict, training: Training, path: Path) -> None:
    """UserError that lists how settings or data differ from those of `saved`, a checkpoint or a run's record."""
    settings, head, before = training.settings, training.head, saved["config"]
    changed = differences(head["config"], before)
    independent = settings.schedule == "constant" and len(sizes_of(settings)) == 1  # of the number of epochs
    if independent and settings.epochs >= before["epochs"] and "result" not in saved:
        changed.pop("epochs", None)
    texts = [f"{name} {before.get(name)} -> {value}" for name, value in changed.items()]
    data, before = head["dataset"], saved["dataset"]
    if data["checksum"] != before.get("checksum"):
        texts.append(f"other images or in another order: {before['source']} -> {data['source']}")
    if "result" in saved and saved["code"].get("model_code") != head["code"]["model_code"]:
        texts.append("its script or model's file has changed")
    if texts:
        raise UserError(f"{path} is of other settings ({', '.join(texts)}): give the same, or start without --resume")


def ready_to_train(training: Training, checkpoint: dict | None = None) -> Training:
    """`training` with its data and model on their device, a network and an optimizer; in the checkpoint's precision."""
    execution, settings = training.execution, training.settings
    parts = checkpoint["parts"] if checkpoint else []
    precision = parts[-1]["environment"]["precision"] if parts else from_rank_0(execution.precision)  # machines differ
    execution = replace(execution, precision=precision)
    model, interface = to_device(training.model, execution.device), interface_of(training.model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = interface.optimizer(settings) if interface.optimizer else torch_optimizer(trained, settings)
    for group in optimizer.param_groups:
        group["lr_ratio"] = float(group["lr"]) / settings.lr if settings.lr else 0.0
    tensors = {name: value for name, value in vars(training.data).items() if isinstance(value, Tensor)}
    data = replace(training.data, **{name: value.to(execution.device) for name, value in tensors.items()})
    network = parallel_network(InPrecision(model, execution.precision), execution, interface.static_graph)
    head = training.head | ({"started": checkpoint["started"]} if checkpoint else {})
    return replace(training, execution=execution, data=data, head=head, network=network, optimizer=optimizer)


def torch_optimizer(parameters: Iterable, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer that `settings.optimizer` names; `parameters` may be groups, as torch's optimizers take them."""
    rates = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": True}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, betas=(settings.momentum, 0.999), **rates)
    return torch.optim.SGD(parameters, momentum=settings.momentum, nesterov=settings.nesterov, **rates)


def continue_from(training: Training, checkpoint: dict) -> State:
    """Load a checkpoint's states into model and optimizer; returns the `State` from which training goes on."""
    try:
        training.model.load_state_dict(checkpoint["model"])
        training.optimizer.load_state_dict(checkpoint["optimizer"])
    except (LookupError, RuntimeError, ValueError) as error:
        changed = f"the model or its optimizer has changed since: {in_one_line(error)}"
        raise UserError(f"{training.folder / 'checkpoint.pth'} can't be continued: {changed}") from error
    state = State(**{name: checkpoint[name] for name in vars(State())})
    # Losses on disk are sums over all processes: rank 0 goes on with them, the others with 0.
    return state if training.execution.rank == 0 else replace(state, losses=torch.zeros_like(state.losses))


def train(training: Training, state: State) -> State:
    """Train from `state` to the run's last epoch, saving after each epoch; returns the last state.

    When a signal arrives, saves the steps so far and raises Interrupted. UserError if a loss is NaN or infinite.
    """
    began = time.perf_counter() - state.total_seconds
    while (epoch := state.epoch) <= training.settings.epochs:
        with contextlib.suppress(Interrupted):  # raised again when the state is saved
            state = train_epoch(training, state)
            state = end_epoch(training, state)
        state = replace(state, total_seconds=time.perf_counter() - began)
        save_state(training, state)
        if state.epoch > epoch and training.execution.rank == 0:
            print(describe_epoch(state.history, training.settings.epochs, len(training.data.train_labels)))
        check_signals(training)
    if training.settings.augment:
        _, accuracy = evaluate(training, training.data.test_images, training.data.test_labels, mirrored=True)
        state = replace(state, mirrored_test_accuracy=accuracy)
    return replace(state, total_seconds=time.perf_counter() - began)


def train_epoch(training: Training, state: State) -> State:
    """Train to the end of the epoch in progress, or until a signal has arrived; returns the state then."""
    count, size, device = len(training.data.train_labels), training.settings.batch_size, training.execution.device
    title, done = f"epoch {state.epoch}/{training.settings.epochs}", min(state.step * size, count)
    hidden = training.execution.rank > 0 or None  # None: where output is no terminal
    how = {"unit": " images", "unit_scale": True, "leave": False, "disable": hidden}
    started, step, losses = time.perf_counter() - state.seconds, state.step, [state.losses.to(device)]
    with tiny_steps(size), tqdm(desc=title, total=count, initial=done, **how) as bar, contextlib.suppress(Interrupted):
        for batches, sizes, rates in epoch_chunks(training, state.epoch, state.step):
            check_signals(training)
            losses.append(train_chunk(training, batches, sizes, rates))
            if device.type == "cpu":  # on a GPU this would make the host wait
                check_finite(losses[-1], state.epoch, step)
                mean = losses[-1].sum() * training.execution.world_size / sum(sizes)
                bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
            bar.update(sum(sizes))
            step += len(batches)
    losses = torch.cat(losses).cpu()  # on a GPU, this waits for the last steps
    return replace(state, step=step, losses=losses, seconds=time.perf_counter() - started)


def epoch_chunks(training: Training, epoch: int, step: int) -> Iterator[tuple[list[Batch], list[int], list[float]]]:
    """The epoch's batches from `step` on, prepared in chunks of several batches.

    Yields for each chunk this process's share of every batch, every batch's whole size, and every step's learning rate.
    Order and augmentation depend on seed and epoch alone, not on the number of processes or on interruptions; dropout's
    masks depend on seed, epoch, first step of the chunk, and rank.
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
    steps = torch.arange(count, device=device).split(settings.batch_size)  # each step's positions in `order`
    chunk_steps = max(1, CHUNK_IMAGES[device.type] // settings.batch_size)
    for first in range(step, len(steps), chunk_steps):
        seed_generators(mixed_seed(seed, epoch, first, rank, 1))  # ends in 1: SeedSequence ignores 0s at the end
        chunk = steps[first : first + chunk_steps]
        shares = [positions.tensor_split(training.execution.world_size)[rank] for positions in chunk]
        share_sizes, positions = [len(share) for share in shares], torch.cat(shares)
        images, labels = data.train_images[order[positions]], data.train_labels[order[positions]]
        if settings.augment:
            padding, mode = settings.crop_padding, settings.padding_mode
            images = augment(images, padding, mode, shifts[:, positions], flips[positions])
        images = model_input(images, interface_of(training.model))
        if settings.cutout:
            images = cut_out(images, centres[:, positions], settings.cutout)
        size = resolution(settings, epoch)
        if size != 32:  # without smoothing before it
            images = F.interpolate(images, size=(size, size), mode="bilinear")
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


def train_chunk(training: Training, batches: list[Batch], sizes: list[int], rates: list[float]) -> Tensor:
    """Take one step for each batch's share, at its learning rate in `rates`; minimises the mean over the whole batch.

    `sizes` are those of the whole batches. Returns each share's loss, summed over its images, float32 (batches,).
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
    """Put the model into train or eval mode, and an optimizer that has modes, as those of the package schedulefree."""
    training.model.train(train)
    getattr(training.optimizer, "train" if train else "eval", lambda: None)()


def end_epoch(training: Training, state: State) -> State:
    """Test the model at the epoch's end; returns the state at the beginning of the next one."""
    check_signals(training)  # one may have ended the epoch early
    data, count, some = training.data, len(training.data.train_labels), evaluated_images(training.data)
    losses = all_reduce(state.losses)
    check_finite(losses, state.epoch, 0)
    seed_generators(mixed_seed(training.settings.seed, state.epoch, training.execution.rank, 2))
    share_buffers(training.model)  # those of rank 0 are saved
    row = {"epoch": state.epoch, "train_loss": losses.sum().item() / count}
    _, row["train_accuracy"] = evaluate(training, data.train_images[some], data.train_labels[some])
    for part in ("test", "validation"):
        images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
        if len(labels):
            row[f"{part}_loss"], row[f"{part}_accuracy"] = evaluate(training, images, labels)
            check_finite(torch.tensor(row[f"{part}_loss"]), state.epoch, state.step - 1)
    row |= {"learning_rate": learning_rate(training.settings, state.epoch), "seconds": state.seconds}
    history = {name: [*state.history.get(name, []), value] for name, value in row.items()}
    steps = finer_losses(state.steps, losses.numpy(), state.epoch, training.settings.batch_size, count)
    is_best = best_epoch(history)[0] == state.epoch
    best_model = weights_on_cpu(training.model) if is_best else state.best_model
    return State(state.epoch + 1, history=history, steps=steps, best_model=best_model, parts=state.parts)


def evaluate(training: Training, images: Tensor, labels: Tensor, mirrored: bool = False) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in per cent, over all processes. Leaves the model in eval mode.

    Images uint8 (N, 3, 32, 32), labels int64 (N,), on the run's device. `mirrored`: by the mean logits of both views.
    """
    execution, network, sums = training.execution, InPrecision(training.model, training.execution.precision), []
    set_mode(training, train=False)
    with torch.no_grad():
        for batch in torch.arange(len(labels), device=images.device).split(EVALUATION_BATCH_SIZE[images.device.type]):
            check_signals(training)
            share = batch.tensor_split(execution.world_size)[execution.rank]
            views = [images[share], images[share].flip(3)] if mirrored else [images[share]]
            logits = sum(network(model_input(view, interface_of(training.model))) for view in views) / len(views)
            loss = F.cross_entropy(logits, labels[share], reduction="sum")
            sums.append(torch.stack([loss, logits.argmax(1).eq(labels[share]).sum()]))
        loss, correct = all_reduce(torch.stack(sums)).double().sum(0).tolist()
    return loss / len(labels), 100 * correct / len(labels)


def evaluated_images(data: Data) -> slice:
    """Every n-th training image, so that all classes are among them: the training accuracy is measured on these."""
    return slice(0, None, -(-len(data.train_labels) // TRAIN_EVALUATION_IMAGES))


def check_signals(training: Training) -> None:
    """Raise Interrupted if a signal has arrived in any process: all of them stop after the same step."""
    number = int(all_reduce(torch.tensor(max(training.signals, default=0)), dist.ReduceOp.MAX))
    if number:
        raise Interrupted(number)


def check_finite(losses: Tensor, epoch: int, step: int) -> None:
    """UserError that names the first step with a NaN or infinite loss; `step` steps came before `losses`."""
    finite = losses.isfinite().cpu()
    if not finite.all():
        step += int(finite.int().argmin()) + 1
        raise UserError(f"the loss is no finite number any more at epoch {epoch}, step {step}: try a lower --lr")


def weights_on_cpu(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict on the CPU, named as without `torch.compile`."""
    state = model.state_dict().items()
    return {plain_name(name): v.detach().cpu().clone() if isinstance(v, Tensor) else v for name, v in state}


def save_state(training: Training, state: State) -> None:
    """Write `checkpoint.pth`; every process must call this, and rank 0 writes."""
    state = replace(state, losses=all_reduce(state.losses), parts=parts_so_far(training, state))
    if training.execution.rank == 0:
        weights = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
        try:
            write_torch(training.folder / "checkpoint.pth", {**training.head, **weights, **vars(state)})
        except FileInUse as error:
            print(f"warning: {error}. The run goes on.", file=sys.stderr)


def parts_so_far(training: Training, state: State) -> list[dict]:
    """The run's parts, more than one if it was resumed in another environment or by other code."""
    count, history, size = len(training.data.train_labels), state.history, training.settings.batch_size
    with tiny_steps(size):  # the environment has the number of threads that the steps use
        part = {"environment": environment_record(training.execution), "code": training.head["code"]}
    goes_on = state.parts and part.items() <= state.parts[-1].items()
    earlier = state.parts[:-1] if goes_on else state.parts
    images = count * len(history["epoch"]) + min(state.step * size, count) - sum(it["images"] for it in earlier)
    seconds = sum(history["seconds"]) + state.seconds - sum(it["seconds"] for it in earlier)
    return [*earlier, part | {"images": images, "seconds": seconds}] if images else earlier


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
    return {**training.head, **where, "history": history, "steps": state.steps, "result": result}


def write_results(training: Training, record: dict, best_model: dict[str, Tensor]) -> None:
    """Write a finished run's four files, then remove its checkpoint. Those of another run are first moved away."""
    folder = training.folder
    if (folder / "loss.json").exists() and not is_repeated(folder / "loss.json", record):
        kept = move_earlier(folder, *RESULTS)
        print(f"the results that were in {folder} are of another run: they are now in {kept}")
    write_torch(folder / "best_model.pth", best_model)
    write_torch(folder / "model.pth", weights_on_cpu(training.model))
    write_file(folder / "loss.json", json.dumps(record, indent=1, allow_nan=False).encode())
    write_picture(folder / "loss.png", draw_losses, record, training.changed)
    try:
        (folder / "checkpoint.pth").unlink()
    except OSError as error:  # on Windows, another program may have it open
        print(f"warning: the run has ended, but {error.filename} can't be removed: {error.strerror}", file=sys.stderr)
    print(f"{record['result']['train_seconds']:.1f} s of training; results in {folder}")
    print(f"{describe_result(record['result'])}{beside_reference(record)}")


def main(stated_settings: Settings, description: str | None) -> None:
    """Run an experiment script: its stated settings, with the command line's changes. Does nothing on import.

    Exit codes: 0; 1 for an error; 2 for wrong arguments. After SIGHUP, Ctrl-C or SIGTERM it ends by that signal.
    """
    if is_being_imported():
        return
    make_output_last()
    try:
        all_settings = parse_arguments(stated_settings, description)
        records = [run(settings, stated_settings) for settings in all_settings]
        if len(records) > 1 and os.environ.get("RANK", "0") == "0":
            seeds = ", ".join(str(settings.seed) for settings in all_settings)
            mean = mean_text([record["result"]["final_test_accuracy"] for record in records])
            print(f"\nseeds {seeds}: test accuracy {mean} % at the end{beside_reference(records[0])}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, WrongOption) else 1)
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
            sys.exit("error: there is not enough memory: try a smaller --batch-size or model")
        if re.search("Connection (closed|reset) by peer|remote process exited", str(error)):
            sys.exit("error: the connection to another process is lost; its own message, or torchrun's, says why")
        raise
