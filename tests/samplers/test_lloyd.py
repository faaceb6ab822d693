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


def in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lloyd, "available", lambda: False)


def test_seeding_draws_rows_and_spreads() -> None:
    x = torch.cat([torch.zeros(50, 2), torch.full((1, 2), 9.0), torch.full((1, 2), -9.0)])[None]
    found = {tuple(row) for row in plus_plus(x, 3, [0])[0].tolist()}
    assert found == {(0.0, 0.0), (9.0, 9.0), (-9.0, -9.0)}


@pytest.mark.parametrize("loops", [True, False])
def test_rows_that_are_all_equal_are_drawn_all_the_same(loops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not loops:
        in_torch(monkeypatch)
    assert plus_plus(torch.ones(2, 5, 2), 3, [0, 1]).tolist() == [[[1.0, 1.0]] * 3] * 2


@given(
    seed=st.integers(0, 2**31),
    pools=st.integers(1, 3),
    clusters=st.integers(1, 9),
    double=st.booleans(),
    ties=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_loops_and_torch_take_the_same_steps(seed: int, pools: int, clusters: int, double: bool, ties: bool) -> None:
    x = rows(seed, pools, 40, 5, torch.float64 if double else torch.float32, ties=ties)
    seeds = list(range(pools))
    found = []
    for loops in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not loops:
                in_torch(patch)
            start = plus_plus(x, clusters, seeds)
            found.append((start, *lloyd(x, start, 4)))
    for loop, together in zip(*found, strict=True):
        np.testing.assert_allclose(loop, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loops", [True, False])
def test_lloyd_against_the_definition(loops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not loops:
        in_torch(monkeypatch)
    x = rows(0, 2, 30, 4, torch.float64, ties=False)
    centre = x[:, :5].clone()
    centre[:, 4] = 100.0  # nobody's: it stays
    before = centre.clone()
    found, inertia, cluster = lloyd(x, centre, 1)
    assert torch.equal(centre, before), "the centres that are given are not written to"
    for pool in range(2):
        distance = (x[pool][:, None] - before[pool][None]).square().sum(dim=2)
        nearest = distance.argmin(dim=1)
        assert torch.equal(cluster[pool], nearest)
        means = [x[pool][nearest == c].mean(dim=0) if (nearest == c).any() else before[pool, c] for c in range(5)]
        np.testing.assert_allclose(found[pool], torch.stack(means))
        own = x[pool].square().sum()
        assert float(inertia[pool] + own) == pytest.approx(float(distance.min(dim=1).values.sum()))
    assert torch.equal(found[:, 4], before[:, 4])
    assert torch.equal(recentred(x, cluster, before), found)


def test_steps_end_when_nothing_changes() -> None:
    x = torch.tensor([[[0.0], [1.0], [10.0], [11.0]]])
    few, many = (lloyd(x, x[:, [0, 2]], steps)[0] for steps in (2, 1000))
    assert few.tolist() == many.tolist() == [[[0.5], [10.5]]]
