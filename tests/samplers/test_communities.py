"""``community`` and ``order``: independent constructions of the batches on small pools, and properties."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers.small import build_small
from samplers.test_margins import clustered, count, forbidden

import mbcl
from mbcl.errors import ConfigError, SamplerWarning
from mbcl.samplers import PoolItems, PoolSampler, build
from mbcl.samplers._communities import tour
from mbcl.testing import check_sampler

CLUSTERERS = ["kmeans", "refined", "bisection", "spectral"]
clusterers = pytest.mark.parametrize("name", CLUSTERERS)


def make(name: str, batch_size: int, pool: int | None, **parameters: object) -> PoolSampler:
    size = {"k": None if pool is None else pool // batch_size} if name == "spectral" else {"pool": pool}
    sampler = build(name, batch_size=batch_size, **size, **parameters)
    assert isinstance(sampler, PoolSampler)
    return sampler


def slow_tour(points: np.ndarray) -> list[int]:
    """From the first point always on to the nearest that was not visited, one distance at a time."""
    order = [0]
    while len(order) < len(points):
        rest = [j for j in range(len(points)) if j not in order]
        order.append(min(rest, key=lambda j: (float(((points[j] - points[order[-1]]) ** 2).sum()), j)))
    return order


@given(num=st.integers(1, 12), dim=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_tour_equals_a_slow_one(num: int, dim: int, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(num, dim))
    assert tour(points.copy()).tolist() == slow_tour(points)


def test_tour_by_hand() -> None:
    assert tour(np.array([[0.0], [9.0], [1.0], [3.0], [-2.5]])).tolist() == [0, 2, 3, 4, 1]
    assert tour(np.zeros((3, 2))).tolist() == [0, 1, 2]


@clusterers
@pytest.mark.parametrize("size", [2, 4])
def test_batches_are_composed_of_the_batches_of_a_smaller_size(name: str, size: int) -> None:
    """Communities of K are what the sampler makes as batches of K of the same pool; B / K of them are a batch."""
    z = clustered(96, clusters=8)
    communities = make(name, size, None).plan_pool(z.z1.numpy(), z.z2.numpy(), 5).rows
    expected = {frozenset(row) for row in communities.tolist()}
    z1, z2 = z.z1.numpy(), z.z2.numpy()
    if name == "spectral":  # its affinity knows the batch size, so the clusters are only nearly the same
        expected = {frozenset(row) for row in make(name, 8, None, community=size).plan_pool(z1, z2, 5).rows.tolist()}
        assert len(expected) == 96 // size
    assert {
        frozenset(row) for row in make(name, 8, None, community=size).plan_pool(z1, z2, 5).rows.tolist()
    } == expected
    near = make(name, 8, None, community=size, order="near").plan_pool(z1, z2, 5).rows
    assert near.shape == (12, 8)
    # The slow construction: a tour of the means, cut into batches.
    ordered = sorted(sorted(community) for community in expected)
    if name == "bisection":  # its communities are toured in the order of the tree
        ordered = [sorted(row) for row in _leaves(z1, z2, size)]
    x = (torch.nn.functional.normalize(z.z1, dim=1) + torch.nn.functional.normalize(z.z2, dim=1)).numpy()
    order = slow_tour(np.array([x[rows].mean(axis=0) for rows in ordered]))
    batches = [
        sum((ordered[g] for g in order[start : start + 8 // size]), []) for start in range(0, len(order), 8 // size)
    ]
    assert {frozenset(batch) for batch in near.tolist()} == {frozenset(batch) for batch in batches}


def _leaves(z1: np.ndarray, z2: np.ndarray, size: int) -> list[list[int]]:
    sampler = make("bisection", 8, None, community=size)
    rows: list[list[int]] = sampler.plan_one(z1, z2, 5).rows.tolist()
    return rows


@pytest.mark.filterwarnings("ignore:.*order near has no effect")
@clusterers
@pytest.mark.parametrize("order", ["random", "near"])
def test_a_community_of_a_batch_changes_nothing(name: str, order: str) -> None:
    z = clustered()
    plain, whole = make(name, 8, 80, skip=2).plan(200, z, epoch=1), make(name, 8, 80, skip=2, community=8, order=order)
    assert whole.plan(200, z, epoch=1).digest == plain.digest


@clusterers
def test_every_community_is_in_one_batch(name: str) -> None:
    """Whole plan, several pools and blocks: each batch consists of B / K communities that a pool made."""
    z = clustered()
    extra = {"block": 24} if name in ("kmeans", "refined") else {}
    sampler = make(name, 8, 96, community=4, **extra)
    plan = sampler.plan(200, z, seed=3)
    made: list[frozenset[int]] = []

    def spy(function, items):  # type: ignore[no-untyped-def]
        plans = [function(*item) for item in items]
        assert isinstance(items, PoolItems)
        for pool, planned in zip(items.pools, plans, strict=True):
            made.extend(frozenset(row) for row in pool[planned.rows].tolist())
        return plans

    assert sampler.plan(200, z, seed=3, map_pools=spy).digest == plan.digest
    assert len(made) == 50
    for batch in plan.batches.tolist():
        assert sum(community <= set(batch) for community in made) == 2


@clusterers
def test_communities_of_one_are_random_batches(name: str) -> None:
    """Every pair of samples shares a batch about as often as with ``shuffle``."""
    z, meets = clustered(24, clusters=4), np.zeros((24, 24))
    sampler = make(name, 4, 24, community=1)
    for epoch in range(400):
        for row in sampler.plan(24, z, epoch=epoch).batches.numpy():
            meets[np.ix_(row, row)] += 1
    share = meets[~np.eye(24, dtype=bool)] / 400
    assert abs(share - 3 / 23).max() < 5 * (3 / 23 * 20 / 23 / 400) ** 0.5


@clusterers
def test_larger_communities_make_harder_batches(name: str) -> None:
    z = clustered(480, clusters=40)
    lifts = [mbcl.samplers.quality(make(name, 8, 240, community=size).plan(480, z), z)["lift"] for size in (1, 2, 4, 8)]
    assert lifts == sorted(lifts)
    assert lifts[0] == pytest.approx(1, abs=0.15)
    near = make(name, 8, 240, community=2, order="near")
    assert mbcl.samplers.quality(near.plan(480, z), z)["lift"] > lifts[1]


@clusterers
@pytest.mark.parametrize(("community", "order"), [(1, "random"), (1, "near"), (2, "random"), (2, "near")])
def test_samplers_with_communities_keep_their_promises(name: str, community: int, order: str) -> None:
    check_sampler(dataclasses.replace(build_small(name, 4), community=community, order=order, skip=2))  # type: ignore[type-var]


@clusterers
def test_communities_part_what_must_not_meet(name: str) -> None:
    z = clustered()
    pairs, apart = forbidden(z, 0.1, None), np.arange(200) // 5
    for order in ("random", "near"):
        plain = make(name, 8, 96, community=4, order=order).plan(200, z)
        plan = make(name, 8, 96, community=4, order=order, relative_margin=0.1).plan(200, z)
        assert plan.conflicts == count(plan, pairs) <= 0.2 * count(plain, pairs)
        assert make(name, 8, 96, community=4, order=order).plan(200, z, apart=apart).conflicts == 0


@clusterers
@pytest.mark.parametrize("order", ["random", "near"])
def test_communities_are_planned_on_the_device(name: str, order: str) -> None:
    z = clustered()
    sampler = make(name, 8, 96, community=2, order=order)
    if not sampler.batched:
        pytest.skip(f"{name} plans on the host")
    for plan in sampler.plan_on_device(z, [np.arange(96), np.arange(96, 192)], [1, 2]):
        assert plan.rows.shape == ((48, 2) if order == "random" else (12, 8))
        assert sorted(plan.rows.ravel()) == list(range(96))


def test_a_community_that_does_not_fit_is_refused() -> None:
    for name in CLUSTERERS:
        with pytest.raises(
            ConfigError, match="must divide the batch_size 12: allowed are 1, 2, 3, 4, 6, 12 or null, found 5"
        ):
            build(name, batch_size=12, community=5)
        for value in (0, -2, 1.5, "2"):
            with pytest.raises(ConfigError, match="community must be a whole number >= 1"):
                build(name, batch_size=12, community=value)
        with pytest.raises(ConfigError, match="order must be .*random.*near"):
            build(name, batch_size=12, order="far")
    with pytest.raises(ConfigError, match="unknown parameter 'community'"):
        build("strata", batch_size=12, community=4)


@pytest.mark.parametrize("community", [None, 8])
def test_an_order_of_single_communities_is_said_to_have_no_effect(community):
    with pytest.warns(SamplerWarning, match="order near has no effect"):
        build("kmeans", batch_size=8, pool=32, community=community, order="near").check(64)
