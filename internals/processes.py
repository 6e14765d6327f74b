"""The processes that torchrun started: how they meet, what they exchange, and BatchNorm over all of them.

A process that was started without torchrun is alone, and nothing here has an effect.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from internals.files import UserError


def join_processes(device: str) -> tuple[str, int, int]:
    """Meet the other processes; this one's device, its rank, and their number.

    `device` is "cpu" or "cuda", or something else for a UserError, as is having fewer GPUs than processes.
    """
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device} can't be shared by torchrun's processes: use --device cpu or cuda")
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            raise UserError(f"there is no {device}: start at most {torch.cuda.device_count()} processes per machine")
        torch.cuda.set_device(device)
    store, rank, world_size = next(dist.rendezvous("env://"))
    wait = timedelta(hours=2)  # the others wait while rank 0 may be downloading
    store = unused_store(store, rank, world_size)
    if hasattr(os, "SCHED_BATCH"):  # Linux
        # Gloo's network thread polls while another of its threads holds the connection's lock. If it interrupts
        # that one on their common core, both lose up to a scheduler's tick: 1.6 ms instead of 0.16 for a sum of
        # 65 numbers. Batch threads have the same share of the core, but do not interrupt each other on waking up.
        with contextlib.suppress(OSError):  # a container may forbid it, which costs that time only
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=wait)
    return device, rank, world_size


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


def leave_processes() -> None:
    """Wait until rank 0 has written the results: a process that leaves early may crash at its exit."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def from_rank_0(value: object) -> object:
    """Rank 0's value, on every rank: other machines need no copy of the data or the checkpoint."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]


def total(values: Tensor) -> Tensor:
    """The sum of every process's `values`, on the CPU."""
    values = values.cpu()
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


class NormaliseOverProcesses(torch.autograd.Function):
    """Batch normalisation of a share of the batch by the whole batch's statistics, and its gradient.

    Both directions exchange one vector of sums; all else are PyTorch's own kernels, which read and write the
    activations once, in their type and layout. The sums are exchanged in float64, in which the variance is safely
    the mean of the squares less the square of the mean.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (N, C, H, W), weight and bias (C,) -> x normalised, mean (C,), variance (C,), count of values (1,)."""
        channels = len(weight)
        sums = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
        if len(x):  # the kernels refuse an empty share, or crash
            ignored = torch.zeros_like(weight), torch.zeros_like(weight)  # running statistics, which decide the type
            mean, variance = (values.double() for values in torch.batch_norm_update_stats(x, *ignored, 0.0))
            sums = torch.cat([mean, variance + mean.square(), mean.new_ones(1)]) * (x.numel() / channels)
        dist.all_reduce(sums)
        mean, square, count = sums.split((channels, channels, 1))
        mean = mean / count
        variance = (square / count - mean.square()).clamp(min=0)
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance, count = ctx.saved_tensors
        of_x, of_weight, of_bias = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        if len(x):  # as if the statistics were constants
            constants = (weight, mean, variance, None, None, False, ctx.eps, [True, True, True])
            of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(gradient, x, *constants)
        sums = torch.cat([of_weight, of_bias])
        dist.all_reduce(sums)
        # What x does to the loss by way of the statistics is linear in x: one more pass of the same kernel.
        scale = -weight * torch.rsqrt(variance + ctx.eps) / count.to(weight.dtype)
        slope, shift = (sums.view(2, -1) * scale).unbind()
        of_x += F.batch_norm(x, mean, variance, slope, shift, eps=ctx.eps)
        return of_x, of_weight, of_bias, None


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose statistics are the global batch's, also where processes share it out.

    Normalising each process's share by itself would give ResNet-18 other statistics, and so other
    weights, than a single process. `nn.SyncBatchNorm` does the same on GPUs, but refuses to run on the
    CPU. Images (N, C, H, W); a share may be empty.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        normalised, mean, variance, count = NormaliseOverProcesses.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)).to(variance.dtype), self.momentum)
        return normalised
