"""Functions run on n real gloo processes, which are started once a session: a start imports torch, which takes seconds.

    gloo.run(function, 2, *arguments)   # [function(world, *arguments) of rank 0, of rank 1]

The function is a module-level one, called with this rank's ``mbcl.distributed.collectives.World`` first; arguments and
results pickle.
"""

from __future__ import annotations

import atexit
import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from patience import PATIENCE, wait_for

GRACE = 2.0  # seconds that the other ranks get to report once one has failed


def _serve(rank: int, size: int, rendezvous: str, pipe: Connection) -> None:
    """A rank's life: join, then answer calls until the pipe closes."""
    import torch
    import torch.distributed as td

    from mbcl.distributed import collectives

    torch.set_num_threads(1)
    limit = timedelta(seconds=2 * PATIENCE)  # who waits for the ranks gives up before, and says which are missing
    td.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size, timeout=limit)
    pipe.send(("ready", None))
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("done", function(collectives.current(), *arguments)))
        except BaseException:
            pipe.send(("failed", traceback.format_exc()))


@contextmanager
def short_rounds() -> Iterator[Callable[[int], None]]:
    """On a rank: rounds of ``run_while_ranks_wait`` are short, and what is yielded waits until so many have passed.

    Work that waits so takes longer than any collective: it never ends where ranks do not meet meanwhile.
    """
    from mbcl.distributed import collectives

    met = 0
    seconds, all_reduce_sum = collectives.ROUND_SECONDS, collectives.all_reduce_sum

    def counted(*arguments: Any) -> Any:
        nonlocal met
        total = all_reduce_sum(*arguments)
        met += 1
        return total

    def rounds(number: int) -> None:
        end = met + number
        wait_for(lambda: met >= end, every=0.01)

    collectives.ROUND_SECONDS, collectives.all_reduce_sum = 0.05, counted
    try:
        yield rounds
    finally:
        collectives.ROUND_SECONDS, collectives.all_reduce_sum = seconds, all_reduce_sum


class Pool:
    """A process group of ``size`` gloo processes, one thread each."""

    def __init__(self, size: int) -> None:
        self.size = size
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            arguments = (rank, size, str(Path(self._folder.name) / "rendezvous"), theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True, name=f"gloo-{rank}-of-{size}")
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._answers(PATIENCE)

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float) -> list[Any]:
        """``function(world, *arguments)`` on every rank; the results by rank."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        return self._answers(timeout)

    def _answers(self, timeout: float) -> list[Any]:
        deadline = time.monotonic() + timeout
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        waiting = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                rank = waiting.pop(pipe)
                try:
                    kind, value = pipe.recv()
                except (EOFError, ConnectionResetError):
                    kind, value = "failed", "the process died"
                if kind == "failed":
                    failures[rank] = value
                    deadline = min(deadline, time.monotonic() + GRACE)
                else:
                    results[rank] = value
        if not failures and not waiting:
            return [results[rank] for rank in range(self.size)]
        # Ranks may be stuck in a collective that the failed one never joins: this group is of no more use.
        self.close()
        silent = f"no answer within {timeout} s from ranks {sorted(waiting.values())}" if waiting else ""
        told = "\n".join(f"--- rank {rank} of {self.size} ---\n{text}" for rank, text in sorted(failures.items()))
        raise AssertionError(f"{told}\n{silent}".strip())

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=0.2)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()
        if _POOLS.get(self.size) is self:
            del _POOLS[self.size]


_POOLS: dict[int, Pool] = {}


def run(function: Callable[..., Any], num_processes: int, *arguments: Any, timeout: float = PATIENCE) -> list[Any]:
    """Run a module-level function on ``num_processes`` ranks.

    Args:
        function: called as ``function(world, *arguments)`` on every rank.
        num_processes: W; the processes stay for the next call with the same number.
        arguments: picklable.
        timeout: seconds for all ranks together.

    Returns:
        The results by rank.

    Raises:
        AssertionError: with the traceback of each rank that failed, or the ranks that did not answer.
    """
    if num_processes not in _POOLS:
        _POOLS[num_processes] = Pool(num_processes)
    return _POOLS[num_processes].run(function, *arguments, timeout=timeout)


@atexit.register
def _close_all() -> None:
    for pool in list(_POOLS.values()):
        pool.close()
