"""Randomness as a pure function of (seed, purpose, keys). Nothing in mbcl reads a global generator."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, purpose: str, *keys: int) -> int:
    """A 63-bit seed for one purpose, for example ``derive(0, "shuffle", epoch)``.

    Args:
        seed: the experiment's seed.
        purpose: what the numbers are for; two purposes never share a stream.
        keys: what else the stream depends on: epoch, round, pool.

    Example:
        >>> derive(0, "shuffle", 1) == derive(0, "shuffle", 1) != derive(0, "shuffle", 2)
        True
    """
    text = ":".join([str(int(seed)), purpose, *(str(int(key)) for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.Generator(np.random.PCG64(derive(seed, purpose, *keys)))


def torch_generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """A torch CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive(seed, purpose, *keys))
