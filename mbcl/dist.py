"""Workers of one training run: the only place with collectives. Without a process group all of it is the identity.

Letters: B samples of this rank, W workers, C channels.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.distributed as td
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mbcl import errors
from mbcl.errors import MbclError

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class World:
    """This process's place among the workers.

    Args:
        rank: 0 .. size - 1.
        size: W, how many workers train together.
        device: where this worker computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def current(device: torch.device | str = "cpu") -> World:
    """The world of the process group that runs already (Ray Train's, a test's), or a world of one."""
    if not _distributed():
        return World(device=torch.device(device))
    return World(td.get_rank(), td.get_world_size(), torch.device(device))


def init_from_env() -> World:
    """Join the process group that ``torchrun`` describes in the environment, or be a world of one.

    A worker takes the GPU of its local rank if there is one. CPU tensors always go through gloo.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ and not _distributed():
        td.init_process_group(backend="cpu:gloo,cuda:nccl" if cuda else "gloo")
    return current(device)


def finish() -> None:
    """Leave the process group, if there is one."""
    if _distributed():
        td.destroy_process_group()


def _distributed() -> bool:
    return td.is_available() and td.is_initialized()


def _movable(x: Tensor) -> Tensor:
    """``x`` contiguous and on a device that the process group serves: nccl alone serves no CPU tensors."""
    only_cuda = x.device.type == "cpu" and td.get_backend() == "nccl"
    return (x.cuda() if only_cuda else x).contiguous()


def barrier(world: World) -> None:
    """Wait for all ranks."""
    if world.size > 1:
        td.barrier()


def all_reduce_sum(x: Tensor, world: World) -> Tensor:
    """The sum of ``x`` over the ranks, a new tensor without gradient."""
    if world.size == 1:
        return x.detach().clone()
    total = _movable(x.detach().clone())
    td.all_reduce(total)
    return total.to(x.device)


def broadcast_object(value: Any, world: World) -> Any:
    """Rank 0's value on every rank: anything small that pickles. The other ranks' argument is ignored."""
    if world.size == 1:
        return value
    content = pickle.dumps(value) if world.rank == 0 else b""
    length = int(all_reduce_sum(torch.tensor([len(content)]), world))
    buffer = _bytes(content) if world.rank == 0 else torch.zeros(length, dtype=torch.uint8)
    buffer = _movable(buffer)
    td.broadcast(buffer, src=0)
    return pickle.loads(buffer.cpu().numpy().tobytes())


def gather_objects(value: Any, world: World) -> list[Any]:
    """Every rank's value in rank order, on every rank: anything small that pickles."""
    if world.size == 1:
        return [value]
    content = pickle.dumps(value)
    lengths = gather(torch.tensor([len(content)]), world).tolist()
    parts = gather(_bytes(content), world).split(lengths)
    return [pickle.loads(part.numpy().tobytes()) for part in parts]


def agree(error: MbclError | None, world: World) -> None:
    """Go on only if no rank failed, so that none waits in a collective for one that has stopped.

    Args:
        error: this rank's failure, or None.
        world: the ranks, all of which call this.

    Raises:
        MbclError: on every rank, if any failed: its own error where there is one, else the lowest failing rank's.
    """
    told = None if error is None else (type(error) if type(error).__module__ == errors.__name__ else None, str(error))
    everyone = gather_objects(told, world)
    if error is not None:
        raise error
    for rank, failure in enumerate(everyone):
        if failure is not None:
            raise (failure[0] or MbclError)(f"rank {rank}: {failure[1]}")


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def gather(x: Tensor, world: World) -> Tensor:
    """All ranks' rows in rank order, without gradient; the ranks may hold different numbers of rows.

    Args:
        x: (B, ...), the same but for B on every rank; any dtype and device.
        world: the ranks.

    Returns:
        (sum of B, ...) on the device of ``x``.
    """
    if world.size == 1:
        return x.detach()
    lengths = torch.zeros(world.size, dtype=torch.int64)
    lengths[world.rank] = len(x)
    counts = all_reduce_sum(lengths, world).tolist()
    # Collectives move equal shapes, and not every backend moves every dtype: rows travel as padded bytes.
    sent = torch.zeros((max(counts), *x.shape[1:]), dtype=x.dtype, device=x.device)
    sent[: len(x)] = x.detach()
    sent = _movable(sent).flatten().view(torch.uint8)
    received = [torch.empty_like(sent) for _ in counts]
    td.all_gather(received, sent)
    shape = (max(counts), *x.shape[1:])
    rows = [part.view(x.dtype).view(shape)[:count] for part, count in zip(received, counts, strict=True)]
    return torch.cat(rows).to(x.device)


def gather_with_grad(x: Tensor, world: World) -> Tensor:
    """All ranks' rows in rank order, with gradient.

    The backward pass sums, over the ranks, the gradients of this rank's rows: if every rank's loss looks at all rows,
    each gets the gradient of the sum of all ranks' losses.

    Args:
        x: (B, ...) float, the same shape on every rank.
        world: the ranks.

    Returns:
        (W·B, ...); ``x`` itself in a world of one.
    """
    if world.size == 1:
        return x
    gathered: Tensor = _Gather.apply(x, world)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        ctx.rows, ctx.world = len(x), world
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world.size)]
        td.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        start = ctx.world.rank * ctx.rows
        return all_reduce_sum(gradient, ctx.world)[start : start + ctx.rows], None


class SyncBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d over the batches of all ranks, for CPU tensors; see :func:`convert_sync_batchnorm`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) or (B, C, L); the ranks may hold different B."""
        return _sync_forward(self, x) if self.training and current().size > 1 else super().forward(x)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the batches of all ranks, for CPU tensors; see :func:`convert_sync_batchnorm`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W); the ranks may hold different B."""
        return _sync_forward(self, x) if self.training and current().size > 1 else super().forward(x)


def convert_sync_batchnorm(model: M, world: World) -> M:
    """Make every batch norm of a model use the statistics of the global batch.

    torch's own layer refuses CPU tensors, ours replaces it there. Parameters and buffers are the same objects under
    the same names, so state dictionaries of one and of several workers interchange.

    Args:
        model: changed in place, but for a model that is itself a batch norm.
        world: its device decides which layer is used.

    Returns:
        The converted model. In a world of one and in evaluation mode it computes what it did before.
    """
    if world.device.type == "cuda":
        converted: M = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for name, child in list(model.named_children()):
        setattr(model, name, convert_sync_batchnorm(child, world))
    plain: nn.Module = model
    for ordinary, synchronised in ((nn.BatchNorm1d, SyncBatchNorm1d), (nn.BatchNorm2d, SyncBatchNorm2d)):
        if type(plain) is ordinary:
            # The same object but for its forward: parameters, buffers, settings and hooks stay what they are.
            twin = synchronised.__new__(synchronised)
            twin.__dict__ = plain.__dict__
            return cast(M, twin)
    return model


def _sync_forward(layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    layer._check_input_dim(x)  # type: ignore[no-untyped-call]
    mean, var, count = _global_moments(x.detach())
    if count < 2:
        raise ValueError(f"batch norm needs more than one value a channel in the global batch, found {count}")
    if layer.track_running_stats:
        _update_running(layer, mean, var * (count / (count - 1)))
    precise = torch.promote_types(x.dtype, torch.float32)  # under autocast x is half, the statistics never
    result: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
        x, mean.to(precise), var.to(precise), count, layer.weight, layer.bias, layer.eps
    )
    return result


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of each channel over all ranks, (C,) float64, and how many values a channel has.

    Each rank sends its count, mean and sum of squared deviations from its own mean, once. They are merged without
    ever subtracting two large sums (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", 2.1).
    """
    channels = x.shape[1]
    count = x.numel() // channels
    sent = x.new_zeros(2 * channels + 1, dtype=torch.float64)
    if count:
        dims = [d for d in range(x.ndim) if d != 1]
        var, mean = torch.var_mean(x.double(), dims, correction=0)
        sent = torch.cat((mean, var * count, mean.new_tensor([count])))
    received = [torch.empty_like(sent) for _ in range(current().size)]
    td.all_gather(received, sent)
    means, deviations, counts = torch.stack(received).split((channels, channels, 1), dim=1)
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    var = (deviations + counts * (means - mean).square()).sum(0) / total
    return mean, var, int(total)


def _update_running(layer: nn.BatchNorm1d | nn.BatchNorm2d, mean: Tensor, unbiased_var: Tensor) -> None:
    """Running statistics as torch's: exponential, or cumulative where ``momentum`` is None."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    share = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.mul_(1 - share).add_(share * mean.to(layer.running_mean.dtype))
    layer.running_var.mul_(1 - share).add_(share * unbiased_var.to(layer.running_var.dtype))


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) · weight + bias, with the gradient through the global mean and variance."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        count: int,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, torch.rsqrt(var.double() + eps).to(var.dtype), weight)
        ctx.count = count
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, mean, scale, weight = ctx.saved_tensors
        channels = x.shape[1]
        dims = [d for d in range(x.ndim) if d != 1]
        view = (1, channels, *(1 for _ in dims[1:]))
        normal = (x - mean.view(view)) * scale.view(view)
        # The weight's and bias's gradients stay local: DDP averages those.
        bias_gradient = gradient.sum(dims, dtype=torch.float64)
        weight_gradient = (gradient * normal).sum(dims, dtype=torch.float64)
        sums = all_reduce_sum(torch.cat((bias_gradient, weight_gradient)), current()) / ctx.count
        offset, slope = sums.to(mean.dtype).view(2, *view)
        factor = scale if weight is None else scale * weight
        x_gradient = ((gradient - offset - normal * slope) * factor.view(view)).to(x.dtype)
        if weight is None:
            return x_gradient, None, None, None, None, None, None
        return x_gradient, None, None, None, weight_gradient.to(weight.dtype), bias_gradient.to(weight.dtype), None
