"""``chain``: hand values, a slow walk, and what its quantile does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mbcl
from mbcl.config.base import validate
from mbcl.config.experiment import Experiment
from mbcl.errors import ConfigError
from mbcl.plan import Embeddings
from mbcl.samplers import build
from mbcl.samplers.peers import _chain
from mbcl.samplers.peers._chain import walk


def slow_walk(u: np.ndarray, v: np.ndarray, quantile: float) -> list[int]:
    """Sort all unvisited samples at every step."""
    order, sides = [0], (u, v)
    while len(order) < len(u):
        own, other = sides[(len(order) - 1) % 2], sides[len(order) % 2]
        rest = [j for j in range(len(u)) if j not in order]
        rest.sort(key=lambda j: float(own[order[-1]] @ other[j]))
        order.append(rest[round(quantile * (len(rest) - 1))])
    return order


def sides(num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    z = np.random.default_rng(seed).normal(size=(2, num_rows, 5))
    u, v = z / np.linalg.norm(z, axis=2, keepdims=True)
    return u, v


def test_walk_by_hand() -> None:
    """Angles of side one and two: from 0 (0 degrees) to the text at 10, from it (10) to the image at 12, and so on."""
    image, text = np.radians([0, 90, 12, 40]), np.radians([5, 10, 35, 80])
    u, v = (np.stack([np.cos(angle), np.sin(angle)], axis=1) for angle in (image, text))
    assert walk(u, v, 1.0).tolist() == [0, 1, 2, 3]
    # The farthest: from image 0 to text 3 (80), from it to image 2 (12), and the remaining one.
    assert walk(u, v, 0.0).tolist() == [0, 3, 2, 1]


@given(num_rows=st.integers(2, 25), quantile=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_walk_equals_a_slow_one(num_rows: int, quantile: float, seed: int) -> None:
    u, v = sides(num_rows, seed)
    assert walk(u, v, quantile).tolist() == slow_walk(u, v, quantile)


def test_walk_of_a_large_pool_needs_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    u, v = sides(60, 1)
    expected = walk(u, v, 0.8)
    monkeypatch.setattr(_chain, "TABLE_ROWS", 10)
    np.testing.assert_array_equal(walk(u, v, 0.8), expected)


def test_batches_are_consecutive_parts_of_the_walk() -> None:
    u, v = sides(40, 2)
    rows = build("chain", batch_size=8, pool=None, quantile=0.9).plan_pool(u, v, seed=0).rows  # type: ignore[attr-defined]
    parts = {frozenset(part) for part in np.reshape(slow_walk(u, v, 0.9), (5, 8)).tolist()}
    assert {frozenset(row) for row in rows.tolist()} == parts


def test_a_larger_quantile_makes_harder_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 8, generator=generator).repeat_interleave(20, 0)
    z = Embeddings(
        x + 0.3 * torch.randn(600, 8, generator=generator), x + 0.3 * torch.randn(600, 8, generator=generator)
    )
    lifts = [
        mbcl.samplers.quality(build("chain", batch_size=10, pool=300, quantile=q).plan(600, z), z)["lift"]
        for q in (0.5, 0.9, 1.0)
    ]
    assert lifts == sorted(lifts)
    assert lifts[0] < 1.2 < lifts[-1]


def test_quantile_is_checked_and_scheduled() -> None:
    for value in (-0.1, 1.1, "half", True):
        with pytest.raises(ConfigError, match="quantile must be"):
            build("chain", batch_size=4, quantile=value)
    content = {"sampler": {"name": "chain"}, "planner": {"schedule": {"quantile": {0: 0.5, 4: 0.9}}}}
    experiment = validate(Experiment, content, "x")
    assert [experiment.build_sampler(epoch).quantile for epoch in (0, 3, 4, 9)] == [0.5, 0.5, 0.9, 0.9]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"planner.schedule.quantile.4: .*quantile must be"):
        validate(Experiment, {**content, "planner": {"schedule": {"quantile": {4: 2}}}}, "x")
