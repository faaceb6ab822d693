"""The decorator that compiles the loops."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TypeVar, cast

import numba

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile a function to machine code at its first call and cache it on disk for the machine's other processes.

    Sums keep their order (no ``fastmath``), and the GIL is released. If neither the folder of the installed package nor
    the user's cache folder is writable, every process compiles for itself and logs one warning.
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
