"""``relative_margin`` and ``absolute_margin``: hand values, slow independent definitions, and properties."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers.small import build_small

import mbcl
from mbcl.errors import ConfigError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import SAMPLERS, PoolItems, Sampler, check_plan
from mbcl.samplers._conflicts import Conflicts, Margin
from mbcl.samplers._separation import separate
from mbcl.testing import check_sampler

WITH_EMBEDDINGS = [name for name in SAMPLERS if SAMPLERS[name].needs_embeddings and name not in ("osgd_exhaustive",)]
MARGINS = st.one_of(st.none(), st.sampled_from([0.0, 0.05, 0.2, 1.0]))
pool_samplers = pytest.mark.parametrize("name", WITH_EMBEDDINGS)


def clustered(num_samples: int = 200, clusters: int = 10, seed: int = 0) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, 8, generator=generator, dtype=torch.float64)
    x = centres[torch.arange(num_samples) * clusters // num_samples]
    z1, z2 = (x + 0.4 * torch.randn(num_samples, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    return Embeddings(z1, z2)


def forbidden(embeddings: Embeddings, relative: float | None, absolute: float | None) -> set[tuple[int, int]]:
    """The pairs (i, j) where j is no negative of i: NV-Retriever's two rules, one pair at a time in Python."""
    u = [(row / np.linalg.norm(row)).tolist() for row in embeddings.z1.numpy()]
    v = [(row / np.linalg.norm(row)).tolist() for row in embeddings.z2.numpy()]
    pairs = set()
    for i in range(len(u)):
        own = sum(a * b for a, b in zip(u[i], v[i], strict=True))
        limits = []
        if relative is not None:
            limits.append(own * (1 - relative) if own >= 0 else own * (1 + relative))
        if absolute is not None:
            limits.append(own - absolute)
        for j in range(len(u)):
            if j != i and any(sum(a * b for a, b in zip(u[i], v[j], strict=True)) >= limit for limit in limits):
                pairs.add((i, j))
    return pairs


def count(plan: BatchPlan, pairs: set[tuple[int, int]]) -> int:
    return sum((i, j) in pairs for batch in plan.batches.tolist() for i in batch for j in batch)


def test_margin_by_hand() -> None:
    """Sample 0 has s_00 = 0.8 and the others have 0.75, 0.7 and 0.4; sample 4 has a negative similarity of -0.5."""
    u = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    cosines = torch.tensor([0.8, 0.75, 0.7, 0.4], dtype=torch.float64)
    v = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)
    assert Margin(0.05).exceeded(u, v[:1], v).tolist() == [[True, False, False, False]], "below 0.76"
    assert Margin(0.1).exceeded(u, v[:1], v).tolist() == [[True, True, False, False]], "below 0.72"
    assert Margin(None, 0.1).exceeded(u, v[:1], v).tolist() == [[True, True, True, False]], "0.7 is not below 0.7"
    assert Margin(0.05, 0.5).exceeded(u, v[:1], v).tolist() == [[True, True, True, True]], "the lower limit counts"
    apart = torch.tensor([[-0.5, 0.75**0.5], [-0.52, 0.7], [-0.56, 0.7]], dtype=torch.float64)
    assert Margin(0.1).exceeded(u, apart[:1], apart).tolist() == [[True, True, False]], "-0.55: the sign is safe"


def test_copies_are_in_conflict_without_a_margin_of_their_own() -> None:
    """With margins of 0 a copy is as similar as the positive, in any dimension and precision."""
    for dtype in (torch.float32, torch.float64):
        for dim in (3, 64, 500):
            row = torch.nn.functional.normalize(
                torch.randn(2, dim, generator=torch.Generator().manual_seed(dim)), dim=1
            )
            u, v = (x.to(dtype).expand(6, -1).contiguous() for x in row)
            assert Margin(0.0).exceeded(u, v, v).all()
            assert Margin(None, 0.0).exceeded(u, v, v).all()


@given(relative=MARGINS, absolute=MARGINS, seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_pairs_are_those_of_the_definition(relative: float | None, absolute: float | None, seed: int) -> None:
    z = clustered(24, 6, seed)
    u, v = (torch.nn.functional.normalize(x, dim=1) for x in (z.z1, z.z2))
    rows = np.random.default_rng(seed).permutation(24)[:15]
    pairs = forbidden(z, relative, absolute)
    expected = [[((i, j) in pairs) + ((j, i) in pairs) for j in rows] for i in rows]
    conflicts = Conflicts(None, Margin(relative, absolute), u, v)
    if relative is None and absolute is None:
        assert not conflicts.margin
    np.testing.assert_array_equal(conflicts.pairs(rows).toarray(), expected)


@pool_samplers
@pytest.mark.parametrize("margins", [{"relative_margin": 0.1}, {"absolute_margin": 0.15}])
def test_conflicts_are_counted_and_far_fewer(name: str, margins: dict[str, float]) -> None:
    z = clustered()
    pairs = forbidden(z, margins.get("relative_margin"), margins.get("absolute_margin"))
    plain = with_small_pools(name, pool=100, k=20)
    sampler = with_small_pools(name, pool=100, k=20, **margins)
    plan = check_plan(sampler.plan(200, z), sampler, 200)
    assert plan.conflicts == count(plan, pairs)
    before = count(plain.plan(200, z), pairs)
    assert before > 5
    assert plan.conflicts <= before / 2
    np.testing.assert_array_equal(
        plan.batch_conflicts, [count(BatchPlan(batch[None], ""), pairs) for batch in plan.batches]
    )


def with_small_pools(name: str, **parameters: object) -> Sampler:
    """A sampler of pools of some batches of 5."""
    small = build_small(name, 5)
    names = type(small).__dataclass_fields__  # type: ignore[attr-defined]
    defaults = {"mix": 0.0, "degree": 10 if "degree" in names else None, "candidates": 60, "neighbours": 20, "q": 20}
    chosen = {key: value for key, value in {**defaults, **parameters}.items() if key in names and value is not None}
    return mbcl.samplers.build(name, batch_size=5, **chosen)


def test_margins_and_skip_count_a_pair_once() -> None:
    """A pair that both rules exclude is one conflict; the slow count takes the union."""
    z = clustered()
    sampler = mbcl.samplers.build("kmeans", batch_size=10, pool=None, skip=9, relative_margin=0.1)
    plan = sampler.plan(200, z)
    x = torch.nn.functional.normalize(z.z1, dim=1) + torch.nn.functional.normalize(z.z2, dim=1)
    nearness = (x @ x.T).fill_diagonal_(-np.inf)
    near = {(i, int(j)) for i, row in enumerate(nearness) for j in row.topk(9).indices}
    assert plan.conflicts == count(plan, forbidden(z, 0.1, None) | near)


def test_margins_hold_after_mix() -> None:
    """``mix`` moves samples to other pools; the count is that of the final plan, also of pairs across pools."""
    z = clustered()
    plan = mbcl.samplers.build("kmeans", batch_size=10, pool=50, mix=0.8, absolute_margin=0.2).plan(200, z)
    assert plan.conflicts == count(plan, forbidden(z, None, 0.2)) > 0


def test_no_swap_of_refined_adds_a_conflict() -> None:
    z = clustered()
    pairs = forbidden(z, 0.1, None)
    before, after = (
        mbcl.samplers.build("refined", batch_size=10, pool=None, sweeps=sweeps, relative_margin=0.1).plan(200, z)
        for sweeps in (0, 3)
    )
    assert count(after, pairs) <= count(before, pairs)
    assert mbcl.samplers.quality(after, z)["loss"] >= mbcl.samplers.quality(before, z)["loss"]


@pytest.mark.parametrize("name", ["kmeans", "refined", "spectral", "osgd"])
def test_plans_on_the_device_part_as_well(name: str) -> None:
    """What a GPU runs, here on the CPU: as few conflicts as the loops leave, about."""
    z = clustered()
    sampler = with_small_pools(name, pool=100, k=20, relative_margin=0.1)
    assert isinstance(sampler, mbcl.samplers.PoolSampler)
    pools = [np.arange(0, 200, 2), np.arange(1, 200, 2)]
    pairs = forbidden(z, 0.1, None)
    on_device = sampler.plan_on_device(z, pools, [1, 2])
    on_host = [sampler.plan_pool(*item) for item in PoolItems(z, pools, [1, 2])]
    counts = [
        sum(
            count(BatchPlan(torch.from_numpy(pool[plan.rows]), ""), pairs)
            for pool, plan in zip(pools, plans, strict=True)
        )
        for plans in (on_device, on_host)
    ]
    assert max(counts) <= 12


@given(batches=st.integers(2, 6), size=st.integers(2, 6), seed=st.integers(0, 99), groups=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_separate_never_adds_a_conflict(batches: int, size: int, seed: int, groups: int) -> None:
    """By rules of all kinds at once: pairs of one group do not increase; without groups, neither do the others."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(batches * size).reshape(batches, size)
    z = clustered(batches * size, 3, seed)
    u, v = (torch.nn.functional.normalize(x, dim=1) for x in (z.z1, z.z2))
    pairs = forbidden(z, 0.1, None)
    group = rng.integers(0, groups, batches * size)
    same = {(i, j) for i in rows.ravel() for j in rows.ravel() if i != j and group[i] == group[j]}
    for group_M, rule in ((None, pairs), (group, same)):
        after = separate(rows, Conflicts(None, Margin(0.1), u, v, group_M), (u + v).numpy())
        assert sorted(after.ravel()) == sorted(rows.ravel())
        counts = [count(BatchPlan(torch.from_numpy(each), ""), rule) for each in (rows, after)]
        assert counts[1] <= counts[0]


@pool_samplers
def test_samplers_with_margins_keep_their_promises(name: str) -> None:
    if name == "metis":
        pytest.importorskip("pymetis")
    check_sampler(dataclasses.replace(build_small(name, 4), relative_margin=0.05, absolute_margin=0.1))  # type: ignore[type-var]


def test_build_refuses_bad_margins() -> None:
    for margin, most in (("relative_margin", 1), ("absolute_margin", 2)):
        for value in (-0.1, most + 0.1, float("nan"), "half", True):
            with pytest.raises(ConfigError, match=f"{margin} must be .*found {value!r}"):
                mbcl.samplers.build("spectral", batch_size=4, **{margin: value})
