"""Where a run is trained: its device, precision and processes, and what it changes in its process meanwhile."""

import contextlib
import copy
import ctypes
import gc
import math
import os
import platform
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cifar10lab.devices.processes import BatchNorm2d, all_reduce, join_processes, leave_processes

TINY_BATCH_SIZE = 4  # up to here one CPU thread and PyTorch's own convolutions beat two and oneDNN's


@dataclass(frozen=True)
class Execution:
    """How this process trains, alone or among those that `torchrun` started."""

    device: torch.device
    precision: str  # "fp32" or "bf16"
    parallel: str  # "none", "DataParallel" or "DistributedDataParallel"
    rank: int = 0
    world_size: int = 1  # processes
    restarted: bool = False  # whether torchrun has restarted a process


def device_name(text: str) -> str:
    """The name itself: "auto", or a device that this machine has; ValueError for any other."""
    names = ["auto", "cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    names += [name for name, kind in (("cuda", torch.cuda), ("mps", torch.backends.mps)) if kind.is_available()]
    if text not in names:
        raise ValueError(f"choose from {', '.join(names)}")
    return text


def start_execution(device: str, precision: str, gains_from_bf16: bool, data_parallel: bool) -> Execution:
    """Choose device and precision where they are "auto", and join torchrun's or the caller's processes. UserError."""
    name, alone = device, not (dist.is_initialized() or dist.is_torchelastic_launched())
    if name == "auto":
        mps = torch.backends.mps.is_available() and alone  # processes can't share it
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    precision = choose_precision(precision, name, gains_from_bf16)
    if alone:
        several = data_parallel and name == "cuda" and torch.cuda.device_count() > 1
        return Execution(torch.device(name), precision, "DataParallel" if several else "none")
    name = join_processes(name)
    number = dist.get_rank(), dist.get_world_size()
    restarts = all_reduce(torch.tensor(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))))  # each machine's own
    return Execution(torch.device(name), precision, "DistributedDataParallel", *number, bool(restarts))


def choose_precision(precision: str, device: str, gains_from_bf16: bool) -> str:
    """ "bf16" or "fp32"; auto takes bf16 for a model that gains from it, where the device multiplies it faster."""
    if precision != "auto" or not gains_from_bf16:
        return precision.replace("auto", "fp32")
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.9 can't tell
    fast = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))
    return "bf16" if device == "cpu" and fast else "fp32"


def processor_name() -> str:
    """The processor's model as the system names it, "AMD EPYC" for instance."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as file:
        return next(line for line in file if line.startswith("model name")).split(":")[1].strip()
    return platform.processor() or platform.machine()


def environment_record(execution: Execution) -> dict[str, object]:
    """The "environment" in `loss.json`: where a run is trained."""
    cuda = execution.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(execution.device) if cuda else execution.device.type,
        "processor": processor_name(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "precision": execution.precision,
        "parallel": execution.parallel,
        "world_size": torch.cuda.device_count() if execution.parallel == "DataParallel" else execution.world_size,
    }


class InPrecision(nn.Module):
    """A model that computes in bf16 or fp32, also in `DataParallel`'s threads, and whose logits are float32."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.model, self.bf16 = model, precision == "bf16"

    def forward(self, images: Tensor) -> Tensor:
        # An empty share stays float32: nn.SyncBatchNorm would send its sums in bf16, but all others' in float32.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16 and len(images) > 0):
            return self.model(images).float()


class Graphed(nn.Module):
    """A network on one GPU whose passes are CUDA graphs, recorded at a shape's first batch: a launch, not hundreds."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.graphs = network, {}

    def forward(self, images: Tensor) -> Tensor:
        if images.shape not in self.graphs:
            buffers = [buffer.clone() for buffer in self.network.buffers()]
            with torch.cuda.device(images.device), torch.random.fork_rng([images.device]):
                graph = torch.cuda.make_graphed_callables(copy.copy(self.network), (images.clone(),))
            for buffer, before in zip(self.network.buffers(), buffers, strict=True):
                buffer.copy_(before)  # recording calls the network some times
            self.graphs[images.shape] = graph
        return self.graphs[images.shape](images)

    def __del__(self) -> None:
        # Gradients may lie in the graphs' memory. In torch 2.14, they are in circles: Python collects them at any time,
        # also while another one is recorded, which then fails: https://github.com/pytorch/pytorch/pull/195397
        for parameter in self.network.parameters():
            parameter.grad = None
        self.graphs.clear()
        gc.collect()
        torch.cuda.empty_cache()


def parallel_network(network: nn.Module, execution: Execution, static_graph: bool = False) -> nn.Module:
    """`network` wrapped for several GPUs or processes, or for one GPU's CUDA graphs; its parameters stay its own."""
    if execution.parallel == "none":
        return Graphed(network) if static_graph and execution.device.type == "cuda" else network
    if execution.parallel == "DataParallel":
        return nn.DataParallel(network)
    if execution.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats and module.momentum:
            module.__class__ = BatchNorm2d  # on the CPU, where nn.SyncBatchNorm doesn't work
    buffers = {type(module) for module in network.modules() if next(module.buffers(recurse=False), None) is not None}
    own = sorted(kind.__name__ for kind in buffers - {BatchNorm2d, nn.SyncBatchNorm})  # theirs are the same
    if own and execution.rank == 0 and execution.world_size > 1:
        print(f"buffers of {', '.join(own)} are not synced over the processes: those of rank 0 are evaluated and saved")
    wrapped = nn.parallel.DistributedDataParallel(network, find_unused_parameters=not static_graph)
    wrapped.broadcast_buffers = bool(own)  # at every step; as an argument, torch 2.14 warns of it
    return wrapped


RUNNING = threading.RLock()  # held by the thread that trains: most that it sets belongs to the whole process


@contextlib.contextmanager
def own_process_state() -> Iterator[None]:
    """Gradients on and float32 for a run; afterwards these, random generators and process group are as they were."""
    with RUNNING, torch.inference_mode(False), torch.enable_grad(), contextlib.ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        callers_group = dist.is_initialized()
        yield
        leave_processes(destroy=not callers_group)


@contextlib.contextmanager
def process_settings(device: torch.device, signals: list[int] | None = None) -> Iterator[None]:
    """Settings for speed, undone at the end; with `signals`, SIGINT, SIGTERM and SIGHUP only add their number to it."""
    with contextlib.ExitStack() as stack:
        if platform.libc_ver()[0] == "glibc":  # which would map tensors of over 32 MB anew at each step, page by page
            libc, trim_threshold, mmap_threshold, mmap_max = ctypes.CDLL(None), -1, -3, -4  # as malloc.h numbers them
            libc.mallopt(mmap_max, 0)
            libc.mallopt(trim_threshold, 2**31 - 1)
            stack.callback(libc.malloc_trim, 0)
            stack.callback(libc.mallopt, trim_threshold, 2**26)  # to which these two rise, until they are set
            stack.callback(libc.mallopt, mmap_threshold, 2**25)
            stack.callback(libc.mallopt, mmap_max, 2**16)  # the default
        threads, share = torch.get_num_threads(), cpu_share()
        fewer = math.ceil(min(threads, share))
        if fewer < threads and "OMP_NUM_THREADS" not in os.environ:
            stack.callback(torch.set_num_threads, threads)
            torch.set_num_threads(fewer)
            print(f"threads: {fewer} instead of {threads}, since this process may use {share:g} CPUs' time")
        if device.type == "cuda":
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("high")  # TF32
            stack.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
            torch.backends.cudnn.benchmark = True
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")  # `Graphed` records on its own
        reached = signals is not None and threading.current_thread() is threading.main_thread()  # others get no signals
        for number in signal.Signals if reached else ():
            if number.name in ("SIGINT", "SIGTERM", "SIGHUP") and signal.getsignal(number) != signal.SIG_IGN:  # nohup
                before = signal.signal(number, lambda number, frame: signals.append(number))
                stack.callback(signal.signal, number, before)
        yield


def cpu_share(root: Path = Path("/")) -> float:
    """How many CPUs' time this process may use, as `docker run --cpus=1.5` sets it; infinity without such a quota.

    The least of its control group and those above it, of version 2 or 1 (`man 7 cgroups`; docs.kernel.org).
    """
    shares = [math.inf]
    with contextlib.suppress(OSError):  # not Linux
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            for place in (group, *map(str, Path(group).parents)):  # in a container, its own group is the uppermost
                folder = root / "sys/fs/cgroup" / controllers / place.lstrip("/")
                for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
                    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                        quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
                        shares += [quota / period] if quota > 0 else []
    return min(shares)


@contextlib.contextmanager
def tiny_steps(batch_size: int) -> Iterator[None]:
    """One CPU thread and no oneDNN for batches of up to TINY_BATCH_SIZE, which is fastest; undone at the end."""
    with contextlib.ExitStack() as stack:
        if batch_size <= TINY_BATCH_SIZE:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            stack.callback(setattr, torch.backends.mkldnn, "enabled", torch.backends.mkldnn.enabled)
            torch.set_num_threads(1)
            torch.backends.mkldnn.enabled = False
        yield
