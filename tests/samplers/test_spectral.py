"""Spectral: golden means and eigenvalues, structure, exactness of the assignment, degenerate input."""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import mbcl
from mbcl.errors import ConfigError
from mbcl.functional import affinity, nt_xent
from mbcl.plan import Embeddings
from mbcl.samplers import Spectral
from mbcl.samplers._normalize import unit
from mbcl.samplers._spectral import assign_evenly, normalised_affinity, spectral_embedding

STORED = np.load(Path(__file__).parents[1] / "golden" / "sc_even.npz")
LARGE, SMALL = (0, 1, 2), (3, 4, 5)


def case(number: int) -> dict[str, np.ndarray]:
    return {key.split("_", 1)[1]: STORED[key] for key in STORED.files if key.startswith(f"c{number}_")}


def mean_loss(batches: np.ndarray, get: dict[str, np.ndarray], dtype: type = np.float64) -> np.ndarray:
    u, v = (torch.from_numpy(get[side].astype(dtype)[batches]) for side in "uv")
    return nt_xent(u, v, temperature=float(get["tau"])).numpy()


def plan_as_published(get: dict[str, np.ndarray], seed: int) -> np.ndarray:
    """The stored order, cut in whole chunks."""
    sampler = Spectral(batch_size=int(get["B"]), k=int(get["k"]), temperature=float(get["tau"]))
    size = int(get["B"]) * int(get["k"])
    rows = []
    for start in range(0, len(get["idx"]) - size + 1, size):
        ids = get["idx"][start : start + size]
        rows.append(ids[sampler.plan_pool(get["u"][ids], get["v"][ids], seed).rows])
    return np.concatenate(rows)


@pytest.mark.parametrize("number", LARGE + SMALL)
def test_spectral_reaches_the_golden_mean_loss(number: int) -> None:
    """The mean of five k-means seeds within 2 %, every plan within 10 %, far above random."""
    get = case(number)
    expected = get["mean_losses_ninit10"].mean()
    losses = []
    for seed in range(5):
        plan = plan_as_published(get, seed)
        assert plan.shape == get["plan"].shape
        assert len(np.unique(plan)) == plan.size
        losses.append(mean_loss(plan, get).mean())
    assert np.mean(losses) >= 0.98 * expected
    assert np.min(losses) >= 0.9 * expected
    random = get["random_mean_losses"]
    assert np.min(losses) > random.mean() + 10 * random.std()


@pytest.mark.parametrize("number", LARGE + SMALL)
def test_normalised_affinity_has_the_golden_eigenvalues(number: int) -> None:
    get = case(number)
    np.testing.assert_allclose(mean_loss(get["plan"], get), get["plan_losses_f64"], rtol=1e-5)
    np.testing.assert_allclose(mean_loss(get["plan"], get, np.float32), get["plan_losses_f32"], rtol=1e-5)
    np.testing.assert_allclose(mean_loss(get["random_plan"], get), get["random_losses_f64"], rtol=1e-5)
    ids = get["idx"][: int(get["B"]) * int(get["k"])]
    n, _ = normalised_affinity(
        *(unit(torch.from_numpy(get[side][ids]).double()) for side in "uv"),
        temperature=float(get["tau"]),
        batch_size=int(get["B"]),
    )
    assert n.dtype == torch.float32
    values = np.linalg.eigvalsh(n.double().numpy())[::-1]
    expected = np.sort(get["eigvals_chunk0"])[::-1]
    np.testing.assert_allclose(values[: len(expected)], expected, atol=1e-6)


def test_plan_pool_orders_rows_and_batches() -> None:
    z = np.random.default_rng(0).normal(size=(2, 48, 4))
    rows = Spectral(batch_size=8, k=6).plan_pool(z[0], z[1], 0).rows
    assert (np.diff(rows, axis=1) > 0).all()
    assert (np.diff(rows[:, 0]) > 0).all()
    assert sorted(rows.flatten()) == list(range(48))


def test_plan_pool_recovers_planted_clusters() -> None:
    """Eight tight directions of eight samples each: every batch is one direction."""
    centres = np.repeat(np.eye(8), 8, axis=0)
    z = centres + 0.05 * np.random.default_rng(0).normal(size=(2, 64, 8))
    rows = Spectral(batch_size=8, k=8).plan_pool(z[0], z[1], 0).rows
    np.testing.assert_array_equal(rows, np.arange(64).reshape(8, 8))


def test_plan_pool_ignores_row_lengths() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 48, 4))
    scaled = z * rng.choice([0.25, 1.0, 4.0], size=(2, 48, 1))  # powers of two: exact
    sampler = Spectral(batch_size=8, k=6)
    np.testing.assert_array_equal(sampler.plan_pool(z[0], z[1], 3).rows, sampler.plan_pool(*scaled, 3).rows)


@given(seed=st.integers(0, 2**31), clusters=st.integers(2, 3), capacity=st.integers(1, 2))
@settings(max_examples=20, deadline=None)
def test_assign_evenly_is_the_best_of_all_assignments(seed: int, clusters: int, capacity: int) -> None:
    rng = np.random.default_rng(seed)
    x, centres = rng.normal(size=(clusters * capacity, 2)), rng.normal(size=(clusters, 2))
    distance = np.linalg.norm(x[:, None] - centres[None], axis=2)  # not squared
    cluster = assign_evenly(distance, capacity)
    assert np.bincount(cluster).tolist() == [capacity] * clusters
    slots = np.repeat(np.arange(clusters), capacity)
    best = min(sum(distance[i, c] for i, c in enumerate(order)) for order in itertools.permutations(slots))
    assert sum(distance[i, c] for i, c in enumerate(cluster)) == pytest.approx(best)


def test_spectral_embedding_equals_the_formula() -> None:
    """With moderate weights the log domain equals the formula."""
    z = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_w = affinity(z[0], z[1], temperature=1.0, batch_size=4).numpy()
    w = np.exp(log_w)
    np.fill_diagonal(w, 0)
    degree = w.sum(axis=1)
    normalised = w / np.sqrt(np.outer(degree, degree))
    u, v = unit(z[0]), unit(z[1])
    n, log_degree = normalised_affinity(u, v, temperature=1.0, batch_size=4)
    np.testing.assert_allclose(n, normalised, rtol=1e-6)
    np.testing.assert_allclose(log_degree.exp(), degree, rtol=1e-6)
    x = spectral_embedding(n.numpy(), log_degree.numpy(), 3)
    q = x * np.sqrt(degree / degree.min())[:, None]
    np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(normalised @ q, q * np.linalg.eigvalsh(normalised)[-3:], atol=1e-5)
    np.testing.assert_allclose(x[:, -1], x[0, -1], rtol=1e-4)  # the constant vector is kept


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
def test_normalised_affinity_agrees_with_the_log_domain(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 0.02 both are the log domain."""
    u, v = (unit(z) for z in torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    n, log_degree = normalised_affinity(u, v, temperature=temperature, batch_size=8)
    monkeypatch.setattr("mbcl.samplers._spectral.LARGEST_EXPONENT", 0.0)
    slow_n, slow_log_degree = normalised_affinity(u, v, temperature=temperature, batch_size=8)
    # Exponents of up to 10 carry float32's rounding into the weights.
    np.testing.assert_allclose(n, slow_n, rtol=5e-6)
    np.testing.assert_allclose(log_degree, slow_log_degree, rtol=1e-6)


def test_normalised_affinity_is_finite_up_to_the_bound() -> None:
    """Opposite views of the largest exponent, with 20,000 samples' worth of degree to spare."""
    temperature, batch_size = 4 / (75 - 2 * math.log(32) - 0.01), 32
    u = unit(torch.tensor([[1.0, 0.0], [-1.0, 1e-3]]).repeat(32, 1))
    n, log_degree = normalised_affinity(u, -u, temperature=temperature, batch_size=batch_size)
    assert bool(n.isfinite().all())
    w = affinity(u.double(), -u.double(), temperature=temperature, batch_size=batch_size).fill_diagonal_(-math.inf)
    np.testing.assert_allclose(log_degree, w.logsumexp(dim=1), rtol=1e-6)


@given(seed=st.integers(0, 2**31), clusters=st.integers(1, 6), capacity=st.integers(1, 5), ties=st.booleans())
@settings(max_examples=60, deadline=None)
def test_assign_evenly_has_the_cost_of_scipys_assignment(seed: int, clusters: int, capacity: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.integers(0, 3 if ties else 1000, size=(clusters * capacity, clusters)).astype(float)
    cluster = assign_evenly(cost, capacity)
    assert np.bincount(cluster, minlength=clusters).tolist() == [capacity] * clusters
    row, copy = linear_sum_assignment(np.repeat(cost, capacity, axis=1))
    assert cost[np.arange(len(cost)), cluster].sum() == cost[row, copy // capacity].sum()


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.05, 0.1, 10.0])
def test_spectral_covers_all_at_any_temperature(temperature: float) -> None:
    z = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    for z2 in (z[1], -z[0], z[0]):
        plan = Spectral(batch_size=8, k=4, temperature=temperature).plan(64, Embeddings(z[0], z2))
        assert plan.coverage(64) == 1


def test_spectral_plans_groups_of_duplicates_in_bounded_time() -> None:
    for rows in (torch.zeros(1280, 8), torch.ones(1280, 8), torch.randn(20, 8).repeat(64, 1)):
        assert Spectral(batch_size=32, k=40).plan(1280, Embeddings(rows, rows)).coverage(1280) == 1


def test_pool_sizes_put_the_rest_into_the_last_group() -> None:
    sampler = Spectral(batch_size=4, k=3)
    assert sampler.pool_sizes(24) == [12, 12]
    assert sampler.pool_sizes(31) == [12, 12, 4]  # a single batch
    assert sampler.plan_length(31) == 7
    z = torch.randn(31, 3, generator=torch.Generator().manual_seed(0))
    assert sampler.plan(31, Embeddings(z, z)).batches.shape == (7, 4)
    assert Spectral(batch_size=4, k=None).pool_sizes(31) == [28]


def test_spectral_warns_about_a_group_above_the_data_set() -> None:
    z = torch.randn(31, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"40 \* 4 is above the 31 samples .* one group of 7 batches"):
        plan = Spectral(batch_size=4, k=40).plan(31, Embeddings(z, z))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(plan.batches, Spectral(batch_size=4, k=None).plan(31, Embeddings(z, z)).batches)


def test_spectral_refuses_bad_parameters() -> None:
    for k in (0, -1, 2.5, "all"):
        with pytest.raises(ConfigError, match=f"k must be a whole number >= 1, found {k!r}"):
            mbcl.samplers.build("spectral", batch_size=4, k=k)
    with pytest.raises(ConfigError, match="temperature must be > 0, found 0"):
        mbcl.samplers.build("spectral", batch_size=4, temperature=0)
    with pytest.raises(ConfigError, match="group of 50000 samples is above the 20000"):
        mbcl.samplers.build("sc_even", batch_size=4, k=None).check(50_000)
