"""How the loops are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Machine code, made at the first call and kept on disk, so that only a machine's first process waits for it.

    Sums keep their order (no ``fastmath``), and other threads may run meanwhile.
    """
    return numba.njit(cache=True, nogil=True, error_model="numpy")(function)  # type: ignore[return-value]  # a dispatcher, called as the function
