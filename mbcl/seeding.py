"""Randomness as a pure function of (seed, purpose, keys). No code in mbcl reads a global generator."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, purpose: str, *keys: int) -> int:
    """Derive a 63-bit seed from the experiment's seed for one purpose, for example ``derive(0, "shuffle", epoch)``.

    Two purposes never share a stream. The keys are further numbers that it depends on: epoch, round, pool.

    Example:
        >>> derive(0, "shuffle", 1) == derive(0, "shuffle", 1) != derive(0, "shuffle", 2)
        True
    """
    text = ":".join([str(int(seed)), purpose, *(str(int(key)) for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """Create a NumPy generator for one purpose; see :func:`derive`."""
    return np.random.Generator(np.random.PCG64(derive(seed, purpose, *keys)))


def torch_generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """Create a torch CPU generator for one purpose; see :func:`derive`."""
    import torch  # not with the module: reports need no torch

    return torch.Generator().manual_seed(derive(seed, purpose, *keys))
