"""How fast is the training pipeline, beside the conventional loop that most scripts have?

    python benchmarks/throughput.py

Takes a few minutes, on the synthetic data, on the CPU and on a GPU if there is one. The conventional loop:
a dataset of PIL images, transforms image by image, a DataLoader with 2 workers, float32, `.item()`
after every step. Both are measured in turns, a part of an epoch each time; numbers are medians.
Measure while nothing else runs, and trust the ratios more than the images/s.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import fast_model
import original_version_model
import original_version_model_multigpu
import resnet_model
from cifar10.synthetic import synthetic_images
from models.interface import interface_of
from terminal.arguments import ArgumentParser, HelpFormatter

ROUNDS = 5
CASES = {  # the settings, and about how many seconds each measurement lasts
    "LeNet, batch size 4": (original_version_model.SETTINGS, 1.5),
    "LeNet, batch size 128": (original_version_model_multigpu.SETTINGS, 1.5),
    "ResNet-18, batch size 128": (resnet_model.SETTINGS, 4.0),
    "fast model, batch size 512": (fast_model.SETTINGS, 8.0),
    "fast model, width 96, batch size 512": (dataclasses.replace(fast_model.SETTINGS, options={"width": 96}), 8.0),
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


def pipeline_steps(run: common.Run, preparing: list[float]) -> Iterator[int]:
    """Endless chunks of this project's pipeline, with what `train_epoch` does between them.

    Yields each chunk's images, and appends the seconds that it took to prepare to `preparing`.
    """
    bar = tqdm(disable=True)
    for epoch in itertools.count(1):
        chunks = common.epoch_chunks(run, epoch, 0)
        while True:
            started = time.perf_counter()
            chunk = next(chunks, None)
            preparing.append(time.perf_counter() - started)
            if chunk is None:
                break
            batches, sizes, rates = chunk
            losses = common.train_chunk(run, batches, sizes, rates)
            if run.execution.device.type == "cpu":
                common.check_finite(losses, 1, 0)
                bar.set_postfix(loss=f"{losses.sum() / sum(sizes):.3f}", refresh=False)
            yield sum(sizes)


def bare_steps(run: common.Run) -> Iterator[int]:
    """Endless steps of forward, backward and update alone, on batches that are ready."""
    batches, *_ = next(common.epoch_chunks(run, 1, 0))
    bf16, parameters = run.execution.precision == "bf16", list(run.model.parameters())
    smoothing = run.settings.label_smoothing
    while True:
        for images, labels in batches:
            with torch.autocast(run.execution.device.type, torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(run.model(images).float(), labels, label_smoothing=smoothing)
            for parameter in parameters:
                parameter.grad = None
            loss.backward()
            run.optimizer.step()
            yield len(labels)


def measure(steps: Iterator[int], seconds: float, device: torch.device) -> float:
    """images/s over about that many seconds."""
    images, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        images += next(steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - started)


def step_flops(run: common.Run) -> float:
    """Floating-point operations per image of forward and backward, as PyTorch counts them."""
    images = torch.randn(4, 3, 32, 32, device=run.execution.device)
    with FlopCounterMode(display=False) as counter:
        run.model(images).sum().backward()
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


def measure_case(name: str, device_name: str, progress: tqdm) -> list[str]:
    """A row of the table."""
    stated, seconds = CASES[name]
    settings = dataclasses.replace(stated, device=device_name, data_parallel=False)
    bf16 = interface_of(common.build_model(settings)).bf16
    execution = common.start_execution(settings.device, settings.precision, bf16, settings.data_parallel)
    data = common.Data(*map(torch.from_numpy, synthetic_images()), "synthetic", "synthetic.py")
    ours, bare = (common.prepare_run(settings, execution, data, common.build_model(settings), Path()) for _ in range(2))
    prepared: list[float] = []
    kinds = {  # the steps, and the batch size that decides how the CPU takes them
        "conventional": (conventional_steps(settings, ours.data, execution.device), math.inf),
        "pipeline": (pipeline_steps(ours, prepared), settings.batch_size),
        "bare": (bare_steps(bare), settings.batch_size),
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    preparing, products = [], []
    for round_ in range(ROUNDS + 1):  # the first one warms up
        progress.set_description(f"{device_name}: {name}")
        for kind, (steps, batch_size) in kinds.items():
            prepared.clear()
            with common.tiny_steps(batch_size):
                rates[kind].append(measure(steps, seconds if round_ else seconds / 4, execution.device))
            if kind == "pipeline":
                preparing.append(100 * sum(prepared) / seconds)
        products += [matrix_product_flops(execution)] if execution.precision == "bf16" else []
        progress.update(round_ > 0)
    flops = ""
    if products:
        achieved, product = step_flops(ours) * statistics.median(rates["pipeline"][1:]), statistics.median(products[1:])
        flops = f"{achieved / 1e9:.0f} of {product / 1e9:.0f} GFLOP/s = {100 * achieved / product:.0f} %"
    return [device_name, name, execution.precision, *describe_rates(rates, preparing), flops]


def describe_rates(rates: dict[str, list[float]], preparing: list[float]) -> list[str]:
    """The columns from images/s to "% preparing": medians over the rounds, without the first."""
    conventional, pipeline, bare = (rates[kind][1:] for kind in ("conventional", "pipeline", "bare"))
    ratios = [ours / theirs for ours, theirs in zip(pipeline, conventional, strict=True)]
    shares = [100 * (1 - ours / alone) for ours, alone in zip(pipeline, bare, strict=True)]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    images = [f"{statistics.median(kind):.0f}" for kind in (conventional, pipeline)]
    return [*images, ratio, f"{statistics.median(shares):.1f}", f"{statistics.median(preparing[1:]):.1f}"]


def peak_memory() -> str:
    """The most that this process had at once, in GiB."""
    try:
        import resource
    except ImportError:
        return "unknown on Windows"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"


def main() -> None:
    ArgumentParser(description=__doc__, formatter_class=HelpFormatter).parse_args()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    print(f"torch {torch.__version__}, {platform.platform(terse=True)}, {torch.get_num_threads()} threads")
    progress = tqdm(total=len(devices) * len(CASES) * ROUNDS, disable=None, leave=False, unit=" rounds")
    lines = [measure_case(name, device, progress) for device in devices for name in CASES]
    progress.close()
    head = ["device", "case", "precision", "conventional images/s", "pipeline images/s", "ratio"]
    head += ["% outside the step", "% preparing", "of a matrix product"]
    for line in [head, ["---"] * len(head), *lines]:
        print("| " + " | ".join(line) + " |")
    print(f"peak memory of this process: {peak_memory()}")


if __name__ == "__main__":
    main()
