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

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common

# isort: split
import torch
from PIL import Image
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from tqdm import tqdm

import dropout_regularization
import fast_model
import l2_regularization
import original_version_model
import original_version_model_multigpu
import resnet_model
from cifar10lab.data.synthetic import synthetic_images
from cifar10lab.devices.execution import device_settings, environment_record
from cifar10lab.files.writing import expanded, write_file
from cifar10lab.models.interface import interface_of
from cifar10lab.terminal.arguments import ArgumentParser, HelpFormatter, number_within
from cifar10lab.terminal.errors import UserError

ROUNDS = 5
LENETS = (original_version_model_multigpu, l2_regularization, dropout_regularization)
TUNED = {"augment": True, "lr": 0.05, "momentum": 0.9, "nesterov": True, "schedule": "one-cycle", "weight_decay": 2e-4}
EXPERIMENTS = {  # the README's commands
    "original_version_model.py": original_version_model.SETTINGS,
    **{f"{lenet.__name__}.py --epochs 50": dataclasses.replace(lenet.SETTINGS, epochs=50) for lenet in LENETS},
    "original_version_model_multigpu.py --augment --lr 0.05 --momentum 0.9 --nesterov --schedule one-cycle "
    "--weight-decay 2e-4": dataclasses.replace(original_version_model_multigpu.SETTINGS, **TUNED),
    "resnet_model.py": resnet_model.SETTINGS,
    "fast_model.py": fast_model.SETTINGS,
    "fast_model.py --width 96": dataclasses.replace(fast_model.SETTINGS, options={"width": 96}),
}


class Images(Dataset):
    """The training images as PIL images, as torchvision's CIFAR10 hands them out."""

    def __init__(self, data: common.Data, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images = data.train_images.permute(0, 2, 3, 1).cpu().numpy()
        self.labels = data.train_labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def conventional_steps(settings: common.Settings, data: common.Data, device: torch.device) -> Iterator[int]:
    """Endless steps of the conventional loop; yields each one's images."""
    model = common.build_model(settings).to(device)
    interface = interface_of(model)
    crop = transforms.RandomCrop(32, padding=settings.crop_padding)
    extra = [crop, transforms.RandomHorizontalFlip()] if settings.augment else []
    transform = transforms.Compose([*extra, transforms.ToTensor(), transforms.Normalize(interface.mean, interface.std)])
    loader = DataLoader(Images(data, transform), settings.batch_size, shuffle=True, num_workers=2)
    options = {"momentum": settings.momentum, "weight_decay": settings.weight_decay}
    optimizer = torch.optim.SGD(model.parameters(), settings.lr, **options)
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


def pipeline_steps(training: common.Training) -> Iterator[int]:
    """Endless chunks of the pipeline, with what `train_epoch` does between them; yields each one's images."""
    bar = tqdm(disable=True)
    for epoch in itertools.cycle(range(1, training.settings.epochs + 1)):
        for batches, sizes, rates in common.epoch_chunks(training, epoch, 0):
            losses = common.train_chunk(training, batches, sizes, rates)
            if training.execution.device.type == "cpu":
                common.check_finite(losses, 1, 0)
                bar.set_postfix(loss=f"{losses.sum() / sum(sizes):.3f}", refresh=False)
            yield sum(sizes)


def prepared_chunks(training: common.Training) -> Iterator[int]:
    """Endless chunks that are prepared, and not trained on; yields each one's images."""
    for epoch in itertools.cycle(range(1, training.settings.epochs + 1)):
        for _, sizes, _ in common.epoch_chunks(training, epoch, 0):
            yield sum(sizes)


def bare_steps(training: common.Training) -> Iterator[int]:
    """Endless steps of forward, backward and update alone, on batches that are ready; yields each one's images."""
    batches, sizes, rates = next(common.epoch_chunks(training, 1, 0))
    while True:
        common.train_chunk(training, batches, sizes, rates)
        yield sum(sizes)


def measure_conventional(settings: common.Settings, device: torch.device, asked: Connection) -> None:
    """A process that answers each number of seconds with the conventional loop's images/s, until it is told 0."""
    multiprocessing.set_start_method(None, force=True)  # the DataLoader's workers start as usual
    steps = conventional_steps(settings, synthetic_data(), device)
    while seconds := asked.recv():
        asked.send(measure(steps, seconds, device))


def synthetic_data() -> common.Data:
    """The stand-in, in place of the real images."""
    return common.Data(*map(torch.from_numpy, synthetic_images()), "synthetic", "synthetic.py")


def measure(steps: Iterator[int], seconds: float, device: torch.device) -> float:
    """images/s over about that many seconds."""
    images, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        images += next(steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - started)


def step_flops(training: common.Training) -> float:
    """Floating-point operations per image of forward and backward, as PyTorch counts them."""
    images = torch.randn(4, 3, 32, 32, device=training.execution.device)
    with FlopCounterMode(display=False) as counter:
        training.model(images).sum().backward()
    return counter.get_total_flops() / 4


def matrix_product_flops(execution: common.Execution) -> float:
    """FLOP/s of a large matrix product in the execution's precision, at best."""
    size = 4096 if execution.device.type == "cpu" else 8192
    kind = torch.bfloat16 if execution.precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=execution.device).to(kind) for _ in range(2))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        (a @ b).sum().item()
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def measure_case(settings: common.Settings, seconds: float) -> dict[str, object]:
    """How fast the settings are trained: an entry of throughput.json's cases."""
    bf16 = interface_of(common.build_model(settings)).bf16
    execution = common.start_execution(settings.device, settings.precision, bf16, settings.data_parallel)
    data = synthetic_data()
    models = [common.build_model(settings) for _ in range(3)]
    ours, bare, idle = (common.ready_to_train(common.Training(settings, execution, data, it, Path())) for it in models)
    kinds = {"pipeline": pipeline_steps(ours), "bare": bare_steps(bare), "preparing": prepared_chunks(idle)}
    rates: dict[str, list[float]] = {kind: [] for kind in ("conventional", *kinds)}
    products = []
    os.environ["GOMP_SPINCOUNT"] = "300000"  # what GNU OpenMP does of itself, where common.py asks for less
    processes = multiprocessing.get_context("spawn")
    conventional, asked = processes.Pipe()
    process = processes.Process(target=measure_conventional, args=(settings, execution.device, asked))
    process.start()
    asked.close()  # here, so that its end is noticed
    for round_ in range(ROUNDS + 1):  # the first one warms up
        lasting = seconds if round_ else seconds / 4
        conventional.send(lasting)
        rates["conventional"].append(conventional.recv())
        for kind, steps in kinds.items():
            with common.tiny_steps(settings.batch_size), device_settings(execution.device):
                rates[kind].append(measure(steps, lasting, execution.device))
        products += [matrix_product_flops(execution)] if execution.precision == "bf16" else []
    conventional.send(0)
    process.join()
    shares = [100 * ours / alone for ours, alone in zip(rates["pipeline"], rates.pop("preparing"), strict=True)]
    record = {f"{kind}_images_per_second": values[1:] for kind, values in rates.items()}
    record |= {"preparing_percent": shares[1:], "matrix_product_flops": products[1:]}
    record |= {"batch_size": settings.batch_size, "flops_per_image": step_flops(ours)}
    return {"device": settings.device, "environment": environment_record(execution)} | record


def describe_case(case: dict) -> list[str]:
    """A row of the first table: medians over the rounds."""
    kinds = ("conventional", "pipeline", "bare")
    conventional, pipeline, bare = (case[f"{kind}_images_per_second"] for kind in kinds)
    ratios = [ours / theirs for ours, theirs in zip(pipeline, conventional, strict=True)]
    shares = [100 * (1 - ours / alone) for ours, alone in zip(pipeline, bare, strict=True)]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    rates = [f"{statistics.median(kind):.0f}" for kind in (conventional, pipeline)]
    flops = ""
    if case["matrix_product_flops"]:
        achieved = case["flops_per_image"] * statistics.median(pipeline)
        product = statistics.median(case["matrix_product_flops"])
        flops = f"{achieved / 1e9:.0f} of {product / 1e9:.0f} GFLOP/s = {100 * achieved / product:.0f} %"
    name = f"{case['experiment']}, batch size {case['batch_size']}"
    parts = [f"{statistics.median(values):.1f}" for values in (shares, case["preparing_percent"])]
    return [case["device"], name, case["environment"]["precision"], *rates, ratio, *parts, flops]


def whole_run(name: str, settings: common.Settings, cases: list[dict]) -> dict[str, float]:
    """What the epochs of a run take by its case: FLOPs and seconds."""
    case, images = next(case for case in cases if case["experiment"] == name), 50_000 * settings.epochs
    seconds = images / statistics.median(case["pipeline_images_per_second"])
    return {"epochs": settings.epochs, "flops": images * case["flops_per_image"], "seconds": seconds}


def describe_runs(cases: list[dict]) -> list[list[str]]:
    """The second table's rows: whole runs beside ResNet-18's."""
    runs = {name: whole_run(name, settings, cases) for name, settings in EXPERIMENTS.items()}
    whole, rows = runs["resnet_model.py"], []
    for name, run in runs.items():
        beside = [f"{100 * run[what] / whole[what]:.2f} %" for what in ("flops", "seconds")]
        row = [str(run["epochs"]), *beside, f"{run['seconds'] / 60:.1f}"]
        rows.append([cases[0]["device"], name, *row])
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
        settings = dataclasses.replace(EXPERIMENTS[name], device=device, data_parallel=False)
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
