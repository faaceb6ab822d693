"""One process beside the training one, for work that must not hold it up."""

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


class BackgroundProcess:
    """A process that computes on one thread; started when it is first needed, and again if it was lost."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call a module's function there; arguments and answer travel as pickles.

        Its future raises BrokenProcessPool if the process ends before the answer is here.
        """
        if self._pool is not None:
            try:
                return self._pool.submit(function, *arguments)
            except BrokenProcessPool:
                self.close()
        # spawn: a fork would copy the locks of threads that it does not have, and CUDA does not survive one.
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_begin)
        # The process inherits the mask, so that an interrupt during its imports is training's alone, too.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(function, *arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def close(self) -> None:
        """End the process at once, whatever it is at: nobody waits for its answer any more."""
        if self._pool is None:
            return
        processes = list(self._pool._processes.values())  # what Python 3.14's terminate_workers does
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
        for process in processes:
            process.terminate()
            process.join()


def _begin() -> None:
    """How the process begins: it leaves interrupts to training, and ends when training is gone, however that went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="sampler ", category=UserWarning)  # training has said it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)
