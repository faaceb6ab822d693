"""Counter-based random number generator: a hash of (key, data-set position, slot).

A sequential generator returns numbers in the order of the calls, so the augmentation of a sample would depend on its
batch, its rank and the number of workers. A hash is stateless: the draws of one sample never depend on another sample.
Integer arithmetic is exact, so the numbers are bitwise equal on every device.

Letters: B samples, P numbers per sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 16), as signed int64.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX2 = 0x94D049BB133111EB - 2**64


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; the ``>>`` of torch is arithmetic and repeats the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(x: Tensor) -> Tensor:
    """Return the SplitMix64 output for state ``x`` (any shape, int64 read as unsigned). Overflow wraps by design."""
    x = x + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def uniforms(key: int, positions: Tensor, num: int) -> Tensor:
    """Return uniform numbers in [0, 1), a pure function of (key, position, slot).

    Args:
        key: 63-bit integer, for example ``mbcl.seeding.derive(seed, "views", epoch, view)``.
        positions: (B,) int64 data-set positions, on any device.
        num: P, the number of slots per sample.

    Returns:
        (B, P) float64 on the device of ``positions``, multiples of 2**-53; equal on every device.

    Example:
        >>> a, b = uniforms(7, torch.tensor([3, 5]), 2), uniforms(7, torch.tensor([5]), 2)
        >>> torch.equal(a[1], b[0]), torch.equal(a[0], a[1])
        (True, False)
    """
    # The position is hashed before the slot is added, so that the streams of neighbouring positions do not overlap.
    state = splitmix64(splitmix64(positions) ^ key)
    slots = torch.arange(num, device=positions.device, dtype=torch.int64) * _GOLDEN
    return _shift_right(splitmix64(state[:, None] + slots), 11).to(torch.float64) * 2.0**-53
