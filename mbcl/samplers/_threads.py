"""A limit of the libraries' threads while a pool is planned."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from threadpoolctl import ThreadpoolController


@functools.lru_cache(maxsize=1)
def _libraries(num_modules: int) -> ThreadpoolController:
    """Return the controller of the loaded libraries that have thread pools.

    Finding them costs as much as half a plan of 1,280 samples. Only the import of a module can load another one, so
    the number of modules is the key of the cache.
    """
    return ThreadpoolController()


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch, BLAS and OpenMP to one thread inside; restore their previous limits afterwards.

    The order of a sum depends on the number of threads, and so do the last bits of a pool's affinity. With one thread
    a pool has the same plan wherever it is planned. The limits are those of the whole process, so a lock lets only one
    thread plan at a time: planning in parallel takes processes.
    """
    with _ONE_AT_A_TIME:
        num_threads = torch.get_num_threads()
        with _libraries(len(sys.modules)).limit(limits=1):
            torch.set_num_threads(1)
            try:
                yield
            finally:
                torch.set_num_threads(num_threads)


@contextmanager
def planning_thread() -> Iterator[None]:
    """:func:`one_thread`, without the "invalid value" flag of NumPy.

    BLAS may raise it for a product of a few rows, since its vector instructions also compute on memory beyond them. No
    error is hidden: embeddings are checked to be finite, and so are the scores of a plan.
    """
    with one_thread(), np.errstate(invalid="ignore"):
        yield
