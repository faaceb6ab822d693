"""How many threads the libraries may use while a pool is planned."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import ThreadpoolController


@functools.lru_cache(maxsize=1)
def _libraries(num_modules: int) -> ThreadpoolController:
    """The loaded libraries that have threads.

    To look for them costs as much as half a plan of 1,280 samples, and only the import of a module loads another.
    """
    return ThreadpoolController()


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, BLAS and OpenMP inside; what was set before is restored.

    The order of a sum depends on the number of threads, and so do the last bits of a pool's affinity. With one thread
    a pool has the same plan wherever it is planned. The setting holds for the whole process while it lasts, so that
    several threads plan one after the other: planning in parallel takes processes.
    """
    with _ONE_AT_A_TIME:
        num_threads = torch.get_num_threads()
        with _libraries(len(sys.modules)).limit(limits=1):
            torch.set_num_threads(1)
            try:
                yield
            finally:
                torch.set_num_threads(num_threads)
