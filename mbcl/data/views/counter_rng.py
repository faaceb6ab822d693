"""Counter-based random numbers: a hash of (key, data-set position, slot), so no sample's draw depends on another's.

A generator gives numbers in the order they are asked for, so a sample's augmentation would depend on its batch, its
rank and the number of workers. A hash has no order. Integer arithmetic is exact, so the numbers are equal to the last
bit on every device.

Letters: B samples, P numbers a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 16), as signed int64.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX2 = 0x94D049BB133111EB - 2**64


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own repeats the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(x: Tensor) -> Tensor:
    """SplitMix64's output for the state ``x`` (any shape, int64 read as unsigned); overflow wraps on purpose."""
    x = x + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def uniforms(key: int, positions: Tensor, num: int) -> Tensor:
    """Uniform numbers in [0, 1), a pure function of (key, position, slot).

    Args:
        key: 63-bit integer, for example ``mbcl.seeding.derive(seed, "views", epoch, view)``.
        positions: (B,) int64 data-set positions, on any device.
        num: P, how many numbers for each sample.

    Returns:
        (B, P) float64 on the device of ``positions``, multiples of 2**-53; equal on every device.

    Example:
        >>> a, b = uniforms(7, torch.tensor([3, 5]), 2), uniforms(7, torch.tensor([5]), 2)
        >>> torch.equal(a[1], b[0]), torch.equal(a[0], a[1])
        (True, False)
    """
    # The sample's state is hashed before the slots are counted from it, so that neighbouring positions share nothing.
    state = splitmix64(splitmix64(positions) ^ key)
    slots = torch.arange(num, device=positions.device, dtype=torch.int64) * _GOLDEN
    return _shift_right(splitmix64(state[:, None] + slots), 11).to(torch.float64) * 2.0**-53
