"""SogCLR as a module: golden steps, first touch, ranks, age."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbcl.objectives import Candidates, SogCLR, StatefulObjective

GOLDEN = Path(__file__).parents[1] / "golden"
STORED = np.load(GOLDEN / "sogclr.npz")
DDP = np.load(GOLDEN / "ddp.npz")


def batch(seed: int, size: int = 4, num_samples: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = (torch.randn(size, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return z1, z2, torch.randperm(num_samples, generator=generator)[:size]


@pytest.mark.parametrize("case", range(int(STORED["n_cases"])))
@pytest.mark.parametrize("dtype, suffix", [(torch.float64, "f64"), (torch.float32, "f32")])
def test_sogclr_equals_golden_steps(case: int, dtype: torch.dtype, suffix: str) -> None:
    prefix = f"c{case}"
    num_samples, gamma, temperature = (STORED[f"{prefix}_{key}"] for key in ("n_data", "gamma", "T"))
    objective = SogCLR(
        num_samples=int(num_samples), temperature=float(temperature), gamma=float(gamma), first_touch="batch"
    )
    loss_atol, of_largest, u_rtol = (1e-9, 1e-9, 1e-9) if suffix == "f64" else (1e-6, 2e-5, 5e-6)
    for step in range(int(STORED[f"{prefix}_n_steps"])):
        names = ("hidden1", "hidden2", "index", "loss_f64", f"loss_{suffix}", "grad1_f64", "grad2_f64")
        get = {name: STORED[f"{prefix}_s{step}_{name}"] for name in names}
        u_after = STORED[f"{prefix}_s{step}_u_after_{suffix}"]
        z1, z2 = (torch.tensor(get[name], dtype=dtype, requires_grad=True) for name in ("hidden1", "hidden2"))
        loss = objective(z1, z2, torch.tensor(get["index"]))
        assert loss.dtype == dtype
        for name in ("loss_f64", f"loss_{suffix}"):
            np.testing.assert_allclose(loss.item(), get[name], rtol=0, atol=loss_atol)
        for gradient, name in zip(torch.autograd.grad(loss, [z1, z2]), ("grad1_f64", "grad2_f64"), strict=True):
            largest = float(np.abs(get[name]).max())
            np.testing.assert_allclose(gradient.numpy(), get[name], rtol=0, atol=of_largest * largest)
        assert objective.u.dtype == torch.float64
        np.testing.assert_allclose(objective.u.numpy(), u_after, rtol=u_rtol)
        assert objective.num_updates.item() == step + 1


@pytest.mark.parametrize("case", range(int(DDP["n_cases"])))
@pytest.mark.parametrize("first_touch", ["sample", "batch"])
@pytest.mark.parametrize("dtype, suffix", [(torch.float64, "f64"), (torch.float32, "f32")])
def test_sogclr_of_two_processes_equals_golden_values(
    case: int, first_touch: str, dtype: torch.dtype, suffix: str
) -> None:
    """The sum of the shares equals one process; u after the commit equals the published u of each rank."""
    get = {key.split("_", 1)[1]: DDP[key] for key in DDP.files if key.startswith(f"c{case}_")}
    weight, bias = (torch.tensor(get[key], dtype=dtype, requires_grad=True) for key in ("W", "b"))
    z1, z2 = (torch.tensor(get[key], dtype=dtype) @ weight.T + bias for key in ("x1", "x2"))
    indices = torch.tensor(get["index"])
    world_size, local = int(get["world_size"]), len(z1) // int(get["world_size"])
    ranks = [
        SogCLR(num_samples=int(get["n_data"]), temperature=float(get["tau"]), first_touch=first_touch)  # type: ignore[arg-type]
        for _ in range(world_size)
    ]
    total = torch.zeros((), dtype=dtype)
    for r, rank in enumerate(ranks):
        rows = slice(r * local, (r + 1) * local)
        total = total + rank(z1[rows], z2[rows], indices[rows], candidates=Candidates(z1, z2, rows.start, indices))
    exact = suffix == "f64"
    np.testing.assert_allclose(
        total.item(), get["sog_full_loss_f64"], rtol=1e-9 if exact else 0, atol=0 if exact else 1e-6
    )
    for gradient, key in zip(torch.autograd.grad(total, [weight, bias]), ("W", "b"), strict=True):
        expected = get[f"sog_full_{key}_f64"]
        largest = float(np.abs(expected).max())
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=(1e-9 if exact else 2e-5) * largest)
    pending = torch.cat([rank.pending for rank in ranks if rank.pending is not None])
    for r, rank in enumerate(ranks):
        assert rank.u.eq(0).all()
        rank.commit(indices, pending)
        for expected in (get[f"sog_u_ranks_{suffix}"][r], get[f"sog_full_u_{suffix}"]):
            np.testing.assert_allclose(rank.u.numpy(), expected, rtol=1e-9 if exact else 5e-6)


def slow_u(batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], gamma: float, temperature: float) -> dict:
    """u of every visited sample, with first touch by sample, in a plain loop."""
    u: dict[int, float] = {}
    for z1, z2, indices in batches:
        a, b = ([row / row.norm() for row in z] for z in (z1, z2))
        others = {i: [j for j in range(len(a)) if j != i] for i in range(len(a))}
        new = {}
        for i, index in enumerate(indices.tolist()):
            views = []
            for this, other in ((a, b), (b, a)):
                terms = [math.exp(float(this[i] @ side[j]) / temperature) for side in (this, other) for j in others[i]]
                g = sum(terms) / len(terms)
                views.append((1 - gamma) * u[index] + gamma * g if index in u else g)
            new[index] = sum(views) / 2
        u.update(new)
    return u


@given(seed=st.integers(0, 2**20), gamma=st.sampled_from([0.1, 0.9, 1.0]), temperature=st.sampled_from([0.1, 0.5]))
@settings(max_examples=15, deadline=None)
def test_sogclr_first_touch_of_a_sample_equals_the_oracle(seed: int, gamma: float, temperature: float) -> None:
    objective = SogCLR(num_samples=10, temperature=temperature, gamma=gamma)
    batches = [batch(seed + step) for step in range(5)]
    for one in batches:
        objective(*one)
    expected = slow_u(batches, gamma, temperature)
    for index in range(10):
        assert objective.u[index].item() == pytest.approx(expected.get(index, 0.0), rel=1e-10)
        assert (objective.visited_at[index] >= 0).item() == (index in expected)


def test_sogclr_first_touch_matters_in_partly_unseen_batches_only() -> None:
    z1, z2, _ = batch(0)
    seen, mixed = torch.tensor([0, 1, 2, 3]), torch.tensor([2, 3, 4, 5])
    by_sample, by_batch = (SogCLR(num_samples=10, gamma=0.9, first_touch=how) for how in ("sample", "batch"))  # type: ignore[arg-type]
    assert torch.equal(by_sample(z1, z2, seen), by_batch(z1, z2, seen))
    assert torch.equal(by_sample.u, by_batch.u)
    by_sample(z1, z2, mixed)
    by_batch(z1, z2, mixed)
    torch.testing.assert_close(by_batch.u[:4], by_sample.u[:4])
    torch.testing.assert_close(by_batch.u[4:6], 0.9 * by_sample.u[4:6])


def test_sogclr_first_touch_of_a_batch_spans_all_ranks() -> None:
    """Rank 1 holds unseen samples only, but the samples of rank 0 have been seen."""
    z1, z2, _ = batch(0)
    indices = torch.tensor([0, 1, 4, 5])
    alone, rank = (SogCLR(num_samples=10, first_touch="batch") for _ in range(2))
    for objective in (alone, rank):
        objective.commit(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    alone(z1, z2, indices)
    rank(z1[2:], z2[2:], indices[2:], candidates=Candidates(z1, z2, 2, indices))
    assert rank.pending is not None
    torch.testing.assert_close(rank.pending, alone.u[4:6])
    with pytest.raises(ValueError, match="indices are required"):
        rank(z1[2:], z2[2:], indices[2:], candidates=Candidates(z1, z2, 2))


@given(
    seed=st.integers(0, 2**20), ranks=st.sampled_from([1, 2, 3, 6]), first_touch=st.sampled_from(["sample", "batch"])
)
@settings(max_examples=15, deadline=None)
def test_sogclr_on_ranks_equals_one_process(seed: int, ranks: int, first_touch: str) -> None:
    """Loss, gradients and state over several steps."""
    alone, *many = (SogCLR(num_samples=10, first_touch=first_touch) for _ in range(ranks + 1))  # type: ignore[arg-type]
    local = 6 // ranks
    for step in range(4):
        z1, z2, indices = batch(seed + step, size=6)
        z1, z2 = z1.requires_grad_(), z2.requires_grad_()
        expected = alone(z1, z2, indices)
        shares = []
        for r, rank in enumerate(many):
            rows = slice(r * local, (r + 1) * local)
            shares.append(rank(z1[rows], z2[rows], indices[rows], candidates=Candidates(z1, z2, rows.start, indices)))
        total = torch.stack(shares).sum()
        torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-12)
        for gradient, expected_gradient in zip(
            torch.autograd.grad(total, [z1, z2]), torch.autograd.grad(expected, [z1, z2]), strict=True
        ):
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-11)
        pending = torch.cat([rank.pending for rank in many if rank.pending is not None])
        assert len(pending) == 6
        for rank in many:
            rank.commit(indices, pending)
            assert rank.pending is None
            torch.testing.assert_close(rank.state_dict(), alone.state_dict(), rtol=1e-12, atol=0)


def test_sogclr_updates_its_state_in_training_only() -> None:
    z1, z2, indices = batch(0)
    objective = SogCLR(num_samples=10)
    before = copy.deepcopy(objective.state_dict())
    candidates = Candidates(z1, z2, 0, indices)
    objective(z1[:2].requires_grad_(), z2[:2], indices[:2], candidates=candidates)
    assert objective.pending is not None
    assert objective.pending.shape == (2,)
    assert objective.pending.dtype == torch.float64
    assert not objective.pending.requires_grad
    objective.eval()
    objective(z1, z2, indices)
    objective(z1, z2, indices, candidates=candidates)
    assert objective.pending is None
    torch.testing.assert_close(objective.state_dict(), before, rtol=0, atol=0)
    objective.train()
    objective(z1, z2, indices)
    assert objective.pending is None
    assert objective.u[indices].gt(0).all()
    assert objective.num_updates == 1
    objective.eval()
    assert torch.equal(objective(z1, z2, indices), objective(z1, z2, indices))
    assert objective.num_updates == 1


def test_sogclr_age_is_the_mean_over_visited_samples() -> None:
    objective = SogCLR(num_samples=6)
    assert isinstance(objective, StatefulObjective)
    assert objective.age() is None
    one, two = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0])
    objective.commit(torch.tensor([0, 1]), one)
    assert objective.age() == 0
    assert objective.visited_at.tolist() == [1, 1, -1, -1, -1, -1]
    objective.commit(torch.tensor([2, 3]), one)
    assert objective.age() == 0.5  # 1, 1, 0, 0
    objective.commit(torch.tensor([0, 2]), two)
    assert objective.age() == 0.75  # 0, 2, 0, 1
    assert objective.num_updates.item() == 3
    assert objective.u.tolist() == [2, 1, 2, 1, 0, 0]
