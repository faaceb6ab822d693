"""The baseline equals the published planner: golden affinity, golden losses of plans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mbcl.bench.published import STAGES, _affinity, plan_published
from mbcl.functional import nt_xent

GOLDEN = Path(__file__).parents[1] / "golden"
AFFINITY = np.load(GOLDEN / "affinity.npz")
PLANS = np.load(GOLDEN / "sc_even.npz")


@pytest.mark.parametrize("number", range(12))
def test_affinity_equals_golden_values(number):
    u, v, t, batch_size, log_w = (AFFINITY[f"c{number}_{key}"] for key in ("u_raw", "v_raw", "t", "B", "aff_f32"))
    with np.errstate(over="ignore"):  # the published code overflows at low temperatures
        weights = _affinity(u, v, int(batch_size), float(t))
        expected = np.exp(log_w)
    np.fill_diagonal(expected, 0.0)
    finite = np.isfinite(expected)
    # One part in 1e6 of the largest logarithm: rows are normalised in float32.
    assert np.allclose(weights[finite], expected[finite], rtol=2e-6 * np.abs(log_w).max(), atol=0)
    assert np.isinf(weights[~finite]).all()


def plan_stored_case(number: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
    """The first chunk of a stored case: its embeddings in the stored order, and the plan."""
    get = {key: PLANS[f"c{number}_{key}"] for key in ("u", "v", "idx", "B", "k", "tau")}
    size = int(get["B"] * get["k"])
    u, v = (get[side][get["idx"][:size]] for side in "uv")
    rows, stages = plan_published(u, v, batch_size=int(get["B"]), temperature=float(get["tau"]), seed=seed)
    return u, v, rows, stages


def mean_loss(u: np.ndarray, v: np.ndarray, rows: np.ndarray) -> float:
    return float(nt_xent(torch.from_numpy(u[rows]), torch.from_numpy(v[rows]), temperature=0.1).mean())


@pytest.mark.parametrize("number", [3, 4, 5])
def test_plan_published_has_the_golden_loss_of_small_cases(number):
    loss = np.mean([mean_loss(*plan_stored_case(number, seed)[:3]) for seed in range(5)])
    assert loss == pytest.approx(PLANS[f"c{number}_mean_losses_ninit1"].mean(), rel=0.05)


def test_plan_published_has_the_golden_loss_of_a_pool_of_1280():
    """One plan; the golden notes allow 10 % for it. Random batches are 85 % away."""
    u, v, rows, stages = plan_stored_case(0, seed=0)
    assert mean_loss(u, v, rows) == pytest.approx(PLANS["c0_mean_losses_ninit1"].mean(), rel=0.10)
    assert sorted(rows.ravel()) == list(range(1280))
    assert (np.diff(rows, axis=1) > 0).all()
    assert (np.diff(rows[:, 0]) > 0).all()
    assert tuple(stages) == STAGES
    assert min(stages.values()) >= 0
    assert max(stages, key=lambda stage: stages[stage]) == "assignment"


def test_plan_published_times_its_stages_with_the_given_clock():
    u, v = (np.random.default_rng(side).standard_normal((24, 4)).astype(np.float32) for side in (0, 1))
    ticks = iter(range(0, 100, 7))
    _, stages = plan_published(u, v, batch_size=8, clock=lambda: float(next(ticks)))
    assert stages == dict.fromkeys(STAGES, 7.0)
