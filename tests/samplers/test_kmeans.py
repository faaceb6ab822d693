"""``kmeans`` and ``refined``: the assignment, the swaps, blocks of large pools, and torch against compiled loops."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers.small import conflicts

import mbcl
from mbcl.errors import ConfigError
from mbcl.functional import nt_xent
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import KMeans, PoolItems, PoolSampler, Refined, Shuffle, quality
from mbcl.samplers._balanced import balanced_kmeans, fill_together, greedy_by_regret
from mbcl.samplers._grouping import grouped
from mbcl.samplers._normalize import unit
from mbcl.samplers._separation import nearest
from mbcl.samplers._swaps import exponentials, factors_a_product, refine
from mbcl.samplers._swaps_batched import refine_batched


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def clustered_embeddings(num_samples: int, classes: int = 12, dim: int = 8, noise: float = 0.5) -> Embeddings:
    centres = normal(classes, dim, seed=1)[torch.arange(num_samples) % classes]
    views = normal(2, num_samples, dim, seed=2)
    samples = centres + noise * normal(num_samples, dim, seed=3)
    return Embeddings(samples + 0.3 * views[0], samples + 0.3 * views[1])


def mean_loss(u: torch.Tensor, v: torch.Tensor, rows: np.ndarray, temperature: float) -> float:
    index = torch.from_numpy(np.ascontiguousarray(rows))
    return float(nt_xent(u.double()[index], v.double()[index], temperature=temperature).mean())


def slow_greedy_by_regret(cost: np.ndarray, capacity: int) -> list[int]:
    cheapest = np.sort(cost, axis=1)
    order = sorted(range(len(cost)), key=lambda row: (cheapest[row, 0] - cheapest[row, 1], row))
    capacity_left = [capacity] * cost.shape[1]
    cluster = [-1] * len(cost)
    for row in order:
        cluster[row] = min((cost[row, c], c) for c in range(len(capacity_left)) if capacity_left[c])[1]
        capacity_left[cluster[row]] -= 1
    return cluster


@given(clusters=st.integers(2, 6), capacity=st.integers(1, 6), ties=st.booleans(), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_greedy_by_regret_equals_slow_and_deferred_acceptance(
    clusters: int, capacity: int, ties: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    size = (clusters * capacity, clusters)
    cost = (rng.integers(0, 3, size) if ties else rng.normal(size=size)).astype(np.float32)
    expected = slow_greedy_by_regret(cost, capacity)
    both = torch.from_numpy(np.stack([cost, cost[::-1]]))
    assert greedy_by_regret(both, capacity)[0].tolist() == expected
    cheapest = both.topk(2, dim=2, largest=False).values
    order = (cheapest[:, :, 1] - cheapest[:, :, 0]).argsort(dim=1, descending=True, stable=True)
    assert torch.equal(fill_together(both, order, capacity), greedy_by_regret(both, capacity))


def test_balanced_kmeans_recovers_planted_clusters_of_equal_size() -> None:
    centres = 5 * torch.eye(6).repeat_interleave(10, dim=0)
    x = torch.stack([centres + 0.1 * normal(60, 6, seed=seed) for seed in range(3)])
    pools = balanced_kmeans(x, 6, [0, 1, 2])
    for clusters in pools:
        assert len({tuple(group) for group in clusters.view(6, 10).tolist()}) == 6
        assert all(len(set(group)) == 1 for group in clusters.view(6, 10).tolist())


def test_balanced_kmeans_of_several_pools_equals_single_pools() -> None:
    x = normal(3, 60, 4)
    batched = balanced_kmeans(x, 5, [7, 8, 9])
    for pool, seed in enumerate((7, 8, 9)):
        assert torch.equal(balanced_kmeans(x[pool : pool + 1], 5, [seed])[0], batched[pool])


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("search", ["loops", "torch"])
def test_refine_raises_the_loss_in_every_sweep(search: str, temperature: float) -> None:
    u, v = unit(normal(96, 5)), unit(normal(96, 5) + 0.5 * normal(96, 5, seed=5))
    rows = np.random.default_rng(0).permutation(96).reshape(12, 8)
    losses = [mean_loss(u, v, rows, temperature)]
    for _ in range(4):
        if search == "loops":
            rows = refine(u, v, rows, temperature=temperature, sweeps=1)
        else:
            rows = refine_batched(u[None], v[None], torch.from_numpy(rows)[None], temperature=temperature, sweeps=1)[
                0
            ].numpy()
        assert sorted(rows.ravel()) == list(range(96))
        losses.append(mean_loss(u, v, rows, temperature))
    assert all(later >= earlier - 1e-6 for earlier, later in zip(losses, losses[1:], strict=False))
    assert losses[-1] > 1.1 * losses[0]


def hostile_views(seed: int, num_rows: int, dim: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Views with near and exact copies, opposite ones and hubs."""
    draw = np.random.default_rng(seed)
    u = torch.from_numpy(draw.normal(size=(num_rows, dim)))
    v = u + 0.3 * torch.from_numpy(draw.normal(size=(num_rows, dim)))
    copies = torch.from_numpy(draw.integers(0, num_rows, (2, num_rows // 4)))
    u[copies[0]], v[copies[0]] = u[copies[1]], v[copies[1]]
    v[: num_rows // 8] = -u[: num_rows // 8]
    return unit(u), unit(v)


@pytest.mark.parametrize("temperature", [0.006, 0.01, 0.02, 0.03, 0.1, 1.0])
@pytest.mark.parametrize("batch_size", [4, 64, 512])
def test_change_of_equals_the_change_of_the_loss(batch_size: int, temperature: float) -> None:
    """Holds where the factors of a product span hundreds of orders of magnitude."""
    from mbcl.samplers.kernels import swaps as loops

    u, v = hostile_views(batch_size, 2 * batch_size)
    tables = tuple(exponentials(u, v, temperature).numpy())
    own = tables[1].diagonal().astype(np.float64)
    members = np.arange(2 * batch_size).reshape(2, batch_size).copy()
    sums = (own, *loops.denominators(tables, members, own))
    before = mean_loss(u, v, members, temperature)
    trials = np.random.default_rng(0).integers(0, batch_size, (20, 2))
    for j, other in trials + [0, batch_size]:
        swapped = members.copy()
        swapped[members == j], swapped[members == other] = other, j
        change = loops.change_of(j, other, 0, 1, tables, members, sums)
        # The mean is over 2M anchors, whose positive does not change.
        true = (mean_loss(u, v, swapped, temperature) - before) * 4 * batch_size
        assert change == pytest.approx(
            true, rel=1e-5, abs=1e-4 if tables[0].dtype == np.float32 else 1e-9 * 4 * batch_size
        )
    gain = loops.gain_table(tables, members, sums, factors_a_product(temperature))
    assert np.isfinite(gain).all()


@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.006, 0.01, 0.03, 0.1]))
@settings(max_examples=60, deadline=None)
def test_refine_never_lowers_the_loss_of_hostile_views(seed: int, temperature: float) -> None:
    u, v = hostile_views(seed, 32)
    rows = np.random.default_rng(seed).permutation(32).reshape(8, 4)
    loss = mean_loss(u, v, rows, temperature)
    for _ in range(3):
        rows = refine(u, v, rows, temperature=temperature, sweeps=1)
        later = mean_loss(u, v, rows, temperature)
        assert later >= loss - 1e-9 * abs(loss)
        loss = later


def test_refine_ends_where_no_swap_raises_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all targets and partners tried, the search ends in a local optimum; the test tries every swap."""
    u, v = unit(normal(24, 3)), unit(normal(24, 3) + 0.3 * normal(24, 3, seed=5))
    monkeypatch.setattr("mbcl.samplers._swaps.PARTNERS", 6)
    rows = refine(u, v, np.arange(24).reshape(4, 6), temperature=0.2, sweeps=50)
    reached = mean_loss(u, v, rows, 0.2)
    gains = []
    for i in range(24):
        for j in range(i):
            swapped = rows.copy()
            swapped[rows == i], swapped[rows == j] = j, i
            gains.append((mean_loss(u, v, swapped, 0.2) - reached) * 48)
    # The gain table prunes a few swaps of small estimated gain, but none with a large gain.
    assert max(gains) < 0.05


def test_refined_has_a_higher_lift_than_kmeans_and_shuffle() -> None:
    embeddings = clustered_embeddings(600)
    lifts = {
        sampler.name: quality(sampler.plan(600, embeddings), embeddings)["lift"]
        for sampler in (Shuffle(batch_size=10), KMeans(batch_size=10, pool=120), Refined(batch_size=10, pool=120))
    }
    assert lifts["refined"] > lifts["kmeans"] > 1.5 * lifts["shuffle"]
    whole = quality(Refined(batch_size=10, pool=None).plan(600, embeddings), embeddings)["lift"]
    assert whole > 1.1 * lifts["refined"]


@given(
    batches=st.integers(1, 40),
    block_batches=st.integers(2, 9),
    most=st.integers(2, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_grouped_makes_blocks_of_whole_batches(batches: int, block_batches: int, most: int, seed: int) -> None:
    embeddings = Embeddings(normal(200, 3), normal(200, 3, seed=1))
    positions = np.random.default_rng(seed).permutation(200)[: batches * 4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mbcl.samplers._grouping.MOST_BLOCKS", most)
        blocks = grouped(embeddings, positions, block_batches * 4, 4, seed)
    assert sorted(np.concatenate(blocks)) == sorted(positions)
    assert all(len(block) % 4 == 0 and 0 < len(block) <= block_batches * 4 for block in blocks)
    assert sum(len(block) < block_batches * 4 for block in blocks) <= 1


def test_refined_block_hardly_lowers_the_lift() -> None:
    embeddings = clustered_embeddings(800)
    lifts = [
        quality(Refined(batch_size=8, pool=None, block=block).plan(800, embeddings), embeddings)["lift"]
        for block in (800, 200)
    ]
    assert lifts[1] > 0.8 * lifts[0]


def test_refined_skip_leaves_few_conflicts() -> None:
    embeddings = clustered_embeddings(240, classes=40)
    plan = Refined(batch_size=8, pool=120, skip=3).plan(240, embeddings)
    total = 0
    for members in plan.batches.view(2, 120):
        total += conflicts(np.repeat(np.arange(15), 8), nearest(embeddings.z1[members], embeddings.z2[members], 3))
    assert plan.conflicts == total <= 12
    assert quality(plan, embeddings)["lift"] > 1.05


@pytest.mark.parametrize("name", ["kmeans", "refined", "spectral"])
@pytest.mark.parametrize("skip", [0, 1])
def test_plan_on_device_has_the_quality_of_plan_pool(name: str, skip: int) -> None:
    """The device path on the CPU against the compiled loops, with the same pools and seeds."""
    embeddings = clustered_embeddings(600)
    sizes = {"k": 12} if name == "spectral" else {"pool": 120}
    sampler = mbcl.samplers.build(name, batch_size=10, skip=skip, **sizes)
    assert isinstance(sampler, PoolSampler)
    pools = [np.arange(start, start + 120) for start in range(0, 600, 120)]
    seeds = list(range(5))
    with pytest.MonkeyPatch.context() as patch:
        for module in ("_lloyd", "_balanced"):
            patch.setattr(f"mbcl.samplers.{module}.runs_compiled", lambda x: False)
        batched = sampler.plan_on_device(embeddings, pools, seeds)
    single = [sampler.plan_pool(*item) for item in PoolItems(embeddings, pools, seeds)]
    losses = [
        quality(
            BatchPlan(torch.from_numpy(np.concatenate([p[q.rows] for p, q in zip(pools, plans, strict=True)])), name),
            embeddings,
        )["loss"]
        for plans in (batched, single)
    ]
    # With neighbours to separate, a search over few samples may end in another local optimum, here a better one.
    assert 0.99 * losses[1] <= losses[0] <= (1.05 if skip else 1.01) * losses[1]
    if name == "kmeans":
        assert all(
            np.array_equal(np.sort(a.rows[:, 0]), np.sort(b.rows[:, 0])) for a, b in zip(batched, single, strict=True)
        )


def test_kernels_compile_without_a_cache_folder() -> None:
    """A container with a read-only installation and no home directory has no cache folder."""
    code = """
import logging, numba.core.caching as caching, numpy as np
caching.CacheImpl._locator_classes = []
logging.basicConfig()
from mbcl.samplers.kernels.assignment import regrets
print(regrets(np.array([[3.0, 1.0, 2.5]])))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[1.5]\n"
    assert done.stderr.count("no folder for compiled loops can be written to") == 1


def test_mbcl_import_does_not_load_numba() -> None:
    code = "import sys, mbcl; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_kmeans_and_refined_refuse_bad_parameters() -> None:
    for name in ("kmeans", "refined"):
        with pytest.raises(ConfigError, match="pool must be at least the batch_size 32, or null, found 31"):
            mbcl.samplers.build(name, batch_size=32, pool=31)
        with pytest.raises(ConfigError, match="block must be a whole number >= 1, found 0"):
            mbcl.samplers.build(name, batch_size=32, block=0)
    with pytest.raises(ConfigError, match="sweeps must be a whole number >= 0, found -1"):
        mbcl.samplers.build("refined", batch_size=32, sweeps=-1)
    with pytest.raises(ConfigError, match="blocks of 32768 samples are above the 20000"):
        mbcl.samplers.build("refined", batch_size=16_384, pool=None)
    with pytest.warns(UserWarning, match="pool 64 is above the 40 samples planned together, which become"):
        KMeans(batch_size=4, pool=64).check(40)
