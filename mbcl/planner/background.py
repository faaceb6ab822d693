"""A single background process for work that must not block training."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from mbcl.errors import SamplerWarning


class BackgroundProcess:
    """A single-threaded worker process, started lazily at the first submission and restarted if it died."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Submit a module-level function; arguments and result are pickled.

        The future raises BrokenProcessPool if the process dies before it returns the result.
        """
        if self._pool is not None:
            try:
                return self._pool.submit(function, *arguments)
            except BrokenProcessPool:
                self.close()
        # spawn: a forked child inherits locks that other threads held, and CUDA cannot be used after a fork.
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_init_worker)
        # The child inherits the signal mask, so an interrupt during its imports reaches training only.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(function, *arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def close(self, *, graceful: bool = False) -> None:
        """Terminate the process at once and discard its pending work.

        Args:
            graceful: wait until the process has done its work and cleaned up instead.
        """
        if self._pool is None:
            return
        if graceful:
            self._pool.shutdown()
            self._pool = None
            return
        processes = list(self._pool._processes.values())  # as terminate_workers does from Python 3.14 on
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
        for process in processes:
            process.terminate()
            process.join()


def _init_worker() -> None:
    """Initialise the worker: it ignores interrupts, runs on one thread, and exits when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", SamplerWarning)  # training has issued it already
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit as soon as the parent process has ended, even if it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)
