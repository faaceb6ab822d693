"""The counter-based generator of the views' random parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from mbcl.data.views.counter_rng import splitmix64, uniforms
from mbcl.seeding import derive

MASK = 2**64 - 1


def reference(state: int) -> int:
    """SplitMix64 in exact integers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_splitmix64_equals_the_published_one():
    # The first outputs for seed 1234567 in the tests of the reference implementation.
    states = [(1234567 + step * 0x9E3779B97F4A7C15) & MASK for step in range(3)]
    assert [reference(s) for s in states] == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    some = [0, 1, 2**63 - 1, 2**63, MASK, *states, *range(50)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in some])
    assert [value % 2**64 for value in splitmix64(signed).tolist()] == [reference(s) for s in some]


@pytest.fixture(scope="module")
def draws() -> np.ndarray:
    """(epoch · view, position, slot)."""
    positions = torch.arange(4000)
    keys = [derive(0, "views", epoch, view) for epoch in range(4) for view in (0, 1)]
    return torch.stack([uniforms(key, positions, 12) for key in keys]).numpy()


def test_uniforms_are_uniform(draws):
    flat = draws.reshape(-1)
    assert flat.min() >= 0
    assert flat.max() < 1
    for power in (1, 2, 3, 4):
        assert (flat**power).mean() == pytest.approx(1 / (power + 1), abs=5 / np.sqrt(len(flat)))
    p_values = [stats.kstest(draws[key, :, slot], "uniform").pvalue for key in range(8) for slot in range(12)]
    assert min(p_values) > 1e-4
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def largest_correlation(columns: np.ndarray) -> float:
    """The largest correlation of (n, columns), in standard deviations of independent columns."""
    matrix = np.corrcoef(columns, rowvar=False)
    return float(np.abs(matrix - np.eye(len(matrix))).max() * np.sqrt(len(columns)))


def test_uniforms_are_independent_between_slots_keys_and_neighbours(draws):
    for transform in (lambda u: u, lambda u: (u - 0.5) ** 2):
        u = transform(draws)
        assert largest_correlation(u.transpose(1, 0, 2).reshape(4000, -1)) < 5.5  # 96 columns: all slots and keys
        for lag in (1, 2, 64, 100):
            first, second = u[:, :-lag].reshape(-1), u[:, lag:].reshape(-1)
            assert abs(np.corrcoef(first, second)[0, 1]) * np.sqrt(len(first)) < 5


def test_uniforms_do_not_repeat(draws):
    assert len(np.unique(draws)) == draws.size


def test_uniforms_depend_on_key_and_position_only():
    positions = torch.tensor([5, 10**9, 0, 5])
    drawn = uniforms(3, positions, 4)
    assert torch.equal(drawn[0], drawn[3])
    assert torch.equal(drawn[1:2], uniforms(3, positions[1:2], 4))
    assert torch.equal(drawn[:, :2], uniforms(3, positions, 2))
    assert not torch.equal(drawn, uniforms(4, positions, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_uniforms_on_the_gpu_equal_the_cpu():
    positions = torch.arange(1000)
    assert torch.equal(uniforms(3, positions, 8), uniforms(3, positions.cuda(), 8).cpu())
