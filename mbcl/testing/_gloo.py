"""Functions run on real gloo processes, which stay for later calls: a start imports torch, which takes seconds."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

from mbcl.functional import check_count

R = TypeVar("R")

TIMEOUT_SECONDS = 900.0
"""How long a call waits for its ranks by default."""
GRACE_SECONDS = 2.0
"""Grace period: once one rank has failed, how long the others may take to report their own errors."""


def run_on_gloo(
    function: Callable[..., R], num_workers: int, *arguments: object, timeout: float = TIMEOUT_SECONDS
) -> list[R]:
    """Run a function on ``num_workers`` ranks: real processes with one thread each, in one gloo group.

    The processes stay for the next call with the same number of ranks, until this process exits or a rank fails. They
    import modules from where this process does. A script that calls this function needs
    ``if __name__ == "__main__":`` around its calls.

    Args:
        function: module-level; called as ``function(world, *arguments)`` on every rank, with that rank's
            :class:`~mbcl.distributed.collectives.World`.
        num_workers: W.
        arguments: picklable, as are the results.
        timeout: seconds for all ranks together.

    Returns:
        The results by rank.

    Raises:
        AssertionError: with the ranks that did not answer in time, and the traceback of each rank that failed.
        ConfigError: if ``num_workers`` is not a whole number of at least 1.
    """
    check_count("num_workers", num_workers)
    if num_workers not in _GROUPS:
        _GROUPS[num_workers] = _Group(num_workers, timeout)
    return _GROUPS[num_workers].run(function, arguments, timeout)


def _serve(rank: int, size: int, rendezvous: Path, timeout: float, pipe: Connection) -> None:
    """Join the group and answer calls until the pipe closes: the main function of a rank."""
    import torch

    from mbcl.distributed import collectives

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent, which ends its ranks
    torch.set_num_threads(1)
    # Above the timeout of the call, so that the call ends first and names the missing ranks.
    collectives.init_from_file(rendezvous, rank, size, timeout=2 * max(timeout, TIMEOUT_SECONDS))
    pipe.send(("ready", None))
    while True:
        try:
            path = pipe.recv()
            sys.path.extend(entry for entry in path if entry not in sys.path)
            content = pipe.recv_bytes()
        except EOFError:
            return
        try:
            function, arguments = ForkingPickler.loads(content)
            pipe.send(("done", function(collectives.current(), *arguments)))
        except BaseException:
            pipe.send(("failed", traceback.format_exc()))


class _Group:
    """A process group of ``size`` gloo processes, one thread each."""

    def __init__(self, size: int, timeout: float) -> None:
        self.size = size
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            local, remote = context.Pipe()
            arguments = (rank, size, Path(self._folder.name) / "rendezvous", timeout, remote)
            process = context.Process(target=_serve, args=arguments, daemon=True, name=f"gloo-{rank}-of-{size}")
            process.start()
            remote.close()
            self._pipes.append(local)
            self._processes.append(process)
        self._results(max(timeout, TIMEOUT_SECONDS))

    def run(self, function: Callable[..., Any], arguments: tuple[object, ...], timeout: float) -> list[Any]:
        """Call ``function(world, *arguments)`` on every rank and return the results by rank."""
        # One pickle for each rank: tensors travel through shared memory, which only one receiver can open. All are made
        # before any is sent, so that an object that does not pickle leaves the ranks as they are.
        calls = [ForkingPickler.dumps((function, arguments)) for _ in self._pipes]
        for pipe, call in zip(self._pipes, calls, strict=True):
            pipe.send(sys.path)
            pipe.send_bytes(call)
        return self._results(timeout)

    def _results(self, timeout: float) -> list[Any]:
        deadline = time.monotonic() + timeout
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        waiting = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                try:
                    kind, value = pipe.recv()
                except (EOFError, ConnectionResetError):
                    kind, value = "failed", "the process died"
                if kind == "failed":
                    failures[rank] = value
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
                else:
                    results[rank] = value
        if not failures and not waiting:
            return [results[rank] for rank in range(self.size)]
        # Ranks may be stuck in a collective that the failed one never joins, so the group cannot be used again.
        self.close()
        silent = f"no answer within {timeout} s from ranks {sorted(waiting.values())}" if waiting else ""
        reports = "\n".join(f"--- rank {rank} of {self.size} ---\n{text}" for rank, text in sorted(failures.items()))
        raise AssertionError(f"{silent}\n{reports}".strip())

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
        if _GROUPS.get(self.size) is self:
            del _GROUPS[self.size]


_GROUPS: dict[int, _Group] = {}


@atexit.register
def _close_all() -> None:
    for group in list(_GROUPS.values()):
        group.close()
