"""The processes that train together: how torchrun's meet, and what they exchange; or those of the caller's group.

A process that was started alone is alone, and nothing here has an effect.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
import uuid
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cifar10lab.terminal.errors import UserError


def join_processes(device: str) -> tuple[str, dist.Store | None]:
    """Meet torchrun's other processes, if the caller hasn't made a group; this one's device, and torchrun's store.

    `device` is "cpu" or "cuda", or something else for a UserError, as is having fewer GPUs than processes.
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
        except RuntimeError as error:  # NCCL alone can't
            raise UserError(f"the process group must sum CPU tensors, too: make it with {backend!r}") from error
        return device, None
    lasting, rank, world_size = next(dist.rendezvous("env://"))
    wait = timedelta(hours=2)  # the others wait while rank 0 may be downloading
    store = unused_store(lasting, rank, world_size)
    if hasattr(os, "SCHED_BATCH"):  # Linux
        # Gloo's network thread polls while another of its threads holds the connection's lock. If it interrupts
        # that one on their common core, both lose up to a scheduler's tick: 1.6 ms instead of 0.16 for a sum of
        # 65 numbers. Batch threads have the same share of the core, but do not interrupt each other on waking up.
        with contextlib.suppress(OSError):  # a container may forbid it, which costs that time only
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=wait)
    return device, getattr(lasting, "underlying_store", lasting)  # some versions count restarts in it


def started_again() -> bool:
    """Whether torchrun has started any of the processes again: each machine counts only those after its own errors."""
    return bool(all_reduce(torch.tensor(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))))


def first_to_say(error: str) -> bool:
    """Whether no other process of this start of torchrun has said the same before, as far as its store can tell."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    try:
        store, *_ = next(dist.rendezvous("env://", timeout=timedelta(seconds=10)))
        return store.add(f"{os.environ['TORCHELASTIC_RESTART_COUNT']} {error}", 1) == 1
    except RuntimeError:  # its machine is lost
        return True


def launch_note(store: dist.Store | None, folder: Path) -> str:
    """What processes of this launch of torchrun have noted of a run's folder: "" if none has begun there.

    Its store outlives those that it starts again, whatever their reason; nothing in it is of an earlier launch.
    """
    key = f"run {folder}"
    return store.get(key).decode() if store and store.check([key]) else ""


def note_launch(store: dist.Store | None, folder: Path, note: str) -> None:
    """Note that a run has "begun" or "finished" for `launch_note`."""
    if store:
        store.set(f"run {folder}", note)


def unused_store(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """The part of torchrun's store that only these processes use.

    torchrun keeps its store when it starts failed processes again, so that they would read the addresses of the dead
    ones, and wait for them. The processes of one start therefore agree on a name that is new, and put it before all
    keys. (torchrun's own count of restarts is no such name: it differs between machines.)
    """
    name = uuid.uuid4().hex
    store.set(f"rank {rank}", name)
    if rank == 0:
        for other in range(1, world_size):
            while not store.check([f"{name} {other}"]):  # until then `other` may still be a dead process's name
                store.set(store.get(f"rank {other}").decode(), name)
                time.sleep(0.02)
    else:
        name = store.get(name).decode()
        store.set(f"{name} {rank}", "")
    return dist.PrefixStore(name, store)


def leave_processes(destroy: bool = True) -> None:
    """Wait until rank 0 has written the results: a process that leaves early may crash at its exit."""
    if dist.is_initialized():
        dist.barrier()
        if destroy:
            dist.destroy_process_group()


def from_rank_0(value: object) -> object:
    """Rank 0's value, on every rank: other machines need no copy of the data or the checkpoint."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give every rank's model rank 0's buffers, such as running statistics that each has of its own shares."""
    if dist.is_initialized():
        for buffer, value in zip(model.buffers(), from_rank_0([b.cpu() for b in model.buffers()]), strict=True):
            buffer.copy_(value)


def all_reduce(values: Tensor) -> Tensor:
    """The sum of every process's `values`, on the CPU; they stay as they are."""
    values = values.to("cpu", copy=True)
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
