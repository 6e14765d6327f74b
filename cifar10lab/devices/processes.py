"""The processes that train together, torchrun's or those of the caller's group: how they meet and what they exchange.

In a process that was started alone, the exchanging functions give back what they get.
"""

import contextlib
import os
import platform
import time
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cifar10lab.terminal.errors import UserError


def join_processes(device: str) -> str:
    """Make the process group, unless the caller has; returns this process's device, as "cuda:1".

    UserError if `device` is neither "cpu" nor "cuda", or if there are fewer GPUs than processes.
    """
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device} can't be shared by several processes: use --device cpu or cuda")
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    if device == "cuda":
        number = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
        device = f"cuda:{number}"
        if number >= torch.cuda.device_count():
            there = f"{platform.node()} has {torch.cuda.device_count()} GPUs"
            raise UserError(f"there is no {device}: {there}, each for one process at most")
        torch.cuda.set_device(device)
    if dist.is_initialized():
        try:
            all_reduce(torch.zeros(1))
        except RuntimeError as error:  # NCCL alone sums no CPU tensors
            raise UserError(f"the process group must sum CPU tensors, too: make it with {backend!r}") from error
        return device
    store, rank, world_size = next(dist.rendezvous("env://"))
    wait = timedelta(hours=2)  # the others wait while rank 0 may be downloading
    if hasattr(os, "SCHED_BATCH"):  # Linux
        # Gloo's network thread polls while another of its threads holds the connection's lock. If the first interrupts
        # the second on their common core, both lose up to a scheduler's tick: 1.6 ms instead of 0.16 for a sum of 65
        # numbers. Batch threads have the same share of the core, but do not interrupt each other on waking up.
        with contextlib.suppress(OSError):  # a container may forbid it: slower, no more
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    store = fresh_store(store, rank, world_size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=wait)
    return device


def fresh_store(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """A part of torchrun's store without the keys of processes that torchrun has restarted.

    Their addresses would be read and waited for. Rank 0 therefore draws a new name, and all put this before their keys.
    (torchrun's count of restarts won't do: it differs between machines.)
    """
    name = uuid.uuid4().hex
    store.set(f"rank {rank}", name)
    if rank == 0:
        for other in range(1, world_size):
            while not store.check([f"{name} {other}"]):  # until then `rank {other}` may hold a dead process's name
                store.set(store.get(f"rank {other}").decode(), name)
                time.sleep(0.02)
    else:
        name = store.get(name).decode()
        store.set(f"{name} {rank}", "")
    return dist.PrefixStore(name, store)


def leave_processes(destroy: bool = True) -> None:
    """Wait until rank 0 has written the results, since a process that leaves early may crash; then end the group."""
    if dist.is_initialized():
        dist.barrier()
        if destroy:
            dist.destroy_process_group()


def from_rank_0(value: object) -> object:
    """Rank 0's value on every rank, so that only rank 0's machine needs the data and the checkpoint."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give every rank's model rank 0's buffers, such as running statistics: each rank has those of its own images."""
    if dist.is_initialized():
        for buffer, value in zip(model.buffers(), from_rank_0([b.cpu() for b in model.buffers()]), strict=True):
            buffer.copy_(value)


def all_reduce(values: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """The sum of all processes' `values`, or another `operation` on them, as a new tensor on the CPU."""
    values = values.to("cpu", copy=True)
    if dist.is_initialized():
        dist.all_reduce(values, operation)
    return values
