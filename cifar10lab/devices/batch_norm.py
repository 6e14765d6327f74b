"""BatchNorm over the shares of all processes."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


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
