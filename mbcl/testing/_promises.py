"""What all checks share: the one line for a broken promise, and the global random generators."""

from __future__ import annotations

import random  # noqa: TID251  # its global state is set and restored, to check that nothing depends on it
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def broken(subject: str, promise: str, promised: str, found: str) -> AssertionError:
    """Return the error for a broken promise: one line with its name, what was promised and what was found."""
    return AssertionError(" ".join(f"{subject}: {promise}: promised {promised}, found {found}".split()))


def one_line(error: BaseException) -> str:
    """Return the type and the first line of an exception."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


@contextmanager
def global_random_state(seed: int) -> Iterator[None]:
    """Seed the global CPU generators of Python, NumPy and torch inside; restore their states afterwards."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # unlike torch.manual_seed, it leaves the GPUs' generators alone
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)


def draw_globally() -> tuple[float, float, float]:
    """Draw a number from each global CPU generator: equal draws mean equal states."""
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002
