"""Do several devices train faster than one, and how many are worth it?

    python benchmarks/scaling.py    # on all GPUs, or on all CPU cores; some minutes

Devices are GPUs or, where there is none, CPU cores with one single-threaded process each, pinned to it. 1, 2, 4, … and
all of them train batches of the same global size, of random images, in one process each under torchrun. Computing is
the step of a device's share of the batch without any exchange, while all devices do the same; exchanging is the rest
of the step, with waiting for the slowest.
On GPUs, only a step without exchange is made of CUDA graphs, as in training: what they save counts as exchanging.

From one device's steps it predicts n devices, joined as here or by usual connections: a step takes the computing of a
share + 2(n - 1) * (exchanges * latency + gradient bytes / n / bandwidth), where the exchanges are the gradient's ring
all-reduce and two for each BatchNorm. Measure while nothing else runs. --save writes scaling.json and scaling.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common

# isort: split
import numpy as np
import torch
import torch.distributed as dist
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

import original_version_model_multigpu
import resnet_model
from cifar10lab.devices.execution import Execution, choose_precision, device_settings, processor_name
from cifar10lab.devices.processes import join_processes, leave_processes
from cifar10lab.files.pictures import default_style, png
from cifar10lab.files.writing import expanded, write_file
from cifar10lab.models.interface import interface_of
from cifar10lab.terminal.arguments import ArgumentParser, HelpFormatter, number_within
from cifar10lab.terminal.errors import UserError
from cifar10lab.terminal.output import make_output_last

ROUNDS = 3  # of all numbers of devices in turn; medians count
IMAGES = 8192  # whole batches of every size
BATCH_SIZES = {"LeNet": (128, 512, 2048), "ResNet18": (128, 512)}
PREDICTED = (1, 2, 4, 8, 16, 32, 64)
MESSAGES = (1024, 2**24)  # bytes of the all-reduces that latency and bandwidth come from
LINKS = [  # seconds per message, and bytes per second in each direction: what programs reach, not data sheets
    {"name": "NVLink", "latency": 5e-6, "bandwidth": 200e9},
    {"name": "PCIe 4.0 x16", "latency": 1e-5, "bandwidth": 20e9},
    {"name": "100 Gbit/s Ethernet", "latency": 2e-5, "bandwidth": 11e9},
    {"name": "10 Gbit/s Ethernet", "latency": 5e-5, "bandwidth": 1.1e9},
]
# Blues for LeNet and vermilion for ResNet-18, as in all pictures; markers tell the batch sizes apart in print.
COLOURS = ("#003D60", "#0072B2", "#73B3D9", "#8A3D00", "#E8813B")

# What was timed ("alone" on one device, "computing", "training" or "all_reduce"), model, batch size or bytes, devices
Key = tuple[str, str, int, int]


def stated_cases(width: int) -> list[common.Settings]:
    """The experiments' settings at each batch size."""
    resnet = dataclasses.replace(resnet_model.SETTINGS, options={"width": width})
    both = (original_version_model_multigpu.SETTINGS, resnet)
    return [dataclasses.replace(it, batch_size=size) for it in both for size in BATCH_SIZES[it.model.__name__]]


def case_name(case: dict) -> str:
    """How a case of scaling.json is called in tables and in the picture."""
    width = "" if case["width"] is None else f" of width {case['width']}"
    return f"{case['model'].replace('18', '-18')}{width}, {case['batch_size']}"


def cpu_cores() -> list[int]:
    """One logical CPU of each core that this process may use."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    cores = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(siblings.read_text() if siblings.is_file() else cpu, cpu)
    return list(cores.values())


def device_counts() -> list[int]:
    """1, 2, 4, … and all of this machine's devices."""
    most = torch.cuda.device_count() or len(cpu_cores())
    return sorted({most, *(2**i for i in range(most.bit_length()))})


def share_size(batch_size: int, devices: int) -> int:
    """The images of the largest share."""
    return -(-batch_size // devices)


def work(arguments: argparse.Namespace) -> None:
    """Measure, in each of torchrun's processes; rank 0 prints one JSON object a line."""
    rank, processes, gpus = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {cpu_cores()[rank]})
    execution = Execution(torch.device("cuda", rank) if gpus else torch.device("cpu"), "", "none", rank, processes)
    cases, seconds = stated_cases(arguments.width), arguments.seconds
    with device_settings(execution.device):
        if processes > 1:
            work_together(cases, execution, seconds)
            return
        counts = {*PREDICTED, *device_counts()}
        sizes = {(case.model.__name__, share_size(case.batch_size, n)): case for case in cases for n in counts}
        for model, size in sorted(sizes, reverse=True):  # the largest first
            share = dataclasses.replace(sizes[model, size], batch_size=size)
            report("alone", model, size, execution, step_seconds(share, execution, seconds))


def work_together(cases: list[common.Settings], execution: Execution, seconds: float) -> None:
    """Each case without exchange, before the processes have met, and with it; then all-reduces alone."""
    alone = torch.tensor([step_seconds(case, execution, seconds) for case in cases])
    join_processes(execution.device.type)
    dist.all_reduce(alone, dist.ReduceOp.MAX)
    execution = dataclasses.replace(execution, parallel="DistributedDataParallel")
    for case, computing in zip(cases, alone.tolist(), strict=True):
        images = max(1, round(seconds / computing)) * case.batch_size  # the same number in every process
        step = step_seconds(case, execution, seconds, images)
        for what, took in (("computing", computing), ("training", step)):
            report(what, case.model.__name__, case.batch_size, execution, took)
    for size in MESSAGES:
        report("all_reduce", "", size, execution, all_reduce_seconds(size, execution.device))
    leave_processes()


def report(what: str, model: str, size: int, execution: Execution, seconds: float) -> None:
    """Print a measurement for the process that started torchrun."""
    if execution.rank == 0:
        print(json.dumps({"key": (what, model, size, execution.world_size), "seconds": seconds}), flush=True)


def step_seconds(case: common.Settings, execution: Execution, seconds: float, images: int = 0) -> float:
    """Seconds per step of training, over `images`, or over about that many seconds."""
    model = common.build_model(case)
    precision = choose_precision(case.precision, execution.device.type, interface_of(model).bf16)
    execution = dataclasses.replace(execution, precision=precision)
    labels = torch.arange(IMAGES) % 10
    random_images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    data = common.Data(random_images, labels, random_images[:1], labels[:1], "random", "scaling.py")
    training = common.ready_to_train(common.Training(case, execution, data, model, Path()))
    chunks = itertools.chain.from_iterable(common.epoch_chunks(training, epoch, 0) for epoch in itertools.count(1))
    for chunk in itertools.islice(chunks, 2 if dist.is_initialized() else 1):
        common.train_chunk(training, *chunk)  # DistributedDataParallel rearranges its buckets after the first step
    synchronise(execution.device)
    done, started = 0, time.perf_counter()
    for batches, sizes, rates in chunks:
        if dist.is_initialized():
            common.check_signals(training)
        losses = common.train_chunk(training, batches, sizes, rates)
        if execution.device.type == "cpu":
            common.check_finite(losses, 1, 0)
        done += sum(sizes)
        if done >= images and (images or time.perf_counter() - started >= seconds):
            break
    synchronise(execution.device)
    return (time.perf_counter() - started) * case.batch_size / done


def all_reduce_seconds(size: int, device: torch.device) -> float:
    """The median time of a sum of `size` bytes over all processes."""
    values, times = torch.zeros(size // 4, device=device), []
    for _ in range(30):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(values)
        synchronise(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure() -> dict[Key, float]:
    """The median seconds of everything that there is to measure."""
    times = defaultdict(list)
    for processes in tqdm(device_counts() * ROUNDS, disable=None, leave=False, unit=" launches"):
        launch(processes, times)
    return {key: statistics.median(values) for key, values in times.items()}


def launch(processes: int, times: dict[Key, list[float]]) -> None:
    """Start `processes` of this script under torchrun, and add what they print to `times`.

    Whatever happens, none of them is left running. Raises UserError if one fails.
    """
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as log:
        # In a session of their own, so that Ctrl-C reaches this process alone, which then ends them in order.
        options = {"stderr": log, "text": True, "env": environment, "start_new_session": True}
        with subprocess.Popen([*start, *sys.argv], stdout=subprocess.PIPE, **options) as torchrun:
            try:
                for line in torchrun.stdout:
                    measured = json.loads(line)
                    times[tuple(measured["key"])].append(measured["seconds"])
            finally:
                if torchrun.poll() is None:
                    torchrun.terminate()  # it ends its processes before itself
        if torchrun.returncode:
            log.seek(0)
            sys.stderr.write(log.read())
            raise UserError(f"one of {processes} processes failed (torchrun ended with code {torchrun.returncode})")


def connections(seconds: dict[Key, float]) -> list[dict]:
    """This machine's connection, if it has several devices, and the usual ones."""
    devices = device_counts()[-1]
    if devices == 1:
        return LINKS
    small, large = (seconds["all_reduce", "", size, devices] for size in MESSAGES)
    bandwidth = 2 * (devices - 1) / devices * (MESSAGES[1] - MESSAGES[0]) / max(large - small, 1e-9)
    return [{"name": "measured here", "latency": small / (2 * (devices - 1)), "bandwidth": bandwidth}, *LINKS]


def predict(case: dict, seconds: dict[Key, float], link: dict) -> dict:
    """How fast `case`, an entry of scaling.json, would be on each number of devices, joined by `link`."""
    n, batch_size = np.array(sorted({*PREDICTED, *device_counts()})), case["batch_size"]
    computing = np.array([seconds["alone", case["model"], share_size(batch_size, devices), 1] for devices in n])
    exchange = case["exchanges"] * link["latency"] + case["gradient_bytes"] / n / link["bandwidth"]
    rates = batch_size / (computing + 2 * (n - 1) * exchange)
    lists = {"devices": n, "computing_seconds": computing, "exchanging_seconds": 2 * (n - 1) * exchange}
    lists |= {"images_per_second": rates, "speedup": rates / rates[0]}
    best = int(n[rates.argmax()])
    return {
        "link": link["name"],
        **{name: values.tolist() for name, values in lists.items()},
        "stops_gaining_at": best if best < n[-1] else None,
    }


def measured_rows(case: dict, seconds: dict[Key, float], predicted: dict) -> list[dict]:
    """How fast `case`, an entry of scaling.json, was on each number of devices, beside the prediction."""
    name, size, rows = case["model"], case["batch_size"], []
    alone, counts = seconds["alone", name, size, 1], device_counts()
    for devices in counts:
        step = seconds["training", name, size, devices] if devices > 1 else alone
        computing = min(step, seconds["computing", name, size, devices]) if devices > 1 else alone
        beside = predicted["images_per_second"][predicted["devices"].index(devices)] if len(counts) > 1 else None
        rows.append({
            "devices": devices, "parallel": "DistributedDataParallel" if devices > 1 else "none",
            "images_per_second": size / step, "speedup": alone / step, "efficiency": alone / step / devices,
            "step_seconds": step, "computing_seconds": computing, "exchanging_seconds": step - computing,
            "predicted_images_per_second": beside,
        })  # fmt: skip
    return rows


def scaling_record(width: int, seconds: dict[Key, float]) -> dict:
    """What scaling.json holds: seconds, bytes, bytes per second."""
    gpus, links, cases = torch.cuda.is_available(), connections(seconds), []
    for settings in stated_cases(width):
        model = common.build_model(settings)
        case = {
            "model": settings.model.__name__,
            "width": settings.options.get("width"),
            "batch_size": settings.batch_size,
            "precision": choose_precision(settings.precision, "cuda" if gpus else "cpu", interface_of(model).bf16),
            "gradient_bytes": sum(4 * parameter.numel() for parameter in model.parameters()),
            "exchanges": 1 + 2 * sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()),
        }
        predicted = [predict(case, seconds, link) for link in links]
        cases.append(case | {"measured": measured_rows(case, seconds, predicted[0]), "predicted": predicted})
    return {
        "device": torch.cuda.get_device_name() if gpus else processor_name(),
        "devices": "GPUs" if gpus else "CPU cores",
        "count": device_counts()[-1],
        "torch": torch.__version__,
        "platform": platform.platform(terse=True),
        "links": links,
        "cases": cases,
    }


def print_record(record: dict) -> None:
    """The measurements and the predicted speed-ups of scaling.json as Markdown tables."""
    print(f"{record['count']} {record['devices']}, {record['device']}, torch {record['torch']}\n")
    named = [(case_name(case), case) for case in record["cases"]]
    rows = [{"case": name, "precision": case["precision"], **row} for name, case in named for row in case["measured"]]
    print(tabulate(rows, "keys", "github", ".5g") + "\n")
    several = [row for row in rows if row["devices"] > 1]
    differences = [100 * (row["predicted_images_per_second"] / row["images_per_second"] - 1) for row in several]
    if differences:
        median, largest = statistics.median(map(abs, differences)), max(differences, key=abs)
        print(f"Prediction and measurement differ by {median:.0f} % in the median, by {largest:+.0f} % at most.\n")
    print("Predicted speed-up over one device, by their number:\n")
    rows = []
    for name, case in named:
        for link, it in zip(record["links"], case["predicted"], strict=True):
            about = f"{link['name']} ({link['latency'] * 1e6:.3g} µs, {link['bandwidth'] / 1e9:.3g} GB/s)"
            speedups = dict(zip(it["devices"], it["speedup"], strict=True))
            stops = it["stops_gaining_at"] or f"more than {it['devices'][-1]}"
            rows.append({"case": name, "connection": about, **speedups, "stops gaining at": stops})
    print(tabulate(rows, "keys", "github", ".3g"))


@default_style()
def draw(record: dict) -> bytes:
    """`scaling.png`: speed-up over devices, and what a step's time goes to."""
    from matplotlib.figure import Figure  # takes half a second: only when there is something to draw
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = record["cases"][0]["predicted"][0]["devices"]
    for case, colour, marker in zip(record["cases"], COLOURS, "osD^v", strict=True):
        left.plot(counts, case["predicted"][0]["speedup"], "--", color=colour, lw=1.2)
        points = [row["devices"] for row in case["measured"]], [row["speedup"] for row in case["measured"]]
        left.plot(*points, color=colour, marker=marker, ms=6, lw=2.2, label=case_name(case))
    left.plot(counts, counts, color="0.6", lw=1, label="ideal")
    left.plot([], [], "k--", lw=1.2, label="predicted")
    left.set(xscale="log", yscale="log", xlabel=record["devices"], ylabel="speed-up over one")
    left.set(xticks=counts, yticks=counts, ylim=(0.7, None), title="the same batches on more devices")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(ScalarFormatter())
    left.minorticks_off()
    left.grid(alpha=0.3)
    left.legend(fontsize=8.5)
    draw_steps(right, record)
    figure.suptitle(f"{record['device']}, {record['count']} {record['devices']}, torch {record['torch']}", fontsize=11)
    return png(figure, 110)


def draw_steps(axes: object, record: dict) -> None:
    """One bar for each case and number of devices, in per cent of one device's step."""
    names, place = {}, 0.0
    for case, colour in zip(record["cases"], COLOURS, strict=True):
        single = case["measured"][0]["step_seconds"]
        for row in case["measured"]:
            computing, exchanging = (100 * row[f"{what}_seconds"] / single for what in ("computing", "exchanging"))
            axes.barh(place, computing, color=colour, label="" if names else "computing")
            axes.barh(place, exchanging, left=computing, color="#F0E442", label="" if names else "exchanging")
            milliseconds = f"{1e3 * row['step_seconds']:.{0 if row['step_seconds'] > 0.1 else 1}f} ms"
            axes.text(computing + exchanging + 1.5, place, milliseconds, va="center", fontsize=9)
            names[place] = f"{case_name(case)} on {row['devices']}"
            place += 1
        place += 0.6
    axes.set_yticks(list(names), list(names.values()))
    axes.invert_yaxis()
    axes.set_xlim(0, max(125, axes.get_xlim()[1] * 1.15))
    axes.set(xlabel="% of the time on one", title="a step's time")
    axes.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, -0.22), ncols=2)


def main() -> None:
    """Exit codes: 0; 1 if a process failed or the files can't be written; 2 for wrong arguments; 130; 143."""
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add, width = parser.add_argument, 64 if torch.cuda.is_available() else 32
    add("--width", type=number_within(int, 1, 2**31), default=width, help="of ResNet-18; 64 is the experiment's")
    add("--seconds", type=number_within(float, 0, 3600), default=0.5, help="that each measurement takes at least")
    save_help = "write scaling.json and scaling.png, here or into that folder"
    add("--save", type=expanded, nargs="?", metavar="DIR", const=Path(__file__).parent, help=save_help)
    arguments = parser.parse_args()
    if dist.is_torchelastic_launched():
        work(arguments)
        return
    make_output_last()
    for number in (getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        record = scaling_record(arguments.width, measure())
        print_record(record)
        if arguments.save:
            write_file(arguments.save / "scaling.json", json.dumps(record, indent=1, allow_nan=False).encode())
            write_file(arguments.save / "scaling.png", draw(record))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
