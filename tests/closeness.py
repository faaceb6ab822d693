"""How far two tensors are apart."""

from __future__ import annotations

from torch import Tensor


def relative(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-300))
