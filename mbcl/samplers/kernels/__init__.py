"""Loops that NumPy and torch cannot express as array operations, compiled by numba.

The modules of this package import numba. Samplers import them while they plan, and only if numba is
:func:`available`; otherwise they plan in torch.
"""

import importlib.util


def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None
