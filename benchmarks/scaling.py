"""Do several devices train faster than one, and how many are worth it?

    python benchmarks/scaling.py                                # on all GPUs, or on all CPU cores
    python benchmarks/scaling.py --bandwidth 1.1 --latency 50   # and predict for 10 Gbit/s Ethernet

Takes some minutes, on random images. Devices are GPUs or, where there is none, CPU cores with one single-threaded
process each, pinned to it. 1, 2, 4, … and all of them train batches of the same global size: in one process each
under torchrun and, on GPUs, in a single one with DataParallel. Computing is the step of a device's share of the batch
without any exchange, while all devices do the same; exchanging is the rest of the step, with waiting for the slowest.
On GPUs, only a step without exchange is made of CUDA graphs, as in training: what they save counts as exchanging.

From one device's steps and the time that exchanges take, it predicts other numbers n of devices: a step takes the
share's computing + e * 2(n - 1) * latency + 2(n - 1) / n * gradient bytes / bandwidth, where e is 1 for the gradient's
ring all-reduce, and 2 more for each BatchNorm. Measure while nothing else runs.

--save writes scaling.json and scaling.png.
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
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

import original_version_model_multigpu
import resnet_model
from cifar10lab.devices.execution import Execution, choose_precision, kept_memory, processor_name
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
LINKS = {  # seconds per message, and bytes per second in each direction: what programs reach, not data sheets
    "NVLink": (5e-6, 200e9),
    "PCIe 4.0 x16": (1e-5, 20e9),
    "100 Gbit/s Ethernet": (2e-5, 11e9),
    "10 Gbit/s Ethernet": (5e-5, 1.1e9),
}
# Blues for LeNet and vermilion for ResNet-18, as in all pictures; markers tell the batch sizes apart in print.
COLOURS = ("#003D60", "#0072B2", "#73B3D9", "#8A3D00", "#E8813B")

# What was timed ("none", "computing", "all_reduce" or a way of being parallel), model, batch size or bytes, devices
Key = tuple[str, str, int, int]


def parse_arguments() -> argparse.Namespace:
    """The command line, the same one for this process and for those that it starts."""
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    width = 64 if torch.cuda.is_available() else 32
    add("--width", type=number_within(int, 1, 2**31), default=width, help="of ResNet-18; 64 is the experiment's")
    add("--seconds", type=number_within(float, 0, 3600), default=0.5, help="that each measurement takes at least")
    values = "; ".join(f"{name}: {rate / 1e9:g} and {latency * 1e6:g}" for name, (latency, rate) in LINKS.items())
    bandwidth_help = f"GB/s, instead of the measured. With latency: {values}"
    add("--bandwidth", type=number_within(float, 1e-6, 1e9), help=bandwidth_help)
    add("--latency", type=number_within(float, 0, 1e9), help="microseconds per message, instead of the measured")
    save_help = "write scaling.json and scaling.png, here or into that folder"
    add("--save", type=expanded, nargs="?", metavar="DIR", const=Path(__file__).parent, help=save_help)
    return parser.parse_args()


def stated_cases(width: int) -> list[common.Settings]:
    """The experiments' settings at each batch size."""
    resnet = dataclasses.replace(resnet_model.SETTINGS, options={"width": width})
    both = (original_version_model_multigpu.SETTINGS, resnet)
    return [dataclasses.replace(it, batch_size=size) for it in both for size in BATCH_SIZES[it.model.__name__]]


def case_name(case: dict) -> str:
    """How a case of scaling.json is called in tables and in the picture."""
    width = "" if case["width"] is None else f" of width {case['width']}"
    return f"{case['model'].replace('18', '-18')}{width}, {case['batch_size']}"


# --- The machine ------------------------------------------------------------------------------


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


def shares(cases: list[common.Settings]) -> list[common.Settings]:
    """What one device is to be measured with: every case's shares on every number of devices, the largest first."""
    counts = {*PREDICTED, *device_counts()}
    sizes = {(case.model.__name__, share_size(case.batch_size, n)): case for case in cases for n in counts}
    return [dataclasses.replace(sizes[key], batch_size=key[1]) for key in sorted(sizes, reverse=True)]


# --- What torchrun's processes do -------------------------------------------------------------


def work(arguments: argparse.Namespace) -> None:
    """Measure, in each of torchrun's processes; rank 0 prints one JSON object a line."""
    rank, devices = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(rank)
        torch.set_float32_matmul_precision("high")  # as in training
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(1)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {cpu_cores()[rank]})
    execution = Execution(torch.device("cuda", rank) if gpus else torch.device("cpu"), "", "none", rank, devices)
    cases = stated_cases(arguments.width)
    with kept_memory():
        if devices > 1:
            work_together(cases, execution, arguments.seconds)
        elif gpus > 1:
            execution = dataclasses.replace(execution, parallel="DataParallel")
            for case in cases:
                report("DataParallel", case, gpus, step_seconds(case, execution, arguments.seconds))
        else:
            for case in shares(cases):
                report("none", case, 1, step_seconds(case, execution, arguments.seconds))


def work_together(cases: list[common.Settings], execution: Execution, seconds: float) -> None:
    """Each case without exchange, before the processes have met, and with it; then all-reduces alone."""
    alone = torch.tensor([step_seconds(case, execution, seconds) for case in cases])
    join_processes(execution.device.type)
    dist.all_reduce(alone, dist.ReduceOp.MAX)
    execution = dataclasses.replace(execution, parallel="DistributedDataParallel")
    for case, computing in zip(cases, alone.tolist(), strict=True):
        report("computing", case, execution.world_size, computing)
        images = max(1, round(seconds / computing)) * case.batch_size  # the same number in every process
        step = step_seconds(case, execution, seconds, images)
        report("DistributedDataParallel", case, execution.world_size, step)
    for size in MESSAGES:
        report("all_reduce", size, execution.world_size, all_reduce_seconds(size, execution.device))
    leave_processes()


def report(what: str, of: common.Settings | int, devices: int, seconds: float) -> None:
    """Print a measurement of a case, or of a number of bytes, for the process that started torchrun."""
    name, size = ("", of) if isinstance(of, int) else (of.model.__name__, of.batch_size)
    if os.environ["RANK"] == "0":
        print(json.dumps({"key": (what, name, size, devices), "seconds": seconds}), flush=True)


def step_seconds(case: common.Settings, execution: Execution, seconds: float, images: int = 0) -> float:
    """Seconds per step of training, over `images`, or over about that many seconds."""
    model = common.build_model(case)
    precision = choose_precision(case.precision, execution.device.type, interface_of(model).bf16)
    execution = dataclasses.replace(execution, precision=precision)
    labels = torch.arange(IMAGES) % 10
    random_images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    data = common.Data(random_images, labels, random_images[:1], labels[:1], "random", "scaling.py")
    run = common.ready_to_train(common.Training(case, execution, data, model, Path()))
    chunks = itertools.chain.from_iterable(common.epoch_chunks(run, epoch, 0) for epoch in itertools.count(1))
    for chunk in itertools.islice(chunks, 2 if dist.is_initialized() else 1):
        common.train_chunk(run, *chunk)  # DistributedDataParallel rearranges its buckets after the first step
    synchronise(execution.device)
    done, started = 0, time.perf_counter()
    for batches, sizes, rates in chunks:
        if dist.is_initialized():
            common.check_signals(run)
        losses = common.train_chunk(run, batches, sizes, rates)
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


# --- Starting them ----------------------------------------------------------------------------


def measure(width: int) -> dict[Key, float]:
    """The median seconds of everything that there is to measure."""
    cases, gpus, times = stated_cases(width), torch.cuda.device_count(), defaultdict(list)
    launches = [(n, n) for n in device_counts()]  # processes and GPUs
    launches += [(1, n) for n in device_counts() if gpus and n > 1]
    lines = [len(shares(cases)) if n == 1 else 2 * len(cases) + len(MESSAGES) for n in device_counts()]
    total = ROUNDS * (sum(lines) + len(cases) * (len(launches) - len(lines)))
    with tqdm(total=total, disable=None, leave=False, unit=" measurements") as bar:
        for _, (processes, visible) in itertools.product(range(ROUNDS), launches):
            what = "GPU" if gpus else "core"
            bar.set_description(f"{visible} {what}{'s' * (visible > 1)} in {processes} process{'es' * (processes > 1)}")
            launch(processes, visible, times, bar)
    return {key: statistics.median(values) for key, values in times.items()}


def launch(processes: int, gpus: int, times: dict[Key, list[float]], bar: tqdm) -> None:
    """Start `processes` under torchrun, which see so many GPUs, and add what they print to `times`.

    Whatever happens, none of them is left running. Raises UserError if one fails.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ",".join(visible[:gpus])}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with tempfile.TemporaryFile("w+") as log:
        # In a session of their own, so that Ctrl-C reaches this process alone, which then ends them in order.
        options = {"stderr": log, "text": True, "env": environment, "start_new_session": True}
        with subprocess.Popen([*start, *sys.argv], stdout=subprocess.PIPE, **options) as torchrun:
            try:
                for line in torchrun.stdout:
                    measured = json.loads(line)
                    times[tuple(measured["key"])].append(measured["seconds"])
                    bar.update()
            finally:
                if torchrun.poll() is None:
                    torchrun.terminate()  # it ends its processes before itself
        if torchrun.returncode:
            log.seek(0)
            sys.stderr.write(log.read())
            raise UserError(f"one of {processes} processes failed (torchrun ended with code {torchrun.returncode})")


# --- What follows from it ---------------------------------------------------------------------


def links(seconds: dict[Key, float], bandwidth: float | None, latency: float | None) -> list[dict]:
    """This machine's connection, as measured or as given in GB/s and microseconds, and the named ones."""
    named = [{"name": name, "latency": latency, "bandwidth": rate} for name, (latency, rate) in LINKS.items()]
    devices = device_counts()[-1]
    here = {}
    if devices > 1:
        small, large = (seconds["all_reduce", "", size, devices] for size in MESSAGES)
        transferred = 2 * (devices - 1) / devices * (MESSAGES[1] - MESSAGES[0])
        here = {"latency": small / (2 * (devices - 1)), "bandwidth": transferred / max(large - small, 1e-9)}
    given = {} if latency is None else {"latency": latency / 1e6}
    given |= {} if bandwidth is None else {"bandwidth": 1e9 * bandwidth}
    here |= given
    return [{"name": "as given" if given else "measured here", **here}, *named] if len(here) == 2 else named


def predict(case: dict, seconds: dict[Key, float], link: dict) -> dict:
    """What `case`, an entry of scaling.json, would take on more and other devices, joined by `link`."""
    counts = sorted({*PREDICTED, *device_counts()})
    sizes = [share_size(case["batch_size"], n) for n in counts]
    computing = [seconds["none", case["model"], size, 1] for size in sizes]
    messages = [case["exchanges"] * 2 * (n - 1) for n in counts]
    transferred = [2 * (n - 1) / n * case["gradient_bytes"] for n in counts]
    exchanging = [
        count * link["latency"] + size / link["bandwidth"] for count, size in zip(messages, transferred, strict=True)
    ]
    rates = [case["batch_size"] / (c + e) for c, e in zip(computing, exchanging, strict=True)]
    best = rates.index(max(rates))
    return {
        "link": link["name"], "devices": counts, "computing_seconds": computing, "exchanging_seconds": exchanging,
        "images_per_second": rates, "speedup": [rate / rates[0] for rate in rates],
        "stops_gaining_at": counts[best] if best < len(counts) - 1 else None,
    }  # fmt: skip


def measured_rows(case: dict, seconds: dict[Key, float], predicted: dict | None) -> list[dict]:
    """How fast `case`, an entry of scaling.json, was on each number of devices, beside the prediction."""
    name, size = case["model"], case["batch_size"]
    single, rows = seconds["none", name, size, 1], []
    for devices, parallel in itertools.product(device_counts(), ("none", "DistributedDataParallel", "DataParallel")):
        step = seconds.get((parallel, name, size, devices))
        if step is None:
            continue
        share = seconds["none", name, share_size(size, devices), 1]  # DataParallel's is measured on one device only
        computing = min(step, seconds.get(("computing", name, size, devices), share) if "Dist" in parallel else share)
        beside = predicted["images_per_second"][predicted["devices"].index(devices)] if predicted else None
        rows.append({
            "devices": devices, "parallel": parallel, "images_per_second": size / step, "speedup": single / step,
            "efficiency": single / step / devices, "step_seconds": step, "computing_seconds": computing,
            "exchanging_seconds": step - computing,
            "predicted_images_per_second": None if parallel == "DataParallel" else beside,
        })  # fmt: skip
    return rows


def scaling_record(arguments: argparse.Namespace, seconds: dict[Key, float]) -> dict:
    """What scaling.json holds: seconds, bytes, bytes per second."""
    gpus = torch.cuda.is_available()
    record = {
        "device": torch.cuda.get_device_name() if gpus else processor_name(),
        "devices": "GPUs" if gpus else "CPU cores",
        "count": device_counts()[-1],
        "torch": torch.__version__,
        "platform": platform.platform(terse=True),
        "links": links(seconds, arguments.bandwidth, arguments.latency),
        "cases": [],
    }
    for settings in stated_cases(arguments.width):
        model = common.build_model(settings)
        case = {
            "model": settings.model.__name__,
            "width": settings.options.get("width"),
            "batch_size": settings.batch_size,
            "precision": choose_precision(settings.precision, "cuda" if gpus else "cpu", interface_of(model).bf16),
            "gradient_bytes": sum(4 * parameter.numel() for parameter in model.parameters()),
            "exchanges": 1 + 2 * sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()),
        }
        predicted = [predict(case, seconds, link) for link in record["links"]]
        rows = measured_rows(case, seconds, predicted[0] if record["count"] > 1 else None)
        record["cases"].append(case | {"measured": rows, "predicted": predicted})
    return record


# --- Showing it -------------------------------------------------------------------------------


def print_table(head: list[str], lines: list[list[str]]) -> None:
    """Print a Markdown table."""
    for line in [head, ["---"] * len(head), *lines, []]:
        print("| " + " | ".join(line) + " |" if line else "")


def print_record(record: dict) -> None:
    """The measurements and predictions of scaling.json as tables."""
    print(f"{record['count']} {record['devices']}, {record['device']}, torch {record['torch']}")
    widths = {case["width"] for case in record["cases"]} - {None, 64}
    for width in widths:
        print(f"ResNet-18 has width {width}; --width 64 measures the experiment's, and takes longer.")
    print()
    lines, differences = [], []
    for case in record["cases"]:
        for row in case["measured"]:
            beside, rate = row["predicted_images_per_second"], row["images_per_second"]
            differences += [100 * (beside / rate - 1)] if beside and row["devices"] > 1 else []
            exchanging = 100 * row["exchanging_seconds"] / row["step_seconds"]
            line = [case_name(case), case["precision"], str(row["devices"]), row["parallel"], f"{rate:.0f}"]
            line += [f"{row['speedup']:.2f}", f"{100 * row['efficiency']:.0f} %", f"{exchanging:.0f} %"]
            lines.append([*line, f"{beside:.0f} ({100 * (beside / rate - 1):+.0f} %)" if beside else ""])
    head = ["model, batch size", "precision", "devices", "parallel", "images/s", "speed-up", "efficiency"]
    print_table([*head, "of a step exchanging", "predicted images/s"], lines)
    if differences:
        largest = max(differences, key=abs)
        print(f"Prediction and measurement differ by {statistics.median(map(abs, differences)):.0f} % in the median,")
        print(f"by {largest:+.0f} % at most.\n")
    print("Predicted speed-up over one of these devices:\n")
    counts = record["cases"][0]["predicted"][0]["devices"][1:]
    lines = []
    for case, link in itertools.product(record["cases"], record["links"]):
        predicted = next(it for it in case["predicted"] if it["link"] == link["name"])
        about = f"{link['name']} ({link['latency'] * 1e6:.3g} µs, {link['bandwidth'] / 1e9:.3g} GB/s)"
        four = predicted["exchanging_seconds"][predicted["devices"].index(4)]
        stops = predicted["stops_gaining_at"] or f"more than {counts[-1]}"
        speedups = [f"{speedup:.2f}" for speedup in predicted["speedup"][1:]]
        lines.append([case_name(case), about, *speedups, str(stops), f"{1e3 * four:.3g} ms"])
    head = ["model, batch size", "connection", *(f"{n} devices" for n in counts)]
    print_table([*head, "stops gaining at", "4 devices exchange for"], lines)


@default_style()
def draw(record: dict) -> bytes:
    """`scaling.png`: speed-up over devices, and what a step's time goes to."""
    from matplotlib.figure import Figure  # takes half a second: only when there is something to draw
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for case, colour, marker in zip(record["cases"], COLOURS, "osD^v", strict=True):
        predicted = case["predicted"][0]
        left.plot(predicted["devices"], predicted["speedup"], "--", color=colour, lw=1.2)
        for parallel, style in (("DistributedDataParallel", "-"), ("DataParallel", ":")):
            rows = [row for row in case["measured"] if row["parallel"] in ("none", parallel)]
            if len(rows) > 1 or parallel != "DataParallel":
                points = [row["devices"] for row in rows], [row["speedup"] for row in rows]
                label = case_name(case) + " in DataParallel" * (parallel == "DataParallel")
                left.plot(*points, style, color=colour, marker=marker, ms=6, lw=2.2, label=label)
    counts = predicted["devices"]
    left.plot(counts, counts, color="0.6", lw=1, label="ideal")
    left.plot([], [], "k--", lw=1.2, label="predicted")
    left.set(xscale="log", yscale="log", xlabel=record["devices"], ylabel="speed-up over one")
    left.set(xticks=counts, yticks=counts, ylim=(0.7, None), title="the same batches on more devices")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
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
            parallel = " in DataParallel" * (row["parallel"] == "DataParallel")
            names[place] = f"{case_name(case)} on {row['devices']}{parallel}"
            place += 1
        place += 0.6
    axes.set_yticks(list(names), list(names.values()))
    axes.invert_yaxis()
    axes.set_xlim(0, max(125, axes.get_xlim()[1] * 1.15))
    axes.set(xlabel="% of the time on one", title="a step's time")
    axes.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, -0.22), ncols=2)


def main() -> None:
    """Exit codes: 0; 1 if a process failed or the files can't be written; 2 for wrong arguments; 130; 143."""
    arguments = parse_arguments()
    if dist.is_torchelastic_launched():
        work(arguments)
        return
    make_output_last()
    for number in (getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        record = scaling_record(arguments, measure(arguments.width))
        print_record(record)
        if arguments.save:
            write_file(arguments.save / "scaling.json", json.dumps(record, indent=1, allow_nan=False).encode())
            write_file(arguments.save / "scaling.png", draw(record))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
