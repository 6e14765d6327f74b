"""How fast is the training pipeline, beside the conventional loop that most scripts have?

    python benchmarks/throughput.py

Takes about ten minutes, on the synthetic data, on a GPU if there is one and otherwise on the CPU. The conventional
loop: a dataset of PIL images, transforms image by image, a DataLoader with 2 workers, float32, `.item()` after every
step, in a process without what common.py asks of OpenMP. Both are measured in turns, a part of an epoch each time, as
are the pipeline's steps alone, on batches that are ready, and its preparing of batches alone; numbers are medians.
A second table says what whole runs take, by these numbers: their arithmetic and time beside ResNet-18's.
Measure while nothing else runs, and trust the ratios more than the images/s. --save writes throughput.json, anew after
each case.
"""

import dataclasses
import functools
import importlib
import itertools
import json
import multiprocessing
import os
import platform
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common

# isort: split
import numpy as np
import pandas as pd
import torch
from PIL import Image
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader, StackDataset, default_collate
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from tqdm import tqdm

from cifar10lab.data.loading import load_data
from cifar10lab.devices.execution import environment_record, process_settings
from cifar10lab.files.writing import expanded, write_file
from cifar10lab.models.interface import interface_of
from cifar10lab.terminal.arguments import ArgumentParser, HelpFormatter, number_within
from cifar10lab.terminal.errors import UserError

ROUNDS = 5
TUNED = {"augment": True, "lr": 0.05, "momentum": 0.9, "nesterov": True, "schedule": "one-cycle", "weight_decay": 2e-4}
EXPERIMENTS = {  # the README's commands, and what they change
    "original_version_model.py": {},
    "original_version_model_multigpu.py --epochs 50": {"epochs": 50},
    "l2_regularization.py --epochs 50": {"epochs": 50},
    "dropout_regularization.py --epochs 50": {"epochs": 50},
    "original_version_model_multigpu.py --augment --lr 0.05 --momentum 0.9 --nesterov --schedule one-cycle "
    "--weight-decay 2e-4": TUNED,
    "resnet_model.py": {},
    "fast_model.py": {},
    "fast_model.py --width 96": {"options": {"width": 96}},
}


def settings_of(command: str) -> common.Settings:
    """The settings of one of `EXPERIMENTS`."""
    return dataclasses.replace(importlib.import_module(command.split(".py")[0]).SETTINGS, **EXPERIMENTS[command])


def collated(transform: Callable[[Image.Image], torch.Tensor], images: list[tuple[np.ndarray, int]]) -> list:
    """A batch of images, each uint8 (32, 32, 3) with its label, by way of PIL images, which are transformed singly."""
    return default_collate([(transform(Image.fromarray(image)), label) for image, label in images])


def conventional_steps(settings: common.Settings, data: common.Data, device: torch.device) -> Iterator[int]:
    """Endless steps of the conventional loop; yields each one's images."""
    model = common.build_model(settings).to(device)
    interface = interface_of(model)
    crop = transforms.RandomCrop(32, padding=settings.crop_padding)
    extra = [crop, transforms.RandomHorizontalFlip()] if settings.augment else []
    transform = transforms.Compose([*extra, transforms.ToTensor(), transforms.Normalize(interface.mean, interface.std)])
    pairs = StackDataset(data.train_images.permute(0, 2, 3, 1).numpy(), data.train_labels.tolist())
    how = {"shuffle": True, "num_workers": 2, "collate_fn": functools.partial(collated, transform)}
    loader = DataLoader(pairs, settings.batch_size, **how)
    optimizer = torch.optim.SGD(model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay)
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    running_loss = 0.0
    while True:
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            yield len(labels)


def prepared_chunks(training: common.Training) -> Iterator[tuple]:
    """Endless chunks as `epoch_chunks` prepares them."""
    for epoch in itertools.cycle(range(1, training.settings.epochs + 1)):
        yield from common.epoch_chunks(training, epoch, 0)


def pipeline_steps(training: common.Training) -> Iterator[int]:
    """Endless chunks of the pipeline, with what `train_epoch` does between them; yields each one's images."""
    bar = tqdm(disable=True)
    for batches, sizes, rates in prepared_chunks(training):
        common.check_signals(training)
        losses = common.train_chunk(training, batches, sizes, rates)
        if training.execution.device.type == "cpu":
            common.check_finite(losses, 1, 0)
            bar.set_postfix(loss=f"{losses.sum() / sum(sizes):.3f}", refresh=False)
        yield sum(sizes)


def bare_steps(training: common.Training) -> Iterator[int]:
    """Endless steps of forward, backward and update alone, on batches that are ready; yields each one's images."""
    chunk = next(prepared_chunks(training))
    while True:
        common.train_chunk(training, *chunk)
        yield sum(chunk[1])


def measure_conventional(settings: common.Settings, device: torch.device, asked: Connection) -> None:
    """A process that answers each number of seconds with the conventional loop's images/s, until it is told 0."""
    multiprocessing.set_start_method(None, force=True)  # the DataLoader's workers start as usual
    steps = conventional_steps(settings, load_data("synthetic", Path())[0], device)
    while seconds := asked.recv():
        asked.send(measure(steps, seconds, device))


def measure(steps: Iterator[int], seconds: float, device: torch.device) -> float:
    """images/s over about that many seconds."""
    images, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        images += next(steps)
    torch.get_device_module(device).synchronize()
    return images / (time.perf_counter() - started)


def matrix_product_flops(device: torch.device) -> float:
    """FLOP/s of a large matrix product in bf16, at best."""
    size = 4096 if device.type == "cpu" else 8192
    a, b = torch.randn(2, size, size, dtype=torch.bfloat16, device=device)
    return 2 * size**3 / min(timeit.repeat(lambda: (a @ b).sum().item(), number=1))


def measure_case(settings: common.Settings, seconds: float) -> dict[str, object]:
    """How fast the settings are trained: an entry of throughput.json's cases."""
    data, _ = load_data("synthetic", Path())
    models = [common.build_model(settings) for _ in range(3)]
    execution = common.start_execution(settings.device, settings.precision, interface_of(models[0]).bf16, False)
    ours, bare, idle = (common.ready_to_train(common.Training(settings, execution, data, it, Path())) for it in models)
    preparing = (sum(sizes) for _, sizes, _ in prepared_chunks(idle))
    kinds = {"pipeline": pipeline_steps(ours), "bare": bare_steps(bare), "preparing": preparing}
    rounds = []
    os.environ["GOMP_SPINCOUNT"] = "300000"  # what GNU OpenMP does of itself, where common.py asks for less
    processes = multiprocessing.get_context("spawn")
    conventional, asked = processes.Pipe()
    process = processes.Process(target=measure_conventional, args=(settings, execution.device, asked))
    process.start()
    asked.close()  # here, so that its end is noticed
    for lasting in (seconds / 4, *[seconds] * ROUNDS):  # the first one warms up
        conventional.send(lasting)
        rates = {"conventional": conventional.recv()}
        for kind, steps in kinds.items():
            with common.tiny_steps(settings.batch_size), process_settings(execution.device):
                rates[kind] = measure(steps, lasting, execution.device)
        rates["product"] = matrix_product_flops(execution.device) if execution.precision == "bf16" else np.nan
        rounds.append(rates)
    conventional.send(0)
    process.join()
    with FlopCounterMode(display=False) as counter:
        ours.model(torch.randn(4, 3, 32, 32, device=execution.device)).sum().backward()
    figures = pd.DataFrame(rounds[1:])
    return {
        "device": settings.device,
        "environment": environment_record(execution),
        **{f"{kind}_images_per_second": [*figures[kind]] for kind in ("conventional", "pipeline", "bare")},
        "preparing_percent": [*(100 * figures["pipeline"] / figures["preparing"])],
        "matrix_product_flops": [*figures["product"].dropna()],
        "batch_size": settings.batch_size,
        "flops_per_image": counter.get_total_flops() / 4,  # of forward and backward
    }


def describe_case(case: dict) -> list[str]:
    """A row of the first table: medians over the rounds."""
    kinds, median = ("conventional", "pipeline", "bare"), np.median
    conventional, pipeline, bare = (pd.Series(case[f"{kind}_images_per_second"]) for kind in kinds)
    ratios, flops = pipeline / conventional, ""
    if case["matrix_product_flops"]:
        achieved, product = case["flops_per_image"] * median(pipeline), median(case["matrix_product_flops"])
        flops = f"{achieved / 1e9:.0f} of {product / 1e9:.0f} GFLOP/s = {100 * achieved / product:.0f} %"
    name, precision = f"{case['experiment']}, batch size {case['batch_size']}", case["environment"]["precision"]
    rates = [f"{median(kind):.0f}" for kind in (conventional, pipeline)]
    ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    shares = [f"{median(kind):.1f}" for kind in (100 * (1 - pipeline / bare), case["preparing_percent"])]
    return [case["device"], name, precision, *rates, ratio, *shares, flops]


def describe_runs(cases: list[dict]) -> list[list[str]]:
    """The second table's rows: what whole runs take by their cases, beside ResNet-18's."""
    runs = {}
    for case in cases:
        images = 50_000 * settings_of(case["experiment"]).epochs
        seconds = images / np.median(case["pipeline_images_per_second"])
        runs[case["experiment"]] = np.array([images * case["flops_per_image"], seconds])
    rows = []
    for command, figures in runs.items():
        beside = [f"{share:.2f} %" for share in 100 * figures / runs["resnet_model.py"]]
        epochs, minutes = str(settings_of(command).epochs), f"{figures[1] / 60:.1f}"
        rows.append([cases[0]["device"], command, epochs, *beside, minutes])
    return rows


def main() -> None:
    """Exit codes: 0; 1 if the file can't be written; 2 for wrong arguments."""
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--seconds", type=number_within(float, 0, 3600), default=3.0, help="that each measurement takes at least")
    add("--width", type=number_within(int, 1, 2**31), help="of all models that have one, to try this out")
    save_help = "write throughput.json, here or into that folder"
    add("--save", type=expanded, nargs="?", metavar="DIR", const=Path(__file__).parent, help=save_help)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"torch {torch.__version__}, {platform.platform(terse=True)}, {torch.get_num_threads()} threads\n")
    cases = []
    for name in tqdm(EXPERIMENTS, disable=None, leave=False, unit=" cases"):
        settings = dataclasses.replace(settings_of(name), device=device)
        if arguments.width and settings.model is not common.LeNet:
            settings = dataclasses.replace(settings, options={"width": arguments.width})
        cases.append({"experiment": name, **measure_case(settings, arguments.seconds)})
        if arguments.save:
            try:
                write_file(arguments.save / "throughput.json", json.dumps(cases, indent=1, allow_nan=False).encode())
            except UserError as error:
                sys.exit(f"error: {error}")
    head = ["device", "case", "precision", "conventional images/s", "pipeline images/s", "ratio"]
    head += ["% outside the step", "% preparing", "of a matrix product"]
    print(tabulate([describe_case(case) for case in cases], head, "github", disable_numparse=True) + "\n")
    head = ["device", "run", "epochs", "arithmetic, of ResNet-18's", "time, of ResNet-18's", "minutes"]
    print(tabulate(describe_runs(cases), head, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
