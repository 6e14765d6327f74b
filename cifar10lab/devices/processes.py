"""How processes that train together meet, what they exchange, and BatchNorm; one alone gets back what it gives."""

import contextlib
import os
import platform
import time
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from cifar10lab.terminal.errors import UserError


def join_processes(device: str) -> str:
    """Make the process group, unless the caller has; returns this process's device, as "cuda:1". UserError without."""
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device} can't be shared by several processes: use --device cpu or cuda")
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    if device == "cuda":
        number = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
        device = f"cuda:{number}"
        if number >= torch.cuda.device_count():
            raise UserError(f"there is no {device} on {platform.node()}: each process needs a GPU of its own")
        torch.cuda.set_device(device)
    if dist.is_initialized():
        try:
            all_reduce(torch.zeros(1))
        except RuntimeError as error:  # NCCL alone sums no CPU tensors
            raise UserError(f"the process group must sum CPU tensors, too: make it with {backend!r}") from error
        return device
    store, rank, world_size = next(dist.rendezvous("env://"))
    wait = timedelta(hours=2)  # the others wait while rank 0 may be downloading
    # Where a thread of Gloo interrupts another that holds the connection's lock, both lose up to a scheduler's tick:
    # 1.6 ms instead of 0.16 for a sum of 65 numbers. Batch threads do not interrupt each other on waking up.
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or a container forbids it: slower, no more
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    store = fresh_store(store, rank, world_size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=wait)
    return device


def fresh_store(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """A part of torchrun's store without the keys of processes that it has restarted, which would be waited for."""
    name = uuid.uuid4().hex  # rank 0's is taken: torchrun's count of restarts differs between machines
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


class NormaliseOverProcesses(torch.autograd.Function):
    """Batch normalisation of a share of the batch by the whole batch's statistics, and its gradient.

    Both directions exchange one vector of sums, forward in float64, in which the variance is safely the mean of the
    squares less the mean's square. PyTorch's own kernels do all else, in one pass, in the activations' type and layout.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
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
    """As nn.SyncBatchNorm, which refuses to run on the CPU: by the whole batch's statistics. A share may be empty."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        normalised, mean, variance, count = NormaliseOverProcesses.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)).to(variance.dtype), self.momentum)
        return normalised
