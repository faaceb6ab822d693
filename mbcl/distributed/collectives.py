"""Collectives: the only module that communicates between workers. In a world of one they are the identity.

Letters: B samples of this rank, W workers, C channels.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as td  # noqa: TID251
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mbcl import errors
from mbcl.errors import MbclError

R = TypeVar("R")

DISTRIBUTED_ERRORS = (td.DistError,)
"""What torch.distributed raises for a lost peer, where it does not raise a plain RuntimeError."""

ROUND_SECONDS = 60.0
"""How long a rank works between two heartbeat collectives: well below the timeout of a collective."""


@dataclass(frozen=True)
class World:
    """This process's rank, 0 to W - 1, the number W of workers that train together, and this worker's device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def current(device: torch.device | str = "cpu") -> World:
    """Return the world of the existing process group (Ray Train's, a test's), or a world of one."""
    if not _distributed():
        return World(device=torch.device(device))
    return World(td.get_rank(), td.get_world_size(), torch.device(device))


def init_from_env() -> World:
    """Join the process group that ``torchrun`` describes in the environment, or be a world of one.

    A worker uses the GPU of its local rank if the machine has GPUs. CPU tensors always use gloo.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ and not _distributed():
        td.init_process_group(backend="cpu:gloo,cuda:nccl" if cuda else "gloo")
    return current(device)


def init_from_file(rendezvous: Path, rank: int, size: int, *, timeout: float) -> None:
    """Join a gloo group of ``size`` CPU processes at a file, which must not exist before the first one joins.

    ``timeout``: seconds, of the rendezvous and of every collective.
    """
    limit = timedelta(seconds=timeout)
    td.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size, timeout=limit)


def finish() -> None:
    """Destroy the process group, if there is one."""
    if _distributed():
        td.destroy_process_group()


def _distributed() -> bool:
    """Tell whether a process group is initialised."""
    return td.is_available() and td.is_initialized()


def _movable(x: Tensor) -> Tensor:
    """Return ``x`` contiguous and on a device that the backend supports: nccl alone supports no CPU tensors."""
    only_cuda = x.device.type == "cpu" and td.get_backend() == "nccl"
    return (x.cuda() if only_cuda else x).contiguous()


def barrier(world: World) -> None:
    """Block until all ranks have arrived."""
    if world.size > 1:
        td.barrier()


def all_reduce_sum(x: Tensor, world: World) -> Tensor:
    """Sum ``x`` over the ranks into a new tensor without gradient."""
    if world.size == 1:
        return x.detach().clone()
    total = _movable(x.detach().clone())
    td.all_reduce(total)
    return total.to(x.device)


def broadcast_object(value: Any, world: World) -> Any:
    """Broadcast rank 0's value, any small picklable object, to every rank; the other ranks' argument is ignored."""
    if world.size == 1:
        return value
    values = [value if world.rank == 0 else None]
    td.broadcast_object_list(values, src=0)
    return values[0]


def gather_objects(value: Any, world: World) -> list[Any]:
    """All-gather small picklable objects; returns every rank's value in rank order."""
    if world.size == 1:
        return [value]
    values = [None] * world.size
    td.all_gather_object(values, value)
    return values


def raise_on_any_rank(error: MbclError | OSError | None, world: World) -> None:
    """Raise on every rank if any rank failed, so that none hangs in a collective that a failed rank never joins.

    Raises:
        MbclError, OSError: on every rank, if any failed: the rank's own error if it has one, else the lowest failing
            rank's.
    """
    kind = type(error) if type(error).__module__ == errors.__name__ else None
    kind = OSError if isinstance(error, OSError) else kind
    report = None if error is None else (kind, str(error))
    reports = gather_objects(report, world)
    if error is not None:
        raise error
    for rank, failure in enumerate(reports):
        if failure is not None:
            raise (failure[0] or MbclError)(f"rank {rank}: {failure[1]}")


def run_and_sync_errors(function: Callable[..., R], world: World, *arguments: Any) -> R:
    """Call a function that may fail on single ranks; then every rank raises, see :func:`raise_on_any_rank`.

    Raises:
        MbclError, OSError: on every rank alike. Any other exception is a bug, or the loss of a rank.
    """
    error: MbclError | OSError | None = None
    try:
        result = function(*arguments)
    except (MbclError, OSError) as caught:
        error = caught
    raise_on_any_rank(error, world)
    return result


def run_while_ranks_wait(function: Callable[..., R], world: World, *arguments: Any) -> R:
    """Call a function that may take longer than the timeout of a collective, with heartbeats between the ranks.

    The function runs in a thread and calls no collectives. All ranks call this, each with its own function, and
    all-reduce a heartbeat every ``ROUND_SECONDS`` until all functions have returned. So no collective waits for longer
    than a round.

    Raises:
        Exception: on this rank alone, the function's exception, once all ranks' functions have ended.
    """
    if world.size == 1:
        return function(*arguments)
    outcome: Future[R] = Future()

    def work() -> None:
        try:
            if world.device.type == "cuda":
                torch.cuda.set_device(world.device)  # the current device is per thread
            outcome.set_result(function(*arguments))
        except BaseException as error:
            outcome.set_exception(error)

    # A daemon thread: an interrupted training does not wait for a result that it no longer needs.
    threading.Thread(target=work, daemon=True).start()
    working = 1
    while working:
        wait([outcome], timeout=ROUND_SECONDS)
        working = int(all_reduce_sum(torch.tensor(int(not outcome.done())), world))
    return outcome.result()


def all_gather_ragged(x: Tensor, world: World) -> Tensor:
    """Gather ragged tensors from all ranks, without gradient: all rows in rank order.

    From (B, ...), where B may differ between ranks but not the rest of the shape, to (sum of B, ...), in any dtype and
    on any device.
    """
    if world.size == 1:
        return x.detach()
    lengths = torch.zeros(world.size, dtype=torch.int64)
    lengths[world.rank] = len(x)
    counts = all_reduce_sum(lengths, world).tolist()
    # Collectives need equal shapes, and not every backend supports every dtype: rows are sent as padded bytes.
    shape = (max(counts), *x.shape[1:])
    sent = torch.zeros(shape, dtype=x.dtype, device=x.device)
    sent[: len(x)] = x.detach()
    received = all_gather_stack(sent.flatten().view(torch.uint8), world).flatten().view(x.dtype)
    return torch.cat([part[:count] for part, count in zip(received.view(world.size, *shape), counts, strict=True)])


def all_gather_stack(x: Tensor, world: World) -> Tensor:
    """Gather tensors of equal shape from all ranks and stack them in rank order, without gradient.

    Shape and dtype, one that the backend supports, are the same on every rank. The result is (W, ...), on the device of
    ``x``.
    """
    if world.size == 1:
        return x.detach()[None]
    sent = _movable(x.detach())
    received = [torch.empty_like(sent) for _ in range(world.size)]
    td.all_gather(received, sent)
    return torch.stack(received).to(x.device)


def sum_gradients(parameters: Iterable[Tensor], world: World) -> None:
    """Sum ``.grad`` over the ranks, in place, with one bucket and collective per dtype and device.

    A parameter with a gradient on some ranks only counts as zero on the others, and all ranks have the sum afterwards.
    A parameter without a gradient on any rank keeps None, so that an optimiser skips it on every rank or on none. All
    ranks pass the same parameters in the same order, with dense gradients.
    """
    if world.size == 1:
        return
    parameters = list(parameters)
    holders = all_reduce_sum(torch.tensor([p.grad is not None for p in parameters], dtype=torch.int64), world)
    buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter, holding in zip(parameters, holders.tolist(), strict=True):
        if holding:
            buckets.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for bucket in buckets.values():
        for parameter in bucket:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [cast(Tensor, parameter.grad) for parameter in bucket]
        buffer = _movable(torch.cat([gradient.flatten() for gradient in gradients]))
        td.all_reduce(buffer)
        for gradient, total in zip(gradients, buffer.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view(gradient.shape))


def average_buffers(model: nn.Module, world: World) -> None:
    """Average every floating-point buffer over the ranks, for batch norms that were not synchronised."""
    if world.size == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(all_reduce_sum(buffer, world) / world.size)


def gather_with_grad(x: Tensor, world: World) -> Tensor:
    """Gather all ranks' rows in rank order, with gradient.

    The backward pass sums the gradients of this rank's rows over the ranks: if every rank's loss depends on all rows,
    each row receives the gradient of the sum of all ranks' losses. From (B, ...) float, the same shape on every rank,
    to (W·B, ...).
    """
    if world.size == 1:
        return x
    gathered: Tensor = _Gather.apply(x, world)
    return gathered


class _Gather(torch.autograd.Function):
    """All-gather whose backward is an all-reduce of the gradient, cut to this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        ctx.rows, ctx.world = len(x), world
        return all_gather_stack(x, world).flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        start = ctx.world.rank * ctx.rows
        return all_reduce_sum(gradient, ctx.world)[start : start + ctx.rows], None
