"""Memory that one step frees and the next one needs again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, from glibc's malloc.h."""
_NEVER = -1
_LARGEST_KEPT = (2**30, 2**25)
"""Bytes; glibc before 2.35 allows no more than the second."""


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next allocations; only glibc on Linux can.

    By default glibc returns a step's activations to the system, which then clears and maps every page again in the
    next step. With this setting the process holds what it took at its peak, also between trainings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _NEVER)
        any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST_KEPT)
