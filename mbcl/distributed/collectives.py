"""Workers of one training run: the only place with collectives. Without a process group all of it is the identity.

Letters: B samples of this rank, W workers, C channels.
"""

from __future__ import annotations

import os
import pickle
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

RENDEZVOUS_SECONDS = 300
"""How long processes that meet at a file wait for each other."""
ROUND_SECONDS = 60.0
"""How long a rank works before it meets the others: well below what a collective may take."""


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


def init_from_file(rendezvous: Path, rank: int, size: int) -> World:
    """Join a gloo group of CPU processes that meet at a file, which must not exist before the first arrives."""
    td.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=RENDEZVOUS_SECONDS),
    )
    return current()


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
    lengths = all_gather_ragged(torch.tensor([len(content)]), world).tolist()
    parts = all_gather_ragged(_bytes(content), world).split(lengths)
    return [pickle.loads(part.numpy().tobytes()) for part in parts]


def raise_on_any_rank(error: MbclError | None, world: World) -> None:
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


def run_and_sync_errors(function: Callable[..., R], world: World, *arguments: Any) -> R:
    """Call a function that may fail on one rank alone; then every rank raises, as :func:`raise_on_any_rank` says.

    Raises:
        MbclError: on every rank alike.
    """
    error: MbclError | None = None
    try:
        result = function(*arguments)
    except MbclError as caught:
        error = caught
    raise_on_any_rank(error, world)
    return result


def run_while_ranks_wait(function: Callable[..., R], world: World, *arguments: Any) -> R:
    """Call a function that may take longer than a collective waits; it has no collectives of its own.

    It runs in a thread. All ranks, which call this with functions of their own, meet every round until all have ended,
    so that none waits in a collective for longer than a round.

    Raises:
        Exception: on this rank alone, what the function raises, when the others' have ended.
    """
    if world.size == 1:
        return function(*arguments)
    ended: Future[R] = Future()

    def work() -> None:
        try:
            if world.device.type == "cuda":
                torch.cuda.set_device(world.device)  # every thread has its own
            ended.set_result(function(*arguments))
        except BaseException as error:
            ended.set_exception(error)

    # A daemon: an interrupted training does not wait for what nobody takes.
    threading.Thread(target=work, daemon=True).start()
    working = 1
    while working:
        wait([ended], timeout=ROUND_SECONDS)
        working = int(all_reduce_sum(torch.tensor(int(not ended.done())), world))
    return ended.result()


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def all_gather_ragged(x: Tensor, world: World) -> Tensor:
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


def all_gather_stack(x: Tensor, world: World) -> Tensor:
    """All ranks' tensors one above the other in rank order, without gradient.

    Args:
        x: any shape and a dtype that the backend moves, the same on every rank.
        world: the ranks.

    Returns:
        (W, ...) on the device of ``x``.
    """
    if world.size == 1:
        return x.detach()[None]
    sent = _movable(x.detach())
    received = [torch.empty_like(sent) for _ in range(world.size)]
    td.all_gather(received, sent)
    return torch.stack(received).to(x.device)


def sum_gradients(parameters: Iterable[Tensor], world: World) -> None:
    """Sum ``.grad`` over the ranks, in place, with one collective a dtype and device.

    A parameter that has a gradient on some ranks only counts as zero on the others, and has the sum on all of them
    afterwards; one that has none anywhere stays without, so that an optimiser skips it on every rank or on none.

    Args:
        parameters: the same ones in the same order on every rank; their gradients are dense.
        world: the ranks; nothing happens in a world of one.
    """
    if world.size == 1:
        return
    parameters = list(parameters)
    holders = all_reduce_sum(torch.tensor([p.grad is not None for p in parameters], dtype=torch.int64), world)
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter, holding in zip(parameters, holders.tolist(), strict=True):
        if holding:
            alike.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for group in alike.values():
        for parameter in group:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [cast(Tensor, parameter.grad) for parameter in group]
        buffer = _movable(torch.cat([gradient.flatten() for gradient in gradients]))
        td.all_reduce(buffer)
        for gradient, total in zip(gradients, buffer.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view(gradient.shape))


def average_buffers(model: nn.Module, world: World) -> None:
    """Make every floating-point buffer the mean of the ranks' ones, for batch norms that were not synchronised."""
    if world.size == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(all_reduce_sum(buffer, world) / world.size)


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
