"""How the loops are compiled."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TypeVar, cast

import numba

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Machine code, made at the first call and kept on disk, so that only a machine's first process waits for it.

    Sums keep their order (no ``fastmath``), and other threads may run meanwhile. Where neither the installed package
    nor the user's cache folder can be written to, every process compiles for itself, and says so once.
    """
    try:
        dispatcher = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # "no locator available"
        _warn_once()
        dispatcher = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(Function, dispatcher)  # called as the function


@functools.cache
def _warn_once() -> None:
    logger.warning("no folder for compiled loops can be written to: every process compiles them for some seconds")
