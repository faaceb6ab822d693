"""The optima: geometry, closed forms, invariances of the distance, and the theorems."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mbcl.samplers import combinations
from mbcl.synthetic import pairing
from mbcl.synthetic.losses import least_of_restarts
from mbcl.synthetic.optima import Optimum, distance, optimum, rearranged, rearranging_norm
from mbcl.synthetic.pairing import opposites
from mbcl.synthetic.points import Points, clip_losses, similarities

evens = st.integers(1, 6).map(lambda half: 2 * half)


def rotated(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    dim = x.shape[-1]
    return x @ torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))[0]


def simplex(n: int) -> Tensor:
    """(n, n - 1) vertices of a regular simplex, from the centred identity."""
    centred = torch.eye(n, dtype=torch.float64) - 1 / n
    vectors = torch.linalg.svd(centred)[0][:, : n - 1] * math.sqrt(n / (n - 1))
    return vectors / vectors.norm(dim=1, keepdim=True)


def cross_polytope(n: int) -> Tensor:
    eye = torch.eye(n // 2, dtype=torch.float64)
    return torch.stack([eye, -eye], dim=1).reshape(n, n // 2)


def random_order(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def pairings(items: list[int]):
    """All perfect matchings."""
    if not items:
        yield []
        return
    first, *rest = items
    for other in rest:
        left = [item for item in rest if item != other]
        for pairs in pairings(left):
            yield [(first, other), *pairs]


@given(st.integers(2, 12), st.integers(1, 30))
def test_optimum_is_known_for_simplex_and_cross_polytope(n: int, dim: int) -> None:
    best = optimum(n, dim)
    if dim >= n - 1:
        assert best == Optimum("simplex", n)
    elif 2 * dim == n:
        assert best == Optimum("cross_polytope", n)
    else:
        assert best is None


@pytest.mark.parametrize("n", [2, 3, 4, 7, 8, 12])
@pytest.mark.parametrize("kind", ["simplex", "cross_polytope"])
def test_optimum_gram_and_losses_equal_those_of_points(n: int, kind: str) -> None:
    if kind == "cross_polytope" and n % 2:
        return
    best = Optimum(kind, n)
    x = simplex(n) if kind == "simplex" else cross_polytope(n)
    z = x @ x.T
    torch.testing.assert_close(best.gram(), z, rtol=0, atol=1e-12)
    assert best.full_loss == pytest.approx(float(clip_losses(z)), rel=1e-12)
    for size in range(2, n + 1):
        batches = combinations(n, size)
        each = clip_losses(z[batches[:, :, None], batches[:, None, :]])
        assert best.batch_loss(size) == pytest.approx(float(each.mean()), rel=1e-11)
    points = torch.stack([x, x])[:, None]
    _, gradient = Points(points).gradient(torch.arange(n)[None, None])
    assert gradient.abs().max() < 1e-12, "the gradient is zero at the optimum"


@given(st.integers(2, 12), st.integers(0, 5), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_distance_ignores_rotation_and_order(n: int, more: int, seed: int) -> None:
    kinds = [("simplex", torch.cat([simplex(n), torch.zeros(n, more, dtype=torch.float64)], dim=1))]
    if n % 2 == 0:
        kinds.append(("cross_polytope", cross_polytope(n)))
    for kind, x in kinds:
        u = rotated(x, seed)[random_order(n, seed)]
        assert float(distance((u @ u.T)[None], Optimum(kind, n))) < 1e-11


@given(st.integers(2, 5).map(lambda half: 2 * half), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_distance_is_the_least_over_all_pairings(n: int, seed: int) -> None:
    """Against every pairing, for points far from the optimum, where odd cycles occur."""
    generator = torch.Generator().manual_seed(seed)
    z = similarities(torch.randn(2, 1, n, 3, dtype=torch.float64, generator=generator))
    norms = []
    for pairs in pairings(list(range(n))):
        target = torch.eye(n, dtype=torch.float64)
        for a, b in pairs:
            target[a, b] = target[b, a] = -1
        norms.append(float((z[0] - target).norm()))
    assert float(distance(z, Optimum("cross_polytope", n))) == pytest.approx(min(norms), rel=1e-12)


def test_opposites_pairs_across_odd_cycles() -> None:
    """Two triangles: the assignment is a cycle in each, so a pairing must join them."""
    z = np.ones((6, 6))
    for triangle in ((0, 1, 2), (3, 4, 5)):
        for a, b in itertools.permutations(triangle, 2):
            z[a, b] = -1.0
    z[2, 3] = z[3, 2] = -0.5
    assert opposites(z).tolist() == [1, 0, 3, 2, 5, 4]


@pytest.mark.parametrize("first", [1, 8])
def test_opposites_equals_a_blossom_algorithm(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many candidate pairs, and with so few that they contain no perfect matching."""
    networkx = pytest.importorskip("networkx")
    monkeypatch.setattr(pairing, "PAIRS_A_SAMPLE", first)
    searches = []
    program = pairing._integer_program
    monkeypatch.setattr(pairing, "_integer_program", lambda *arguments: searches.append(1) or program(*arguments))
    for seed in range(12):
        n = 30 + 2 * seed
        z = similarities(torch.randn(2, 1, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
        cost = z[0].numpy() + z[0].numpy().T
        graph = networkx.Graph()
        graph.add_weighted_edges_from((a, b, -cost[a, b]) for a, b in itertools.combinations(range(n), 2))
        least = sum(cost[a, b] for a, b in networkx.max_weight_matching(graph, maxcardinality=True))
        partner = opposites(z[0].numpy())
        assert np.array_equal(partner[partner], np.arange(n))
        assert np.all(partner != np.arange(n))
        assert cost[np.arange(n), partner].sum() / 2 == pytest.approx(least, abs=1e-9)
    assert len(searches) > 3


@pytest.mark.parametrize("n", [4, 6, 8])
def test_distance_detects_mismatched_positives_unlike_rearranging_norm(n: int) -> None:
    for kind, x in (("simplex", simplex(n)), ("cross_polytope", cross_polytope(n))):
        best = Optimum(kind, n)
        z = (x @ x.roll(2, dims=0).T)[None]
        assert float(rearranging_norm(z, best)) < 1e-11
        assert float(distance(z, best)) > 1
        assert float(clip_losses(z)) > best.full_loss + 0.1


def slow_rearranged(z: np.ndarray, solution: np.ndarray) -> np.ndarray:
    """The oracle: row by row, target by target."""
    out = np.empty_like(z)
    for i, row in enumerate(z):
        left = list(row)
        for j, target in enumerate(solution[i]):
            nearest = min(range(len(left)), key=lambda place: abs(left[place] - target))
            out[i, j] = left.pop(nearest)
    return out


@given(st.integers(2, 7), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_rearranged_is_greedy_in_each_row(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    z, solution = rng.uniform(-1, 1, (3, n, n)), rng.uniform(-1, 1, (n, n))
    batched = rearranged(torch.from_numpy(z), torch.from_numpy(solution)).numpy()
    np.testing.assert_array_equal(batched, np.stack([slow_rearranged(one, solution) for one in z]))


# -- theorems -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "dim"), [(4, 3), (5, 8), (6, 3), (8, 4), (8, 7), (8, 16)])
@pytest.mark.parametrize("size", [2, 3])
def test_minimisers_of_full_and_all_batches_coincide(n: int, dim: int, size: int) -> None:
    """Both reach the closed form, and the minimiser of one is at the other's optimum."""
    best = optimum(n, dim)
    assert best is not None
    full, x_full = least_of_restarts(torch.arange(n)[None], num_samples=n, dim=dim, restarts=2)
    every, x_every = least_of_restarts(combinations(n, size), num_samples=n, dim=dim, restarts=2)
    assert full == pytest.approx(best.full_loss, abs=1e-9)
    assert every == pytest.approx(best.batch_loss(size), abs=1e-9)
    for x in (x_full, x_every):
        z = similarities(x[:, None])
        assert float(distance(z, best)) < 1e-4
        assert float(clip_losses(z)) == pytest.approx(best.full_loss, abs=1e-8)


@pytest.mark.parametrize(("n", "dim"), [(8, 16), (8, 4)])
def test_minimisers_of_some_batches_differ_from_the_optimum(n: int, dim: int) -> None:
    """A fixed partition, and all pairs except that sample 0 has one partner only."""
    best = optimum(n, dim)
    assert best is not None
    partition = torch.arange(n).view(-1, 2)
    most = torch.tensor([pair for pair in itertools.combinations(range(n), 2) if pair[0] > 0 or pair[1] == 1])
    for batches in (partition, most):
        _, x = least_of_restarts(batches, num_samples=n, dim=dim, restarts=2)
        z = similarities(x[:, None])
        assert float(clip_losses(z)) > best.full_loss + 1e-3
        assert float(distance(z, best)) > 0.1


def test_minimisers_may_differ_without_a_known_optimum() -> None:
    """8 samples in 3 dimensions: no theorem applies, and the minimisers differ."""
    full, _ = least_of_restarts(torch.arange(8)[None], num_samples=8, dim=3, restarts=4)
    _, x = least_of_restarts(combinations(8, 2), num_samples=8, dim=3, restarts=4)
    assert float(clip_losses(similarities(x[:, None]))) > full + 1e-4
