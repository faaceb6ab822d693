"""Start a function on several processes that form one gloo group, on this machine."""

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
"""How long the other ranks may take to tell their own reason once one has failed."""


def launch(function: Callable[..., R], num_workers: int, *arguments: Any) -> list[R]:
    """Run ``function(world, *arguments)`` on every rank, one thread each.

    Args:
        function: of a module, so that it pickles; called with this rank's :class:`~mbcl.distributed.collectives.World`
            first.
        num_workers: W, how many processes.
        arguments: picklable.

    Returns:
        The results by rank.

    Raises:
        MbclError: if a rank raised one; otherwise what a failing rank raised first.
    """
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(num_workers, mp_context=context) as executor,
    ):
        rendezvous = Path(folder) / "rendezvous"
        # A rank waits in its group for the others, so each is taken by a process of its own.
        ranks = [
            executor.submit(_rank, function, arguments, rank, num_workers, rendezvous) for rank in range(num_workers)
        ]
        done, others = wait(ranks, return_when=FIRST_EXCEPTION)
        done |= wait(others, timeout=GRACE_SECONDS).done
        failures = [error for rank in done if (error := rank.exception()) is not None]
        if failures:
            # The others then fail for want of a peer; what users are meant to read comes first.
            raise next((error for error in failures if isinstance(error, MbclError)), failures[0])
        return [rank.result() for rank in ranks]


def _rank(function: Callable[..., R], arguments: tuple[Any, ...], rank: int, size: int, rendezvous: Path) -> R:
    import torch

    torch.set_num_threads(1)
    world: World = collectives.init_from_file(rendezvous, rank, size)
    try:
        return function(world, *arguments)
    finally:
        collectives.finish()
