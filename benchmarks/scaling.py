"""Do several devices train faster than one, and how many are worth it?

    python benchmarks/scaling.py    # on all GPUs, or on all CPU cores; some minutes

Devices are GPUs or, where there is none, CPU cores with one single-threaded process each, pinned to it. 1, 2, 4, … and
all of them train batches of the same global size, of random images, in one process each. Computing is the step of a
device's share of the batch without any exchange, while all devices do the same; exchanging is the rest of the step,
with waiting for the slowest.
On GPUs, only a step without exchange is made of CUDA graphs, as in training: what they save counts as exchanging.

From one device's steps it predicts n devices, joined as here or by usual connections: a step takes the computing of a
share + 2(n - 1) * (exchanges * latency + gradient bytes / n / bandwidth), where the exchanges are the gradient's ring
all-reduce and two for each BatchNorm. Measure while nothing else runs. --save writes scaling.json and scaling.png.
"""

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import platform
import signal
import socket
import sys
import threading
import time
import timeit
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common

# isort: split
import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from tabulate import tabulate
from throughput import pipeline_steps
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, spawn
from tqdm import tqdm

import original_version_model_multigpu
import resnet_model
from cifar10lab.devices.execution import Execution, choose_precision, process_settings, processor_name
from cifar10lab.devices.processes import all_reduce, from_rank_0, join_processes, leave_processes
from cifar10lab.files.pictures import png
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

# What was timed ("alone": steps without exchange; "training" or "all_reduce"), model, batch size or bytes, processes
Key = tuple[str, str, int, int]


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


def work(
    rank: int, processes: int, counts: list[int], cases: list[common.Settings], seconds: float, results: Connection
) -> None:
    """Measure, in each of the processes, the steps of the shares of `counts` devices, and what all of them train.

    Rank 0 sends the seconds of each Key by `results`.
    """
    gpus = torch.cuda.is_available()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    tqdm.set_lock(threading.RLock())  # the default one would be left behind by a process that is ended
    torch.set_num_threads(1)
    if gpus:
        torch.cuda.set_device(rank)
    elif hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cpu_cores()[rank]})
    alone = Execution(torch.device("cuda", rank) if gpus else torch.device("cpu"), "", "none")
    times = {}
    shares = {(case.model.__name__, math.ceil(case.batch_size / n)): case for case in cases for n in counts}
    with process_settings(alone.device):
        for model, size in sorted(shares, reverse=True):  # the largest first
            share = dataclasses.replace(shares[model, size], batch_size=size)
            times["alone", model, size, processes] = step_seconds(share, alone, seconds)
        if processes > 1:
            join_processes(alone.device.type)
            slowest = all_reduce(torch.tensor([*times.values()]), dist.ReduceOp.MAX)
            times = dict(zip(times, slowest.tolist(), strict=True))
            together = dataclasses.replace(alone, parallel="DistributedDataParallel", rank=rank, world_size=processes)
            for case in cases:
                step = step_seconds(case, together, seconds)
                times["training", case.model.__name__, case.batch_size, processes] = step
            for size in MESSAGES:
                times["all_reduce", "", size, processes] = all_reduce_seconds(size, alone.device)
            leave_processes()
    if rank == 0:
        results.send(times)


def step_seconds(case: common.Settings, execution: Execution, seconds: float) -> float:
    """Seconds per step of training, over at least so many."""
    model = common.build_model(case)
    precision = choose_precision(case.precision, execution.device.type, interface_of(model).bf16)
    execution, labels = dataclasses.replace(execution, precision=precision), torch.arange(IMAGES) % 10
    random_images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    data = common.Data(random_images, labels, random_images[:1], labels[:1], "random", "scaling.py")
    steps = pipeline_steps(common.ready_to_train(common.Training(case, execution, data, model, Path())))
    next(steps)  # DistributedDataParallel rearranges its buckets after the first step
    took, chunks, device = 0.0, 1, torch.get_device_module(execution.device)
    while not took or from_rank_0(took) < seconds:  # as many chunks in every process
        device.synchronize()
        started = time.perf_counter()
        images = sum(itertools.islice(steps, chunks))
        device.synchronize()
        took, chunks = time.perf_counter() - started, 2 * chunks
    return took * case.batch_size / images


def all_reduce_seconds(size: int, device: torch.device) -> float:
    """The median time of a sum of `size` bytes over all processes."""
    values = torch.zeros(size // 4, device=device)

    def exchange() -> None:
        dist.all_reduce(values)
        torch.get_device_module(device).synchronize()

    return float(np.median(timeit.repeat(exchange, dist.barrier, number=1, repeat=30)))


def measure(counts: list[int], *arguments: object) -> dict[Key, float]:
    """The median seconds of everything that there is to measure on these numbers of devices."""
    launches = tqdm(counts * ROUNDS, disable=None, leave=False, unit=" launches")
    times = [launch(n, [n] if n > 1 else [*PREDICTED, *counts], *arguments) for n in launches]
    return pd.DataFrame(times).median().to_dict()


def launch(processes: int, *arguments: object) -> dict[Key, float]:
    """What `work` measures in so many processes, none of which outlives this one; UserError if one fails."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    received, results = multiprocessing.Pipe(duplex=False)
    resource_tracker.ensure_running()  # as long as it isn't, starting a process would let SIGINT through
    # They are started by a thread, which no signal stops half-way, and which lets Ctrl-C pass them by: it ends this
    # process, and multiprocessing then ends them.
    blocked = signal.SIG_BLOCK, {signal.SIGINT}
    with ThreadPoolExecutor(1, initializer=signal.pthread_sigmask, initargs=blocked) as thread:
        started = thread.submit(spawn, work, (processes, *arguments, results), processes, join=False, daemon=True)
        running = started.result()  # here: a signal that came while the thread is joined would not wait for it
    try:
        while not running.join():
            pass
    except (ProcessExitedException, ProcessRaisedException) as error:
        raise UserError(f"one of {processes} processes failed: {error}") from error
    return received.recv()


def connections(seconds: dict[Key, float], devices: int) -> list[dict]:
    """This machine's connection, if it has several devices, and the usual ones."""
    if devices == 1:
        return LINKS
    small, large = (seconds["all_reduce", "", size, devices] for size in MESSAGES)
    bandwidth = 2 * (devices - 1) / devices * (MESSAGES[1] - MESSAGES[0]) / max(large - small, 1e-9)
    return [{"name": "measured here", "latency": small / (2 * (devices - 1)), "bandwidth": bandwidth}, *LINKS]


def predict(case: dict, seconds: dict[Key, float], link: dict, counts: list[int]) -> dict:
    """How fast `case`, an entry of scaling.json, would be on each number of devices, joined by `link`."""
    n, size = np.array(sorted({*PREDICTED, *counts})), case["batch_size"]
    computing = np.array([seconds["alone", case["model"], math.ceil(size / devices), 1] for devices in n])
    exchanging = 2 * (n - 1) * (case["exchanges"] * link["latency"] + case["gradient_bytes"] / n / link["bandwidth"])
    rates = size / (computing + exchanging)
    figures = pd.DataFrame({"devices": n, "computing_seconds": computing, "exchanging_seconds": exchanging})
    figures = figures.assign(images_per_second=rates, speedup=rates / rates[0])
    best = int(n[rates.argmax()])
    return {"link": link["name"], **figures.to_dict("list"), "stops_gaining_at": best if best < n[-1] else None}


def measured_rows(case: dict, seconds: dict[Key, float], predicted: dict, counts: list[int]) -> list[dict]:
    """How fast `case`, an entry of scaling.json, was on each number of devices, beside the prediction."""
    name, size, rows = case["model"], case["batch_size"], []
    for devices in counts:
        computing = seconds["alone", name, math.ceil(size / devices), devices]
        step = seconds["training", name, size, devices] if devices > 1 else computing
        speedup, computing = seconds["alone", name, size, 1] / step, min(step, computing)
        rows.append({
            "devices": devices, "parallel": "DistributedDataParallel" if devices > 1 else "none",
            "images_per_second": size / step, "speedup": speedup, "efficiency": speedup / devices,
            "step_seconds": step, "computing_seconds": computing, "exchanging_seconds": step - computing,
            "predicted_images_per_second": predicted["images_per_second"][predicted["devices"].index(devices)],
        })  # fmt: skip
    return rows


def scaling_record(stated: list[common.Settings], seconds: dict[Key, float], counts: list[int]) -> dict:
    """What scaling.json holds: seconds, bytes, bytes per second."""
    gpus, links, cases = torch.cuda.is_available(), connections(seconds, counts[-1]), []
    for settings in stated:
        model = common.build_model(settings)
        case = {
            "model": settings.model.__name__,
            "width": settings.options.get("width"),
            "batch_size": settings.batch_size,
            "precision": choose_precision(settings.precision, "cuda" if gpus else "cpu", interface_of(model).bf16),
            "gradient_bytes": sum(4 * parameter.numel() for parameter in model.parameters()),
            "exchanges": 1 + 2 * sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()),
        }
        predicted = [predict(case, seconds, link, counts) for link in links]
        measured = measured_rows(case, seconds, predicted[0], counts)
        cases.append(case | {"measured": measured, "predicted": predicted})
    return {
        "device": torch.cuda.get_device_name() if gpus else processor_name(),
        "devices": "GPUs" if gpus else "CPU cores",
        "count": counts[-1],
        "torch": torch.__version__,
        "platform": platform.platform(terse=True),
        "links": links,
        "cases": cases,
    }


def print_record(record: dict) -> None:
    """The measurements and the predicted speed-ups of scaling.json as Markdown tables."""
    print(f"{record['count']} {record['devices']}, {record['device']}, torch {record['torch']}\n")
    measured, predicted = [], []
    for case in record["cases"]:
        head = {"case": case_name(case)}
        measured += [{**head, "precision": case["precision"], **row} for row in case["measured"]]
        for link, one in zip(record["links"], case["predicted"], strict=True):
            about = f"{link['name']} ({link['latency'] * 1e6:.3g} µs, {link['bandwidth'] / 1e9:.3g} GB/s)"
            stops = one["stops_gaining_at"] or f"more than {one['devices'][-1]}"
            speedups = dict(zip(one["devices"], one["speedup"], strict=True))
            predicted.append({**head, "connection": about, **speedups, "stops gaining at": stops})
    print(tabulate(measured, "keys", "github", ".5g"))
    print("\nPredicted speed-up over one device, by their number:\n")
    print(tabulate(predicted, "keys", "github", ".3g"))


def draw(figure: object, record: dict) -> None:
    """`scaling.png`: speed-up over devices, and what a step's time goes to, in per cent of one device's step."""
    from matplotlib.ticker import ScalarFormatter

    figure.set(size_inches=(11, 5.2), dpi=110)
    left, right = figure.subplots(1, 2)
    counts, names, place = record["cases"][0]["predicted"][0]["devices"], {}, 0.0
    for case, colour, marker in zip(record["cases"], COLOURS, "osD^v", strict=True):
        left.plot(counts, case["predicted"][0]["speedup"], "--", color=colour, lw=1.2)
        points = [row["devices"] for row in case["measured"]], [row["speedup"] for row in case["measured"]]
        left.plot(*points, color=colour, marker=marker, ms=6, lw=2.2, label=case_name(case))
        single = case["measured"][0]["step_seconds"]
        for row in case["measured"]:
            computing, exchanging = (100 * row[f"{what}_seconds"] / single for what in ("computing", "exchanging"))
            right.barh(place, computing, color=colour, label="" if names else "computing")
            right.barh(place, exchanging, left=computing, color="#F0E442", label="" if names else "exchanging")
            milliseconds = f"{1e3 * row['step_seconds']:.{0 if row['step_seconds'] > 0.1 else 1}f} ms"
            right.text(computing + exchanging + 1.5, place, milliseconds, va="center", fontsize=9)
            names[place] = f"{case_name(case)} on {row['devices']}"
            place += 1
        place += 0.6
    left.plot(counts, counts, color="0.6", lw=1, label="ideal")
    left.plot([], [], "k--", lw=1.2, label="predicted")
    joined = f"{record['devices']} (connection: {record['links'][0]['name']})"
    left.set(xscale="log", yscale="log", xlabel=joined, ylabel="speed-up over one")
    left.set(xticks=counts, yticks=counts, ylim=(0.7, None), title="the same batches on more devices")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(ScalarFormatter())
    left.minorticks_off()
    left.grid(alpha=0.3)
    left.legend(fontsize=8.5)
    right.set_yticks(list(names), list(names.values()))
    right.invert_yaxis()
    right.set(xlim=(0, max(125, right.get_xlim()[1] * 1.15)), xlabel="% of the time on one", title="a step's time")
    right.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, -0.22), ncols=2)
    figure.suptitle(f"{record['device']}, {record['count']} {record['devices']}, torch {record['torch']}", fontsize=11)


def main() -> None:
    """Exit codes: 0; 1 if a process failed or the files can't be written; 2 for wrong arguments; 130; 143."""
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add, width = parser.add_argument, 64 if torch.cuda.is_available() else 32
    add("--width", type=number_within(int, 1, 2**31), default=width, help="of ResNet-18; 64 is the experiment's")
    add("--seconds", type=number_within(float, 0, 3600), default=0.5, help="that each measurement takes at least")
    save_help = "write scaling.json and scaling.png, here or into that folder"
    add("--save", type=expanded, nargs="?", metavar="DIR", const=Path(__file__).parent, help=save_help)
    arguments = parser.parse_args()
    make_output_last()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    most = torch.cuda.device_count() or len(cpu_cores())
    counts = sorted({most, *(2**i for i in range(most.bit_length()))})
    resnet = dataclasses.replace(resnet_model.SETTINGS, options={"width": arguments.width})
    both = (original_version_model_multigpu.SETTINGS, resnet)
    cases = [dataclasses.replace(it, batch_size=size) for it in both for size in BATCH_SIZES[it.model.__name__]]
    try:
        record = scaling_record(cases, measure(counts, cases, arguments.seconds), counts)
        print_record(record)
        if arguments.save:
            write_file(arguments.save / "scaling.json", json.dumps(record, indent=1, allow_nan=False).encode())
            write_file(arguments.save / "scaling.png", png(draw, record))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
