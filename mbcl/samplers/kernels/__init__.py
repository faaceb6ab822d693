"""Loops that NumPy and torch have no words for, compiled by numba.

Importing a module of this package needs numba, so samplers do it when they plan, and only where numba is
:func:`available`; without it they plan in torch.
"""

import importlib.util


def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None
