"""The parts of k-means by hand values, a slow oracle, and compiled loops against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mbcl.samplers import _lloyd
from mbcl.samplers._lloyd import lloyd, plus_plus, recentred


def rows(seed: int, num_pools: int, num_rows: int, dim: int, dtype: torch.dtype, *, ties: bool) -> Tensor:
    generator = np.random.default_rng(seed)
    size = (num_pools, num_rows, dim)
    return torch.from_numpy(generator.integers(0, 2, size) if ties else generator.normal(size=size)).to(dtype)


def disable_compiled_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lloyd, "runs_compiled", lambda x: False)


def test_plus_plus_draws_rows_that_are_far_apart() -> None:
    x = torch.cat([torch.zeros(50, 2), torch.full((1, 2), 9.0), torch.full((1, 2), -9.0)])[None]
    centres = {tuple(row) for row in plus_plus(x, 3, [0])[0].tolist()}
    assert centres == {(0.0, 0.0), (9.0, 9.0), (-9.0, -9.0)}


@pytest.mark.parametrize("loops", [True, False])
def test_plus_plus_draws_among_equal_rows(loops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not loops:
        disable_compiled_loops(monkeypatch)
    assert plus_plus(torch.ones(2, 5, 2), 3, [0, 1]).tolist() == [[[1.0, 1.0]] * 3] * 2


@given(
    seed=st.integers(0, 2**31),
    pools=st.integers(1, 3),
    clusters=st.integers(1, 9),
    double=st.booleans(),
    ties=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_lloyd_in_compiled_loops_equals_torch(seed: int, pools: int, clusters: int, double: bool, ties: bool) -> None:
    x = rows(seed, pools, 40, 5, torch.float64 if double else torch.float32, ties=ties)
    seeds = list(range(pools))
    results = []
    for loops in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not loops:
                disable_compiled_loops(patch)
            start = plus_plus(x, clusters, seeds)
            results.append((start, *lloyd(x, start, 4)))
    for loop, vectorized in zip(*results, strict=True):
        np.testing.assert_allclose(loop, vectorized, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loops", [True, False])
def test_lloyd_step_equals_its_definition(loops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not loops:
        disable_compiled_loops(monkeypatch)
    x = rows(0, 2, 30, 4, torch.float64, ties=False)
    centre = x[:, :5].clone()
    centre[:, 4] = 100.0  # an empty cluster's centre stays
    before = centre.clone()
    updated, inertia, cluster = lloyd(x, centre, 1)
    assert torch.equal(centre, before), "the given centres are not written to"
    for pool in range(2):
        distance = (x[pool][:, None] - before[pool][None]).square().sum(dim=2)
        nearest = distance.argmin(dim=1)
        assert torch.equal(cluster[pool], nearest)
        means = [x[pool][nearest == c].mean(dim=0) if (nearest == c).any() else before[pool, c] for c in range(5)]
        np.testing.assert_allclose(updated[pool], torch.stack(means))
        squared_norm = x[pool].square().sum()
        assert float(inertia[pool] + squared_norm) == pytest.approx(float(distance.min(dim=1).values.sum()))
    assert torch.equal(updated[:, 4], before[:, 4])
    assert torch.equal(recentred(x, cluster, before), updated)


def test_lloyd_stops_at_a_fixed_point() -> None:
    x = torch.tensor([[[0.0], [1.0], [10.0], [11.0]]])
    few, many = (lloyd(x, x[:, [0, 2]], steps)[0] for steps in (2, 1000))
    assert few.tolist() == many.tolist() == [[[0.5], [10.5]]]
