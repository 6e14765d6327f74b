"""What the CIFAR-10 experiments share, in the order a run flows.

settings and command line -> data -> models -> processes -> training and evaluation -> files -> one run

An experiment script states its `Settings` and calls `main`. Nothing runs on import.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import math
import os
import platform
import re
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from internals.cifar10 import ARRAYS, DATA_DIR, Data, DataUnavailable, load_cifar10
from internals.files import UserError, locked, read_torch, write_file, write_torch
from internals.processes import BatchNorm2d, from_rank_0, join_processes, leave_processes, total

HERE = Path(__file__).resolve().parent


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived during training; `args[0]` is the signal's number."""


# --- Settings and command line ----------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """One experiment: what its script states, with what the command line changed."""

    experiment: str  # the script's name
    folder: str  # under modelset/
    model: str  # "LeNet" or "ResNet18"
    epochs: int
    lr: float
    momentum: float
    batch_size: int  # over all processes and GPUs together
    weight_decay: float = 0.0  # L2 regularisation, as torch.optim.SGD defines it
    dropout: float = 0.0  # LeNet only
    width: int = 64  # ResNet-18 only: channels of the first stage
    schedule: str = "constant"  # or "cosine": the learning rate falls to 0 over the run's epochs
    augment: bool = False  # random crop with padding 4, and horizontal flip
    data_parallel: bool = False  # started without torchrun: nn.DataParallel over all visible GPUs
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    dataset: str = "auto"
    data_dir: Path = DATA_DIR
    output: Path | None = None
    resume: bool = False


def config_of(settings: Settings) -> dict[str, object]:
    """The settings that decide a run's result, as `loss.json` and the checkpoint keep them."""
    own = "dropout" if settings.model == "LeNet" else "width"
    names = ["model", "lr", "momentum", "weight_decay", "batch_size", own, "augment", "schedule"]
    return {name: getattr(settings, name) for name in [*names, "precision", "epochs", "seed"]}


def differences(config: dict[str, object], stated: dict[str, object]) -> dict[str, object]:
    """The entries of `config` that `stated` has otherwise or not at all."""
    return {name: value for name, value in config.items() if stated.get(name) != value}


def describe(config: dict[str, object]) -> str:
    """{"lr": 0.01, "epochs": 15} -> "lr=0.01,epochs=15"."""
    return ",".join(f"{name}={str(value).removesuffix('.0')}" for name, value in config.items())


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


def parse_arguments(stated: Settings, description: str | None) -> Settings:
    """The stated settings with the command line's changes; wrong arguments exit with code 2."""
    parser = ArgumentParser(description=description, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--epochs", type=within(int, 1, 2**31), help="passes over the training images")
    add("--lr", type=within(float, 0, math.inf), help="learning rate")
    add("--momentum", type=within(float, 0, 1), help="SGD momentum")
    add("--weight-decay", type=within(float, 0, math.inf), help="L2 regularisation")
    add("--batch-size", type=within(int, 1, 2**31), help="images per step, over all GPUs and processes")
    if stated.model == "LeNet":
        add("--dropout", type=within(float, 0, 1), help="dropout probability between the linear layers")
    else:
        add("--width", type=within(int, 1, 2**31), help="channels of the first stage")
    add("--augment", action=argparse.BooleanOptionalAction, help="random crop and horizontal flip")
    add("--seed", type=within(int, 0, 2**32), help="of the weights, the order of images, and dropout")
    add("--device", type=device_name, help="auto, cpu, cuda, cuda:N or mps")
    add("--precision", choices=("auto", "fp32", "bf16"), help="auto: bf16 for ResNet-18 where it is fast")
    dataset_help = "auto: CIFAR-10, or a synthetic stand-in where it can't be had"
    add("--dataset", choices=("auto", "cifar10", "synthetic"), help=dataset_help)
    add("--data-dir", type=Path, metavar="DIR", help="where CIFAR-10 is, or is downloaded to")
    add("--output", type=Path, metavar="DIR", help="folder of the results, if not under modelset/")
    add("--resume", action="store_true", help="continue from the folder's checkpoint.pth")
    parser.set_defaults(**vars(stated))
    return Settings(**vars(parser.parse_args()))


def run_folder(settings: Settings, stated: Settings, dataset: str) -> Path:
    """modelset/<experiment>/, with a subfolder named after what differs from the stated settings."""
    changed = differences(config_of(settings), config_of(stated))
    if dataset != "cifar10":
        changed["dataset"] = dataset
    return settings.output or HERE / "modelset" / settings.folder / describe(changed)


# --- Data -------------------------------------------------------------------------------------


def load_data(dataset: str, data_dir: Path) -> tuple[Data, str]:
    """The data for `--dataset`, and a warning if it is a stand-in that nobody asked for; UserError if there is none."""
    warning = ""
    try:
        if dataset != "synthetic":
            return load_cifar10(data_dir), warning
    except DataUnavailable as error:
        if dataset == "cifar10":
            raise
        warning = f"this is NOT CIFAR-10 but a synthetic stand-in, since {error}"
    from internals.synthetic import synthetic_images

    return Data(*map(torch.from_numpy, synthetic_images()), "synthetic", "synthetic.py"), warning


# --- Models -----------------------------------------------------------------------------------


class LeNet(nn.Module):
    """LeNet of PyTorch's tutorial "Training a classifier", with optional dropout: 62,006 parameters.

    Images float32 (N, 3, 32, 32) -> logits (N, 10).
    https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
    """

    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # of the normalisation, per channel

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
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
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem for 32x32 images: 11,173,962 parameters at width 64.

    Images float32 (N, 3, 32, 32) -> logits (N, 10). He et al. 2015, https://arxiv.org/abs/1512.03385
    """

    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # CIFAR-10's own, per channel

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1), BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(BasicBlock(2 * width, 4 * width, 2), BasicBlock(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(BasicBlock(4 * width, 8 * width, 2), BasicBlock(8 * width, 8 * width, 1))
        self.linear = nn.Linear(8 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


def build_model(settings: Settings, device: torch.device) -> nn.Module:
    """The settings' model on `device`, with weights drawn from the settings' seed."""
    torch.manual_seed(settings.seed)
    model = LeNet(settings.dropout) if settings.model == "LeNet" else ResNet18(settings.width)
    # Convolutions of many channels are faster in channels_last. Below 16 channels, oneDNN's strided 1x1
    # convolutions write out of bounds in that layout (torch 2.14.1 on AVX-512): narrow models crash.
    fast = settings.model == "ResNet18" and settings.width >= 16
    return model.to(device, memory_format=torch.channels_last if fast else torch.contiguous_format)


# --- Processes and devices --------------------------------------------------------------------


@dataclass(frozen=True)
class Execution:
    """How this process trains, alone or among those that `torchrun` started."""

    device: torch.device
    precision: str  # "fp32" or "bf16"
    parallel: str  # "none", "DataParallel" or "DistributedDataParallel"
    rank: int = 0
    world_size: int = 1  # processes


def start_execution(settings: Settings) -> Execution:
    """Choose the device and, under `torchrun`, join the other processes; UserError if there are too few GPUs."""
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    precision = choose_precision(settings, name)
    if not dist.is_torchelastic_launched():
        several = settings.data_parallel and name == "cuda" and torch.cuda.device_count() > 1
        return Execution(torch.device(name), precision, "DataParallel" if several else "none")
    name, rank, world_size = join_processes(name)
    return Execution(torch.device(name), precision, "DistributedDataParallel", rank, world_size)


def choose_precision(settings: Settings, device: str) -> str:
    """ "bf16" or "fp32"; auto takes bf16 for ResNet-18 where the device multiplies it faster."""
    if settings.precision != "auto" or settings.model == "LeNet":
        return settings.precision.replace("auto", "fp32")
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.9 can't tell
    fast = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))
    return "bf16" if device == "cpu" and fast else "fp32"


def parallel_model(model: nn.Module, execution: Execution) -> nn.Module:
    """`model`, whose own parameters are trained, wrapped for several GPUs or processes.

    `DataParallel` copies the model to the GPUs at every step and splits the batch among them;
    `DistributedDataParallel` has one process per GPU, which exchange nothing but gradients.
    """
    if execution.parallel == "none":
        return model
    if execution.parallel == "DataParallel":
        return nn.DataParallel(model)
    if execution.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return nn.parallel.DistributedDataParallel(model)


# --- Training and evaluation ------------------------------------------------------------------

CHUNK_IMAGES = {"cpu": 256, "cuda": 8192, "mps": 8192}  # prepared at once; the CPU's stay in its cache
TINY_BATCH_SIZE = 4  # up to here one CPU thread and PyTorch's own convolutions beat two and oneDNN's
EVALUATION_BATCH_SIZE = {"cpu": 125, "cuda": 2000, "mps": 500}
TRAIN_EVALUATION_IMAGES = 10_000
HISTORY = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "seconds")


def mixed_seed(*parts: int) -> int:
    """A 32-bit seed that depends on all of `parts`, such as the run's seed and the epoch."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def learning_rate(settings: Settings, epoch: int) -> float:
    """The rate of `epoch`, 1 to `epochs`; "cosine" is Loshchilov & Hutter's, https://arxiv.org/abs/1608.03983."""
    cosine = (1 + math.cos(math.pi * (epoch - 1) / settings.epochs)) / 2
    return settings.lr * cosine if settings.schedule == "cosine" else settings.lr


def normalise(images: Tensor, model: nn.Module) -> Tensor:
    """uint8 (N, 3, 32, 32) -> float32, less the model's channel means, over its standard deviations, in its layout."""
    # Filled on the device, since a copy from the host would make it wait for a GPU.
    fill = [[torch.full((1, 1), 255 * x, device=images.device) for x in values] for values in (model.mean, model.std)]
    images = images.float().sub_(torch.stack(fill[0])).div_(torch.stack(fill[1]))
    in_channels_last = model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    return images.to(memory_format=torch.channels_last) if in_channels_last else images


def augment(images: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
    """Each image cropped at its own place after padding by 4, and flipped or not.

    Images uint8 (N, 3, 32, 32); `shifts` int64 (2, N), down and right, 0 to 8; `flips` bool (N,).
    """
    windows = F.pad(images, (4, 4, 4, 4)).unfold(2, 32, 1).unfold(3, 32, 1)  # (N, 3, 9, 9, 32, 32)
    crops = windows[torch.arange(len(images), device=images.device), :, shifts[0], shifts[1]]
    return torch.where(flips[:, None, None, None], crops.flip(3), crops)


def epoch_chunks(
    data: Data, settings: Settings, model: nn.Module, epoch: int, step: int, execution: Execution
) -> Iterator[tuple[list[tuple[Tensor, Tensor]], list[int]]]:
    """The epoch's batches from `step` on, prepared a chunk of them at a time.

    Yields this process's shares of the batches, (images float32, labels), and the whole batches' sizes.
    Order and augmentation follow from seed and epoch alone: neither the number of processes nor
    an interruption changes them. Dropout's masks follow from seed, epoch, step and rank.
    """
    count, size, device = len(data.train_labels), settings.batch_size, execution.device
    generator = torch.Generator().manual_seed(mixed_seed(settings.seed, epoch))
    order = torch.randperm(count, generator=generator).to(device)
    shifts = torch.randint(0, 9, (2, count), generator=generator).to(device)
    flips = torch.rand(count, generator=generator).lt(0.5).to(device)
    positions = torch.arange(count, device=device).split(size)
    chunk_steps = max(1, CHUNK_IMAGES[device.type] // size)
    for first in range(step, len(positions), chunk_steps):
        torch.manual_seed(mixed_seed(settings.seed, epoch, first, execution.rank))
        batches = positions[first : first + chunk_steps]
        shares = [batch.tensor_split(execution.world_size)[execution.rank] for batch in batches]
        chunk = torch.cat(shares)
        images, labels = data.train_images[order[chunk]], data.train_labels[order[chunk]]
        if settings.augment:
            images = augment(images, shifts[:, chunk], flips[chunk])
        sizes = [len(share) for share in shares]
        pairs = zip(normalise(images, model).split(sizes), labels.split(sizes), strict=True)
        yield list(pairs), [len(batch) for batch in batches]


def train_chunk(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]], weights: list[Tensor],
    precision: str,
) -> Tensor:
    """One SGD step per batch; float32 (batches,): each one's loss, summed over its images.

    `weights` scale a batch's sum to the loss that is minimised, the mean over the whole batch.
    """
    losses = []
    parameters = list(model.parameters())
    autocast = torch.autocast(weights[0].device.type, torch.bfloat16, enabled=precision == "bf16")
    for (images, labels), weight in zip(batches, weights, strict=True):
        with autocast:
            loss = F.cross_entropy(model(images).float(), labels, reduction="sum")
        for parameter in parameters:
            parameter.grad = None  # as optimizer.zero_grad() does, which takes ten times as long
        loss.backward(weight)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, execution: Execution, check: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in per cent, in eval mode, over all processes.

    Images uint8 (N, 3, 32, 32), labels int64 (N,); `check` is called before each batch.
    """
    model.eval()
    sums, device = [], execution.device
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=execution.precision == "bf16"):
        for batch in torch.arange(len(labels), device=device).split(EVALUATION_BATCH_SIZE[device.type]):
            check()
            share = batch.tensor_split(execution.world_size)[execution.rank]
            logits = model(normalise(images[share], model)).float()
            loss = F.cross_entropy(logits, labels[share], reduction="sum")
            sums.append(torch.stack([loss, logits.argmax(1).eq(labels[share]).sum()]))
        loss, correct = total(torch.stack(sums)).double().sum(0).tolist()
    model.train()
    return loss / len(labels), 100 * correct / len(labels)


def use_tiny_steps(tiny: bool, threads: int) -> None:
    """What is fastest on the CPU for tiny batches, or `threads` and oneDNN for all others."""
    torch.set_num_threads(1 if tiny else threads)
    torch.backends.mkldnn.enabled = not tiny


def check_finite(losses: Tensor, epoch: int, step: int) -> None:
    """UserError that names the step, counted on from `step`, at which a loss is NaN or infinite."""
    finite = losses.isfinite().cpu()
    if not finite.all():
        step += int(finite.int().argmin()) + 1
        raise UserError(f"the loss is no finite number any more at epoch {epoch}, step {step}: try a lower --lr")


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def new_state() -> dict:
    """A run at its beginning, and with model and optimizer what `checkpoint.pth` holds of one.

    No random-number state is needed: `epoch_chunks` derives all of it from seed, epoch and step.
    """
    return {
        "epoch": 1,  # in progress
        "step": 0,  # its steps so far,
        "losses": torch.zeros(0),  # their losses, summed over images and processes,
        "seconds": 0.0,  # and the time they took
        "history": {name: [] for name in HISTORY},
        "steps": {"epoch": [], "train_loss": []},
        "best_model": {},
    }


def train(
    settings: Settings, data: Data, model: nn.Module, optimizer: torch.optim.Optimizer, execution: Execution,
    state: dict, check: Callable[[], None], save: Callable[[dict], None],
) -> dict:
    """Train on from `state`, `save` it after each epoch, and return the last one.

    `check` is called between chunks of steps; if it raises Interrupted, the steps so far are saved.
    Raises UserError when the loss becomes NaN or infinite.
    """
    count, size, device = len(data.train_labels), settings.batch_size, execution.device
    evaluated = slice(0, None, -(-count // TRAIN_EVALUATION_IMAGES))  # spread over the classes
    weights = {n: torch.tensor(execution.world_size / n, device=device) for n in {size, count % size or size}}
    parallel, threads = parallel_model(model, execution), torch.get_num_threads()
    model.train()
    for epoch in range(state["epoch"], settings.epochs + 1):
        step, seconds = state["step"], state["seconds"]
        losses = [state["losses"].to(device) * (execution.rank == 0)]  # they hold the others' shares
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, epoch)
        about = {"desc": f"epoch {epoch}/{settings.epochs}", "unit": " images", "unit_scale": True, "leave": False}
        hidden = None if execution.rank == 0 else True  # None: where output is no terminal
        bar = tqdm(total=count, initial=min(step * size, count), disable=hidden, **about)
        try:
            started = time.perf_counter()
            use_tiny_steps(size <= TINY_BATCH_SIZE, threads)
            for batches, sizes in epoch_chunks(data, settings, model, epoch, step, execution):
                check()
                chunk = train_chunk(parallel, optimizer, batches, [weights[n] for n in sizes], execution.precision)
                if device.type == "cpu":  # on a GPU this would make the host wait
                    check_finite(chunk, epoch, step)
                    bar.set_postfix(loss=f"{chunk.sum() * execution.world_size / sum(sizes):.3f}", refresh=False)
                losses.append(chunk)
                step += len(batches)
                bar.update(sum(sizes))
                started, seconds = time.perf_counter(), seconds + time.perf_counter() - started
            epoch_losses = total(torch.cat(losses))
            seconds += time.perf_counter() - started
            use_tiny_steps(False, threads)
            check_finite(epoch_losses, epoch, 0)
            bar.close()
            train_part = data.train_images[evaluated], data.train_labels[evaluated]
            _, train_accuracy = evaluate(model, *train_part, execution, check)
            test = evaluate(model, data.test_images, data.test_labels, execution, check)
            check_finite(torch.tensor(test), epoch, step - 1)
        except Interrupted:
            bar.close()
            state |= {"epoch": epoch, "step": step, "losses": total(torch.cat(losses)), "seconds": seconds}
            save(state)
            raise
        row = (epoch, epoch_losses.sum().item() / count, train_accuracy, *test, learning_rate(settings, epoch), seconds)
        best = max(state["history"]["test_accuracy"], default=-1)
        state = new_state() | {
            "epoch": epoch + 1,
            "history": {k: [*v, x] for (k, v), x in zip(state["history"].items(), row, strict=True)},
            "steps": finer_losses(state["steps"], epoch_losses, epoch, size, count),
            "best_model": plain_weights(model) if test[1] > best else state["best_model"],
        }
        if execution.rank == 0:
            print(
                f"epoch {epoch:3}/{settings.epochs}  train loss {row[1]:.4f}  test loss {test[0]:.4f}  "
                f"train accuracy {train_accuracy:.2f} %  test accuracy {test[1]:.2f} %  "
                f"{seconds:.1f} s  {count / seconds:.0f} images/s"
            )
        save(state)
    return state


def finer_losses(steps: dict, losses: Tensor, epoch: int, batch_size: int, images: int) -> dict[str, list[float]]:
    """`steps` with the training loss of each twelfth of the epoch, placed at its end."""
    edges = np.linspace(0, len(losses), min(len(losses), 12) + 1).round().astype(int)
    sums = np.add.reduceat(losses.double().numpy(), edges[:-1])
    ends = np.minimum(edges * batch_size, images)
    epochs = (epoch - 1 + ends[1:] / images).round(4)
    means = sums / np.diff(ends)
    return {"epoch": steps["epoch"] + epochs.tolist(), "train_loss": steps["train_loss"] + means.tolist()}


# --- Files ------------------------------------------------------------------------------------

ACCURACIES = (
    "test accuracy {final_test_accuracy:.2f} % at the end, {best_test_accuracy:.2f} % at best (epoch {best_epoch})"
)


def starting_state(folder: Path, settings: Settings, dataset: dict[str, object]) -> dict:
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
        state = read_torch(path)
        if not isinstance(state, dict) or not {"config", "dataset", "model", "optimizer", *new_state()} <= set(state):
            raise UserError(f"{path} is no checkpoint of these scripts")
    except UserError as error:
        if resume:
            raise
        print(f"{error}. Starting afresh.", file=sys.stderr)
        return new_state()
    if not resume:
        print(f"{path} is a checkpoint of epoch {state['epoch']}: --resume continues it. Starting afresh.")
        return new_state()
    was = state["config"] | state["dataset"]
    changed = differences(config_of(settings) | dataset, was)
    if settings.schedule == "constant" and settings.epochs >= was["epochs"]:
        changed.pop("epochs", None)
    if changed:
        listed = ", ".join(f"{name} {was.get(name)} -> {value}" for name, value in changed.items())
        raise UserError(f"{path} is of other settings ({listed}): give the same ones, or start without --resume")
    print(f"resuming at epoch {state['epoch']}, step {state['step']}")
    return state


def dataset_record(data: Data) -> dict[str, object]:
    """What `loss.json` and the checkpoint keep of the data."""
    counts = {"train_images": len(data.train_labels), "test_images": len(data.test_labels)}
    return {"name": data.name, "source": data.source, **counts}


def run_record(settings: Settings, data: Data, execution: Execution, parameters: int, state: dict) -> dict:
    """What `loss.json` holds of a finished run; the README documents it."""
    history, cuda = state["history"], execution.device.type == "cuda"
    best, seconds = int(np.argmax(history["test_accuracy"])), sum(history["seconds"])
    environment = {
        "device": torch.cuda.get_device_name(execution.device) if cuda else execution.device.type,
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": execution.precision,
        "parallel": execution.parallel,
        "world_size": torch.cuda.device_count() if execution.parallel == "DataParallel" else execution.world_size,
    }
    result = {
        "final_test_accuracy": history["test_accuracy"][-1],
        "best_test_accuracy": history["test_accuracy"][best],
        "best_epoch": history["epoch"][best],
        "parameters": parameters,
        "train_seconds": seconds,
        "images_per_second": len(data.train_labels) * len(history["epoch"]) / seconds,
    }
    head = {"experiment": settings.experiment, "config": config_of(settings), "dataset": dataset_record(data)}
    return {**head, "environment": environment, "history": history, "steps": state["steps"], "result": result}


def draw_losses(run: dict) -> bytes:
    """`loss.png` of what `loss.json` holds: losses and accuracies over the epochs."""
    from matplotlib.figure import Figure  # takes half a second: only when there is something to draw

    history = run["history"]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(run["steps"]["epoch"], run["steps"]["train_loss"], color="#9ecae1", label="training, within the epochs")
    marker = "o" if len(history["epoch"]) <= 30 else ""
    for axes, what, unit in ((left, "loss", "cross-entropy"), (right, "accuracy", "%")):
        axes.plot(history["epoch"], history[f"train_{what}"], f"{marker}-", color="#0072B2", ms=4, label="training")
        axes.plot(history["epoch"], history[f"test_{what}"], f"{marker}--", color="#D55E00", ms=4, label="test")
        axes.set(xlabel="epoch", ylabel=f"{what} ({unit})")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    stand_in = "" if run["dataset"]["name"] == "cifar10" else " on SYNTHETIC data, not CIFAR-10"
    title = f"{run['experiment']}{stand_in}: {ACCURACIES.format(**run['result'])}"
    figure.suptitle(f"{title}\n{textwrap.fill(describe(run['config']).replace(',', ', '), 120)}", fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def write_results(folder: Path, record: dict, model: nn.Module, best_model: dict[str, Tensor]) -> None:
    """Put a finished run's four files into `folder`; only then is its checkpoint removed."""
    picture = draw_losses(record)
    write_torch(folder / "best_model.pth", best_model)
    write_torch(folder / "model.pth", plain_weights(model))
    write_file(folder / "loss.json", json.dumps(record, indent=1, allow_nan=False).encode())
    write_file(folder / "loss.png", picture)
    (folder / "checkpoint.pth").unlink()
    result = ACCURACIES.format(**record["result"])
    print(f"{result}; {record['result']['train_seconds']:.1f} s of training; results in {folder}")


# --- One run ----------------------------------------------------------------------------------


def run(settings: Settings, stated: Settings) -> None:
    """Settings -> data -> model -> loop -> files. Only rank 0 reads, writes and prints."""
    execution = start_execution(settings)
    first, device = execution.rank == 0, execution.device
    data, warning = from_rank_0(load_data(settings.dataset, settings.data_dir) if first else None)
    warning = f"{'!' * 88}\nWARNING: {warning}\n{'!' * 88}\n" if warning and first else ""
    folder, dataset = run_folder(settings, stated, data.name), dataset_record(data)
    with contextlib.ExitStack() as stack:
        if first:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(folder))
            except OSError as error:
                raise UserError(f"{folder} can't be written: {error.strerror}") from error
            sys.stderr.write(warning)
            print(f"{settings.experiment} ({describe(config_of(settings))})")
            print(f"on {data.name} ({data.source}), {device}, {execution.precision}, parallel: {execution.parallel}")
            if settings.data_parallel and execution.parallel == "none":
                print("no more than one GPU to use: training without DataParallel")
        state = from_rank_0(starting_state(folder, settings, dataset) if first else None)

        data = dataclasses.replace(data, **{name: getattr(data, name).to(device) for name in ARRAYS})
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 for what stays float32
            torch.backends.cudnn.benchmark = True
        model = build_model(settings, device)
        optimizer = torch.optim.SGD(
            model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=True
        )
        if "model" in state:
            model.load_state_dict(state.pop("model"))
            optimizer.load_state_dict(state.pop("optimizer"))

        received: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: received.append(number))

        def check() -> None:
            number = torch.tensor(max(received, default=0))
            if execution.world_size > 1:  # a signal to one stops all, after the same step
                dist.all_reduce(number, dist.ReduceOp.MAX)
            if number:
                raise Interrupted(int(number))

        def save(state: dict) -> None:
            if first:
                snapshot = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                content = {"config": config_of(settings), "dataset": dataset, **snapshot, **state}
                write_torch(folder / "checkpoint.pth", content)

        try:
            state = train(settings, data, model, optimizer, execution, state, check, save)
        except Interrupted as interruption:
            if first:
                command = shlex.join(["python", *(word for word in sys.argv if word != "--resume"), "--resume"])
                print(f"stopped by signal {interruption.args[0]} and saved; to continue: {command}", file=sys.stderr)
            raise
        if first:
            parameters = sum(parameter.numel() for parameter in model.parameters())
            write_results(folder, run_record(settings, data, execution, parameters, state), model, state["best_model"])
            sys.stderr.write(warning)
    leave_processes()


def main(stated: Settings, description: str | None) -> None:
    """Run an experiment script: its stated settings, with the command line's changes.

    Exit codes: 0; 1 for what went wrong; 2 for wrong arguments; 130 after Ctrl-C; 143 after SIGTERM.
    """
    sys.stdout.reconfigure(line_buffering=True)  # so that a log file shows each epoch when it ends
    try:
        run(parse_arguments(stated, description), stated)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Interrupted as interruption:
        sys.exit(128 + interruption.args[0])
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        if re.search("out of memory|allocate memory|not enough memory", str(error)):
            sys.exit("error: there is not enough memory: try a smaller --batch-size or --width")
        if re.search("Connection (closed|reset) by peer|remote process exited", str(error)):
            sys.exit("error: the connection to another process is lost; its own message says why")
        raise
