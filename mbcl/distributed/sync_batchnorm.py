"""Batch norm over a batch split into chunks or over ranks: mergeable moments, normalisation, synchronised layers.

Letters: B samples, C channels, R parts (chunks, ranks) of a batch.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from mbcl.distributed import collectives
from mbcl.distributed.collectives import World

M = TypeVar("M", bound=nn.Module)


def moments(x: Tensor) -> Tensor:
    """Compute the moments of one part of a batch, in the form that :func:`merge_moments` takes.

    Args:
        x: (B, C, ...) float; B may be 0.

    Returns:
        (2C + 1,) float64: each channel's mean, its sum of squared deviations from that mean, and the number of values
        per channel.
    """
    channels = x.shape[1]
    count = x.numel() // channels
    if not count:
        return x.new_zeros(2 * channels + 1, dtype=torch.float64)
    var, mean = torch.var_mean(x.detach().double(), _all_but_channels(x), correction=0)
    return torch.cat((mean, var * count, mean.new_tensor([count])))


def merge_moments(parts_RM: Tensor) -> tuple[Tensor, Tensor, int]:
    """Merge the moments of all parts of a batch into mean and biased variance of each channel.

    The parallel update never subtracts two large sums, so it does not cancel (Chan, Golub, LeVeque 1983, "Algorithms
    for computing the sample variance", 2.1).

    Args:
        parts_RM: (R, 2C + 1) float64, :func:`moments` of the parts.

    Returns:
        (C,) float64 means, (C,) float64 variances, and the number of values per channel.

    Raises:
        ValueError: if a channel has fewer than two values, so that its variance is undefined.
    """
    channels = parts_RM.shape[1] // 2
    means, deviations, counts = parts_RM.split((channels, channels, 1), dim=1)
    total = counts.sum()
    count = int(total)
    if count < 2:
        raise ValueError(f"batch norm needs more than one value a channel in the global batch, found {count}")
    mean = (means * counts).sum(0) / total
    var = (deviations + counts * (means - mean).square()).sum(0) / total
    return mean, var, count


def update_running(layer: _BatchNorm, mean: Tensor, var: Tensor, count: int) -> None:
    """Update the running statistics as torch does, if they are tracked.

    The average is exponential, or cumulative if ``momentum`` is None. ``mean`` and ``var``, which is biased, are (C,),
    of a batch with ``count`` values per channel.
    """
    if not (layer.training and layer.track_running_stats) or layer.running_mean is None or layer.running_var is None:
        return
    momentum = layer.momentum
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(layer.num_batches_tracked)
    assert momentum is not None
    unbiased_var = var * (count / (count - 1))
    layer.running_mean.mul_(1 - momentum).add_(momentum * mean.to(layer.running_mean.dtype))
    layer.running_var.mul_(1 - momentum).add_(momentum * unbiased_var.to(layer.running_var.dtype))


def precise(x: Tensor) -> torch.dtype:
    """Return the dtype for the statistics of ``x``: at least float32, even if autocast made ``x`` half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def _all_but_channels(x: Tensor) -> list[int]:
    """Return the dimensions to reduce over."""
    return [d for d in range(x.ndim) if d != 1]


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) · weight + bias, with the gradient through mean and variance of the global batch.

    x is (B, C, ...), this rank's part of a batch of ``count`` values per channel; mean and biased variance are (C,).
    The backward pass sums the gradients of the statistics over all ranks.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, var: Tensor, count: int, layer: _BatchNorm, *affine: Tensor | None
    ) -> Tensor:
        weight, bias = affine
        ctx.save_for_backward(x, mean, torch.rsqrt(var.double() + layer.eps).to(var.dtype), weight)
        ctx.count = count
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=layer.eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, weight = ctx.saved_tensors
        dims = _all_but_channels(x)
        view = (1, x.shape[1], *(1 for _ in dims[1:]))
        normalised = (x - mean.view(view)) * scale.view(view)
        # The gradients of weight and bias stay local: DDP averages them.
        bias_gradient = gradient.sum(dims, dtype=torch.float64)
        weight_gradient = (gradient * normalised).sum(dims, dtype=torch.float64)
        local_sums = torch.cat((bias_gradient, weight_gradient))
        sums = collectives.all_reduce_sum(local_sums, collectives.current()) / ctx.count
        offset, slope = sums.to(mean.dtype).view(2, *view)
        factor = scale if weight is None else scale * weight
        x_gradient = ((gradient - offset - normalised * slope) * factor.view(view)).to(x.dtype)
        *_, needs_weight, needs_bias = ctx.needs_input_grad
        affine_gradients = (
            weight_gradient.to(mean.dtype) if needs_weight else None,
            bias_gradient.to(mean.dtype) if needs_bias else None,
        )
        return x_gradient, None, None, None, None, *affine_gradients


# -- batch norm over all ranks, on CPUs ------------------------------------------------------------------------------


class _SyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all ranks, for CPU tensors; see :func:`convert_sync_batchnorm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...); B may differ between ranks."""
        world = collectives.current()
        if not self.training or world.size == 1:
            return super().forward(x)
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        mean, var, count = merge_moments(collectives.all_gather_stack(moments(x), world))
        update_running(self, mean, var, count)
        mean, var = mean.to(precise(x)), var.to(precise(x))
        result: Tensor = _Normalise.apply(x, mean, var, count, self, self.weight, self.bias)
        return result


class SyncBatchNorm1d(_SyncBatchNorm, nn.BatchNorm1d):
    """BatchNorm1d over the batches of all ranks: (B, C) or (B, C, L)."""


class SyncBatchNorm2d(_SyncBatchNorm, nn.BatchNorm2d):
    """BatchNorm2d over the batches of all ranks: (B, C, H, W)."""


def convert_sync_batchnorm(model: M, world: World) -> M:
    """Make every batch norm of a model use the statistics of the global batch.

    torch's own layer rejects CPU tensors; the layers of this module replace it there. Parameters and buffers keep
    their identity and names, so state dicts are interchangeable between one and several workers. The model is modified
    in place, unless it is itself a batch norm. In a world of one and in evaluation mode it computes what it did before.
    """
    if world.device.type == "cuda":
        converted: M = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for name, child in list(model.named_children()):
        setattr(model, name, convert_sync_batchnorm(child, world))
    layer: nn.Module = model
    for ordinary, synchronised in ((nn.BatchNorm1d, SyncBatchNorm1d), (nn.BatchNorm2d, SyncBatchNorm2d)):
        if type(layer) is ordinary:
            # Share the attribute dictionary: parameters, buffers, settings and hooks stay, only the class changes.
            replacement = synchronised.__new__(synchronised)
            replacement.__dict__ = layer.__dict__
            return cast(M, replacement)
    return model
