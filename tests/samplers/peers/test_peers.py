"""The published peers and controls, each against a slow implementation of its definition."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from mbcl.errors import ConfigError
from mbcl.plan import Embeddings
from mbcl.samplers import SAMPLERS, build, check_plan, quality, same_class_share
from mbcl.samplers._separation import nearest, ranking
from mbcl.samplers._sized_pools import pair_rows, unit_rows
from mbcl.samplers.peers._bisection import bisected, direction_of
from mbcl.samplers.peers._diverse import Unseen, grow
from mbcl.samplers.peers._gcbs import most_similar_pairs, similarity_quantile
from mbcl.samplers.peers._metis import evened, mutual, partition
from mbcl.samplers.peers._strata import strata, stratified
from mbcl.samplers.peers._walk import NOBODY, ProximityGraph, both_ways, gather

PEERS = {
    "bisection": {},
    "gcbs": {"degree": 8},
    "metis": {"skip": 0, "width": 8},
    "walk": {"candidates": 200, "neighbours": 7, "unique": True},
    "strata": {"k": 24},
    "diverse": {},
}
all_peers = pytest.mark.parametrize("name", list(PEERS))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def planted(num_clusters: int = 24, size: int = 8, spread: float = 0.2, seed: int = 0) -> Embeddings:
    """Tight clusters of equal size in random order; sample p belongs to cluster ``labels()[p]``."""
    draw = rng(seed)
    z = draw.standard_normal((num_clusters, 16))[labels(num_clusters, size)]
    return Embeddings(*(torch.from_numpy(z + spread * draw.standard_normal(z.shape)) for _ in range(2)))


def labels(num_clusters: int = 24, size: int = 8) -> NDArray[np.int64]:
    return rng(99).permutation(np.repeat(np.arange(num_clusters), size))


def planted_pair_share(batches: torch.Tensor) -> float:
    """The share of pairs in a batch that belong to one planted cluster."""
    of_SB = labels()[batches.numpy()]
    same = of_SB[:, :, None] == of_SB[:, None, :]
    batch_size = of_SB.shape[1]
    return (same.sum() - of_SB.size) / (of_SB.size * (batch_size - 1))


@pytest.mark.parametrize(
    "name,least,most",
    [
        ("bisection", 0.6, 1.0),
        ("gcbs", 0.6, 1.0),
        ("metis", 0.9, 1.0),
        ("walk", 0.3, 1.0),
        ("strata", 0.9, 1.0),
        ("diverse", 0.0, 0.02),
    ],
)
def test_peer_recovers_planted_clusters_of_batch_size(name: str, least: float, most: float) -> None:
    """Random batches have 7 / 191 = 0.037."""
    plan = build(name, batch_size=8, **PEERS[name]).plan(192, planted())
    assert least <= planted_pair_share(plan.batches) <= most


@all_peers
def test_peer_has_the_expected_lift(name: str) -> None:
    embeddings = planted(spread=0.7)
    lift = quality(build(name, batch_size=8, **PEERS[name]).plan(192, embeddings), embeddings)["lift"]
    assert lift < 0.9 if name == "diverse" else lift > 1.3


@all_peers
@given(
    num_samples=st.integers(8, 60),
    batch_size=st.integers(2, 8),
    pool=st.one_of(st.none(), st.integers(8, 30)),
    dim=st.integers(1, 4),
    kind=st.sampled_from(["normal", "equal", "zero", "duplicates", "huge", "tiny"]),
    seed=st.integers(0, 20),
)
@settings(max_examples=25, deadline=None)
@pytest.mark.filterwarnings("ignore:sampler:UserWarning")
def test_peer_plan_is_valid_for_any_input(
    name: str, num_samples: int, batch_size: int, pool: int | None, dim: int, kind: str, seed: int
) -> None:
    z = torch.from_numpy(rng(seed).standard_normal((num_samples, dim)).astype(np.float32))
    z = {
        "normal": z,
        "equal": torch.ones_like(z),
        "zero": torch.zeros_like(z),
        "duplicates": z[torch.arange(num_samples) // 7],
        "huge": z * 1e30,
        "tiny": z * 1e-30,
    }[kind]
    sampler = build(name, batch_size=batch_size, pool=pool, **PEERS[name])
    plan = sampler.plan(num_samples, Embeddings(z, z.flip(0)), seed=seed)
    check_plan(plan, sampler, num_samples)


@all_peers
def test_peer_orders_batches_at_random(name: str) -> None:
    """Neighbouring batches of a tree or a graph must not follow each other in the plan."""
    plan = build(name, batch_size=4, **PEERS[name]).plan(192, planted())
    means = labels()[plan.batches.numpy()]
    follows = np.mean([len(set(a) & set(b)) > 0 for a, b in zip(means[:-1], means[1:], strict=True)])
    assert follows < 0.5


@pytest.mark.parametrize("pool", [3, 0, 4.0, True])
def test_build_refuses_a_pool_below_the_batch_size(pool: object) -> None:
    for name in PEERS:
        with pytest.raises(ConfigError, match=f"pool must be .*found {pool!r}"):
            build(name, batch_size=4, pool=pool)


def test_plan_warns_once_about_a_pool_above_the_data_set() -> None:
    for name in PEERS:
        few = {"k": 3} if name == "strata" else {}
        sampler = build(name, batch_size=4, pool=30, **{**PEERS[name], **few})
        with pytest.warns(UserWarning, match=r"pool 30 is above the 21 samples .* one pool of 5 batches") as seen:
            plan = sampler.plan(21, Embeddings(torch.randn(21, 3), torch.randn(21, 3)))
        assert len(seen) == 1
        assert len(plan) == 5


@pytest.mark.parametrize(
    "name,parameters,match",
    [
        ("bisection", {"power": 0}, "power must be a whole number >= 1"),
        ("bisection", {"sample": 1}, "sample must be a whole number >= 2"),
        ("gcbs", {"quantile": 1.0}, "quantile must be >= 0 and < 1, found 1.0"),
        ("gcbs", {"degree": 0}, "degree must be a whole number"),
        ("gcbs", {"degree": 5, "quantile": 0.9}, "give one, found quantile 0.9 and degree 5"),
        ("metis", {"cluster": 3}, "allowed are 2, 4, 8 or null, found 3"),
        ("metis", {"cluster": 1}, "cluster must be a whole number >= 2"),
        ("metis", {"width": 0}, "width must be"),
        ("walk", {"neighbours": 9, "candidates": 8}, "found neighbours 9 and candidates 8"),
        ("walk", {"alpha": 1.5}, "alpha must be"),
        ("walk", {"refresh": 0}, "refresh must be"),
        ("walk", {"unique": 1}, "unique must be true or false, found 1"),
        ("strata", {"k": 0}, "k must be"),
        ("diverse", {"m": 1}, "m must be"),
        ("diverse", {"rank_high": 1.5}, "rank_high must be > 0 and <= 1, found 1.5"),
        ("diverse", {"rank_low": 0.6, "rank_high": 0.5}, "found rank_low 0.6 and rank_high 0.5"),
    ],
)
def test_build_refuses_bad_parameters(name: str, parameters: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(name, batch_size=8, **parameters)


# bisection


def test_bisected_splits_into_whole_batches_along_the_projection() -> None:
    """Points on a line are split in the line's order, from either end; 5 leaves are split as 2 and 3."""
    x = rng().permutation(np.arange(20.0))[:, None]
    order = x[bisected(x.copy(), 4, 4, 4096, rng()), 0]
    leaves = [sorted(leaf) for leaf in order.reshape(5, 4)]
    assert sorted(leaves) == [list(range(start, start + 4)) for start in range(0, 20, 4)]
    first = sorted(order[:8])
    assert first in (list(range(8)), list(range(12, 20)))


def test_direction_of_is_the_first_principal_component() -> None:
    x = rng().standard_normal((3000, 6)) * np.array([5.0, 2, 1, 1, 1, 1]) @ np.linalg.qr(rng(1).random((6, 6)))[0] + 7
    expected = np.linalg.eigh(np.cov(x.T))[1][:, -1]
    for sample in (3000, 800):
        assert abs(direction_of(x, 6, sample, rng()) @ expected) > 0.99
    assert np.array_equal(direction_of(np.ones((5, 2)), 4, 9, rng()), [0, 0])


# gcbs


@pytest.mark.parametrize("quantile", [0.9, 0.98])
def test_gcbs_equals_its_dense_definition(quantile: float) -> None:
    embeddings = planted(spread=0.6)
    z1, z2 = embeddings.z1.numpy(), embeddings.z2.numpy()
    u, v = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2))
    similarity = u @ v.T
    edges = similarity > np.quantile(similarity, quantile)
    order = reverse_cuthill_mckee(csr_array((edges | edges.T).astype(np.int8)), symmetric_mode=True)
    expected = {frozenset(batch) for batch in order.reshape(-1, 8).tolist()}
    plan = build("gcbs", batch_size=8, quantile=quantile).plan_pool(z1, z2, seed=3)
    assert {frozenset(batch) for batch in plan.rows.tolist()} == expected


def test_gcbs_graph_is_exact_in_chunks_and_its_quantile_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    u, v = (unit_rows(rng(seed).standard_normal((700, 8))) for seed in (0, 1))
    exact = similarity_quantile(u, v, 0.99, rng())
    whole = most_similar_pairs(u, v, exact, 4900)
    assert abs(whole.nnz - 4900) <= 1
    monkeypatch.setattr("mbcl.samplers.peers._gcbs.CHUNK_ELEMENTS", 5000)
    monkeypatch.setattr("mbcl.samplers.peers._gcbs.SAMPLE_SIDE", 300)
    assert (most_similar_pairs(u, v, exact, 4900) != whole).nnz == 0
    estimated = similarity_quantile(u, v, 0.99, rng())
    assert estimated != exact
    assert (u @ v.T > estimated).mean() == pytest.approx(0.01, rel=0.2)


def test_gcbs_bounds_the_edges_of_a_collapsed_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    z = unit_rows(np.repeat(rng().standard_normal((1, 50)).astype(np.float32), 300, axis=0))
    threshold = similarity_quantile(z, z, 0.999, rng())
    assert most_similar_pairs(z, z, threshold, 90).nnz == 300**2
    monkeypatch.setattr("mbcl.samplers.peers._gcbs.MAX_EDGES", 1000)
    assert most_similar_pairs(z, z, threshold, 90).nnz == 0


@pytest.mark.parametrize("copies", [2, 10, 20])
def test_gcbs_keeps_copies_together(copies: int) -> None:
    """All copies have the largest similarity, and the quantile lies within it."""
    z = torch.from_numpy(np.repeat(rng().standard_normal((640 // copies, 8)), copies, axis=0)[rng(1).permutation(640)])
    plan = build("gcbs", batch_size=40).plan(640, Embeddings(z, z))
    assert quality(plan, Embeddings(z, z), temperature=0.1, seed=0)["lift"] > 1.5


def test_gcbs_checks_quantile_and_graph_size() -> None:
    assert build("gcbs", batch_size=8).quantile_of(1280) == 0.999
    assert build("gcbs", batch_size=8, degree=64).quantile_of(1280) == 0.95
    assert build("gcbs", batch_size=8, degree=64).quantile_of(32) == 0
    with pytest.raises(ConfigError, match=r"quantile 0.999 keeps .* allowed here: degree up to 134$"):
        build("gcbs", batch_size=8).check(1_000_000)
    build("gcbs", batch_size=8, degree=134).check(1_000_000)
    build("gcbs", batch_size=8, pool=50_000).check(1_000_000)


# metis


def test_metis_graph_joins_mutual_ranks() -> None:
    """Two samples are joined if each has a rank of p to p + m in the other's ranking, which omits the sample itself."""
    u, v = (unit_rows(rng(seed).standard_normal((60, 5))) for seed in (0, 1))
    similarity = u @ v.T
    np.fill_diagonal(similarity, -np.inf)
    rank = np.argsort(np.argsort(-similarity, axis=1), axis=1)
    inside = (rank >= 3) & (rank < 3 + 10)
    graph = mutual(ranking(torch.from_numpy(u), torch.from_numpy(v), 13)[:, 3:])
    assert np.array_equal(graph.toarray().astype(bool), inside & inside.T)
    assert graph.nnz > 0


def test_metis_ranking_is_exact_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    u, v = (torch.from_numpy(unit_rows(rng(seed).standard_normal((50, 5)))) for seed in (0, 1))
    whole = ranking(u, v, 9)
    monkeypatch.setattr("mbcl.samplers._separation.CHUNK_ELEMENTS", 50 * 7)
    assert np.array_equal(ranking(u, v, 9), whole)
    assert ranking(u, v, 99).shape == (50, 49)


def test_metis_partition_recovers_planted_cliques_and_is_pure() -> None:
    of = labels()
    graph = csr_array((of[:, None] == of[None, :]) & ~np.eye(len(of), dtype=bool)).astype(np.int8)
    part = partition(graph, 24, seed=5)
    assert len({(a, b) for a, b in zip(of, part, strict=True)}) == 24
    assert np.array_equal(part, partition(graph, 24, seed=5))


def test_metis_evened_moves_outliers_to_the_nearest_small_part() -> None:
    """Part 0 has an outlier that is near part 1, which is too small; part 2 does not change."""
    x = np.array([[1.0, 0], [1, 0.1], [0.1, 1], [0, 1], [-1, 0], [-1, 0.1]])
    assert evened(np.array([0, 0, 0, 1, 2, 2]), 3, x).tolist() == [0, 0, 1, 1, 2, 2]


@given(parts=st.lists(st.integers(0, 4), min_size=15, max_size=15), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_metis_evened_makes_parts_exact_with_the_fewest_moves(parts: list[int], seed: int) -> None:
    before = np.array(parts)
    after = evened(before, 5, rng(seed).standard_normal((15, 2)))
    assert np.bincount(after, minlength=5).tolist() == [3] * 5
    surplus = np.maximum(np.bincount(before, minlength=5) - 3, 0).sum()
    assert (after != before).sum() == surplus


def test_metis_fills_batches_with_whole_communities() -> None:
    sampler = build("metis", batch_size=16, cluster=8, skip=0, width=8)
    plan = sampler.plan(192, planted(spread=0.1))
    for batch in labels()[plan.batches.numpy()]:
        assert sorted(np.unique(batch, return_counts=True)[1].tolist()) == [8, 8]


def test_metis_skip_leaves_out_the_first_ranks() -> None:
    """All 7 other samples of a cluster are skipped, so each batch mixes clusters and has no conflicts."""
    plan = build("metis", batch_size=8, skip=7, width=30).plan(192, planted(spread=0.05))
    assert planted_pair_share(plan.batches) == 0
    assert plan.conflicts == 0


def test_metis_by_default_skips_ranks_in_the_graph_only() -> None:
    """In a cluster of 64, 30 ranks make no edge and the other 33 do; with ``skip`` given, batches separate them."""
    embeddings, of = planted(6, 64, spread=0.3), torch.from_numpy(labels(6, 64))
    default, parted = build("metis", batch_size=16, pool=None), build("metis", batch_size=16, skip=30)
    plan, apart = default.plan(384, embeddings), parted.plan(384, embeddings)
    assert (default.skip, plan.conflicts) == (None, None)
    assert apart.conflicts is not None
    default_share, parted_share = (same_class_share(each, of).value for each in (plan, apart))
    assert default_share > 0.4
    assert parted_share < 0.2, "chance is 0.16"


def test_metis_warns_of_an_empty_graph_and_names_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="skip 30 leaves no neighbours in pools of 28 samples.*skip below 27"):
        build("metis", batch_size=4).check(30)
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(ConfigError, match=r"pymetis is not installed; pip install 'mbcl\[metis\]'"):
        build("metis", batch_size=4, skip=2).check(30)


# walk


def test_walk_graph_keeps_the_nearest_of_random_candidates() -> None:
    x = rng().standard_normal((40, 4))
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    complete = ProximityGraph(x, 1000, 6, rng())
    for row in range(40):
        assert set(complete.neighbours(row)) == set(np.argsort(-similarity[row])[:6])
    # The 4 nearest of 12 candidates among the 39 others; the same generator draws the candidates again.
    graph, again = ProximityGraph(x, 12, 4, rng(3)), rng(3)
    for row in range(40):
        drawn = again.choice(39, 12, replace=False, shuffle=False)
        drawn += drawn >= row
        assert row not in drawn
        assert set(graph.neighbours(row)) == set(drawn[np.argsort(-similarity[row, drawn])[:4]])


def test_walk_graph_caches_neighbours_until_forget() -> None:
    graph = ProximityGraph(rng().standard_normal((200, 4)), 20, 5, rng())
    first = graph.neighbours(7)
    graph.neighbours(8)
    assert np.array_equal(graph.neighbours(7), first)
    graph.forget()
    assert not np.array_equal(graph.neighbours(7), first)


def test_walk_stays_near_its_start_with_more_restarts() -> None:
    """On a ring with three neighbours on either side: with a restart before each step, a walk meets only those."""
    angle = np.arange(100) * 2 * np.pi / 100
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    reach = {}
    for alpha in (0.0, 0.7, 1.0):
        draw = rng()
        graph = ProximityGraph(x, 99, 6, draw)
        batches = [gather(graph, np.ones(100, dtype=bool), [NOBODY] * 100, 5, alpha, draw) for _ in range(60)]
        reach[alpha] = np.mean([np.abs((batch - batch[0] + 50) % 100 - 50).max() for batch in batches])
    assert reach[1.0] <= 3 < reach[0.7] < reach[0.0]
    assert len({int(batch[0]) for batch in batches}) > 30, "starts are random"


def test_walk_fills_the_batch_at_random_at_a_dead_end() -> None:
    """Two components of three: a batch of five takes all of one, and the free samples of the other."""
    x = np.repeat(np.eye(2), 3, axis=0)
    free = np.array([True] * 5 + [False])
    batch = gather(ProximityGraph(x, 5, 2, rng()), free, [NOBODY] * 6, 5, 0.2, rng())
    assert sorted(batch.tolist()) == [0, 1, 2, 3, 4]


def test_walk_alpha_decays_by_epoch() -> None:
    sampler = build("walk", batch_size=4, alpha=0.4, alpha_end=0.0, alpha_epochs=4, candidates=12, neighbours=3)
    assert [sampler.at_epoch(epoch).alpha for epoch in (0, 1, 3, 4, 9)] == pytest.approx([0.4, 0.3, 0.1, 0.0, 0.0])
    embeddings = planted()
    alone = build("walk", batch_size=4, alpha=0.1, alpha_end=0.1, candidates=12, neighbours=3)
    planned = sampler.plan(192, embeddings, epoch=3)
    assert planned.digest == alone.plan(192, embeddings, epoch=3).digest
    assert planned.digest != sampler.at_epoch(0).plan(192, embeddings, epoch=3).digest


def test_walk_repeats_samples_across_batches_unless_unique() -> None:
    embeddings = planted()
    for unique in (False, True):
        sampler = build("walk", batch_size=8, unique=unique, candidates=100, neighbours=10)
        plan = check_plan(sampler.plan(192, embeddings), sampler, 192)
        assert sampler.covers_all == sampler.no_repeats == unique
        assert (plan.coverage(192) == 1) == unique
        assert plan.coverage(192) > 0.4


@pytest.mark.parametrize("unique", [False, True])
def test_walk_skips_the_nearest_and_counts_conflicts(unique: bool) -> None:
    embeddings = planted(spread=0.05)
    sampler = build("walk", batch_size=8, skip=7, unique=unique, candidates=100, neighbours=10)
    plan = sampler.plan(192, embeddings)
    assert planted_pair_share(plan.batches) == 0
    near = nearest(embeddings.z1, embeddings.z2, 7)
    counted = sum(len(set(near[row]) & set(batch)) for batch in plan.batches.tolist() for row in batch)
    assert plan.conflicts == counted == 0
    crowded = build("walk", batch_size=8, skip=40, unique=unique).plan(48, planted(6, 8))
    near = nearest(planted(6, 8).z1, planted(6, 8).z2, 40)
    counted = sum(len(set(near[row]) & set(batch)) for batch in crowded.batches.tolist() for row in batch)
    assert crowded.conflicts == counted > 0


def test_walk_both_ways_makes_edges_symmetric() -> None:
    assert [sorted(part.tolist()) for part in both_ways(np.array([[1], [2], [1]], dtype=np.int32))] == [
        [1],
        [0, 2],
        [1],
    ]


# strata


def test_strata_batches_lie_within_one_stratum_except_the_rest() -> None:
    stratum = np.array([0] * 10 + [1] * 7 + [2] * 3)
    rows = stratified(rng(1).permutation(stratum), 4, rng())
    shuffled = rng(1).permutation(stratum)
    kinds = [set(shuffled[row]) for row in rows]
    assert [len(kind) for kind in kinds[:3]] == [1, 1, 1]
    assert sorted(kind.pop() for kind in kinds[:3]) == [0, 0, 1]
    assert sorted(rows.ravel()) == list(range(20))


def test_strata_are_kmeans_clusters() -> None:
    """Every row is nearest to its own stratum's mean, and well separated planted clusters are recovered."""
    embeddings = planted(3, 30, spread=0.05)
    x = pair_rows(embeddings.z1.numpy(), embeddings.z2.numpy())
    assigned = strata(x, 3, seed=0)
    assert len({(a, b) for a, b in zip(labels(3, 30), assigned, strict=True)}) == 3
    x = rng().standard_normal((60, 3))
    assigned = strata(x, 4, seed=1)
    means = np.stack([x[assigned == stratum].mean(axis=0) for stratum in range(4)])
    assert np.array_equal(((x[:, None] - means) ** 2).sum(axis=2).argmin(axis=1), assigned)


# diverse


def participation(x: NDArray[np.floating]) -> float:
    eigenvalues = np.linalg.eigvalsh(x @ x.T)
    return eigenvalues.sum() ** 2 / (eigenvalues**2).sum()


@pytest.mark.parametrize("low,high", [(np.inf, np.inf), (np.inf, 4.0), (2.5, 4.0)])
def test_diverse_grow_takes_the_candidate_of_the_best_rank(low: float, high: float) -> None:
    """All rows are candidates, so the choice does not depend on the draw; a slow loop checks each step."""
    x = unit_rows(rng().standard_normal((30, 6)))
    x[4] = 0
    batch = grow(x, Unseen(30), 9, 29, low, high, rng(2)).tolist()
    assert len(set(batch)) == 9
    for size in range(1, 9):
        others = [row for row in range(30) if row not in batch[:size]]
        rank = {row: participation(x[[*batch[:size], row]]) for row in others}
        chosen = rank[batch[size]]
        allowed = [value for value in rank.values() if value <= high]
        if not allowed:
            assert chosen == pytest.approx(min(rank.values()))
        elif participation(x[batch[:size]]) >= low and any(value >= low for value in allowed):
            assert low - 1e-9 <= chosen <= high + 1e-9
        else:
            assert chosen == pytest.approx(max(allowed))


@given(num_rows=st.integers(1, 30), counts=st.lists(st.integers(0, 9), max_size=8), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_diverse_unseen_draws_without_replacement(num_rows: int, counts: list[int], seed: int) -> None:
    unseen, draw, remaining = Unseen(num_rows), rng(seed), set(range(num_rows))
    for number, count in enumerate(counts):
        taken = unseen.take(count, draw)
        assert len(taken) == min(count, len(remaining)) == len(set(taken.tolist()) & remaining)
        remaining -= set(taken.tolist())
        if number % 2:
            unseen.give_back(taken)
            remaining |= set(taken.tolist())
    assert set(unseen.take(num_rows, draw).tolist()) == remaining


def test_diverse_keeps_the_rank_within_its_bounds() -> None:
    embeddings = planted(spread=0.7)
    ranks = {}
    for name, bounds in {"free": {}, "bounded": {"rank_low": 0.3, "rank_high": 0.4}}.items():
        plan = build("diverse", batch_size=8, **bounds).plan(192, embeddings)
        x = unit_rows(pair_rows(embeddings.z1.numpy(), embeddings.z2.numpy()))
        ranks[name] = np.array([participation(x[batch]) for batch in plan.batches.numpy()])
    assert np.median(ranks["free"]) > 5
    assert np.mean((ranks["bounded"] >= 0.3 * 8) & (ranks["bounded"] <= 0.4 * 8)) > 0.5


def test_peers_are_registered() -> None:
    assert set(PEERS) <= set(SAMPLERS)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("kmeans", {"skip": 30}, "skip 30 names so many of the 32 samples .* at most 28"),
        ("kmeans", {"skip": 6, "block": 8}, "skip 6 names so many of the 8 samples .* at most 4"),
        ("strata", {"k": 33}, "k 33 is above the 32 samples of a pool"),
        ("gcbs", {"degree": 32}, "degree 32 keeps all similarities of a pool of 32 samples"),
    ],
)
def test_check_warns_about_parameters_too_large_for_the_pool(
    name: str, parameters: dict[str, Any], message: str
) -> None:
    sampler = build(name, batch_size=4, **{"pool": None, **parameters})
    with pytest.warns(UserWarning, match=message):
        sampler.check(32)
