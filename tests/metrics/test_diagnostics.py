"""Alignment, uniformity and effective rank: loops, hand values, properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbcl.metrics import alignment, effective_rank, uniformity


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 2**31), size=st.integers(2, 9), chunk_size=st.integers(1, 10))
@settings(max_examples=25, deadline=None)
def test_diagnostics_equal_slow_loops(seed: int, size: int, chunk_size: int) -> None:
    u, v = random(seed, 2, size, 3)
    a, b = (x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (u, v))
    assert alignment(u, v) == pytest.approx(np.mean([((x - y) ** 2).sum() for x, y in zip(a, b, strict=True)]))
    pairs = [math.exp(-2 * ((a[i] - a[j]) ** 2).sum()) for i in range(size) for j in range(size) if i != j]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mbcl.metrics._retrieval._CHUNK_ROWS", chunk_size)
        assert uniformity(u) == pytest.approx(math.log(np.mean(pairs)), abs=1e-9)
    sigma = np.linalg.svd(u.numpy(), compute_uv=False)
    p = sigma / sigma.sum()
    assert effective_rank(u) == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    assert alignment(u[order], v[order]) == pytest.approx(alignment(u, v))
    assert uniformity(u[order]) == pytest.approx(uniformity(u))
    assert effective_rank(u[order]) == pytest.approx(effective_rank(u))


def test_diagnostics_of_a_collapsed_representation() -> None:
    x = torch.ones(50, 4)
    assert alignment(x, x) == 0
    assert uniformity(x) == pytest.approx(0, abs=1e-5)
    assert effective_rank(x) == pytest.approx(1, abs=1e-6)
    assert effective_rank(x * 0) == 0


def test_diagnostics_of_random_directions() -> None:
    x = random(0, 4000, 8)
    # E exp(-2 |x - y|^2) = e^-4 E exp(4 x.y); the mean as a series for the uniform sphere in 8 dimensions.
    series = sum(4 ** (2 * k) / math.factorial(2 * k) * _moment(k, 8) for k in range(30))
    assert uniformity(x) == pytest.approx(math.log(series) - 4, abs=0.01)
    assert effective_rank(x) == pytest.approx(8, abs=0.01)
    assert alignment(x[:2000], x[2000:]) == pytest.approx(2, abs=0.05)


def _moment(k: int, dim: int) -> float:
    """E (x.y)^2k of independent uniform directions: prod (2i - 1) / (dim + 2i - 2)."""
    return math.prod((2 * i - 1) / (dim + 2 * i - 2) for i in range(1, k + 1))


def test_diagnostics_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match=r"two \(N, D\) tensors"):
        alignment(torch.eye(3), torch.eye(2))
    with pytest.raises(ValueError, match="N at least 2"):
        uniformity(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"a finite \(N, D\) tensor"):
        effective_rank(torch.eye(3) / 0)
