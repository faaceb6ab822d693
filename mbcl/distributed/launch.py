"""A launcher that runs a function on several local processes, which form one gloo group."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.errors import MbclError

R = TypeVar("R")

GRACE_SECONDS = 2.0
"""Grace period: once one rank has failed, how long the others may take to report their own errors."""


def launch(function: Callable[..., R], num_workers: int, *arguments: Any) -> list[R]:
    """Run ``function(world, *arguments)`` on every rank, one thread each.

    Args:
        function: module-level, so that it pickles; its first argument is this rank's
            :class:`~mbcl.distributed.collectives.World`.
        num_workers: W, the number of processes.
        arguments: picklable.

    Returns:
        The results by rank.

    Raises:
        MbclError: if a rank raised one; otherwise the exception of a failed rank.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(num_workers, mp_context=context) as executor:
        rendezvous = Path(folder) / "rendezvous"
        # Each rank gets its own process: a rank blocks in the rendezvous, so its process cannot take a second one.
        ranks = [
            executor.submit(_run_rank, function, arguments, rank, num_workers, rendezvous)
            for rank in range(num_workers)
        ]
        finished, unfinished = wait(ranks, return_when=FIRST_EXCEPTION)
        finished |= wait(unfinished, timeout=GRACE_SECONDS).done
        failures = [error for rank in finished if (error := rank.exception()) is not None]
        if failures:
            # One failure makes the others fail for lack of a peer, so prefer an error that is written for users.
            raise next((error for error in failures if isinstance(error, MbclError)), failures[0])
        return [rank.result() for rank in ranks]


def _run_rank(function: Callable[..., R], arguments: tuple[Any, ...], rank: int, size: int, rendezvous: Path) -> R:
    """Join the group, run the function on one thread, and leave the group."""
    import torch

    torch.set_num_threads(1)
    world: World = collectives.init_from_file(rendezvous, rank, size)
    try:
        return function(world, *arguments)
    finally:
        collectives.finish()
