"""Losses, gradients and updates against autograd, ``mbcl.functional.clip`` and a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mbcl.functional import clip
from mbcl.plan import Embeddings
from mbcl.samplers import combinations
from mbcl.synthetic import losses, points
from mbcl.synthetic.losses import least_of_restarts, mean_batch_loss, starting_points
from mbcl.synthetic.points import Points, clip_losses, similarities
from mbcl.synthetic.selections import method_of

runs = st.integers(1, 3)
sizes = st.tuples(st.integers(2, 7), st.integers(1, 5))


def start(num_runs: int, num_samples: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, num_runs, num_samples, dim, dtype=torch.float64, generator=generator)


def batches_of(num_runs: int, num_batches: int, num_samples: int, size: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(num_samples)[:size] for _ in range(num_runs * num_batches)]
    return torch.from_numpy(np.stack(rows)).view(num_runs, num_batches, size)


def loss_by_autograd(x_2ND: Tensor, batches_KB: Tensor) -> Tensor:
    """The oracle: ``mbcl.functional.clip``, batch by batch."""
    return torch.stack([clip(x_2ND[0, rows], x_2ND[1, rows], temperature=1.0) for rows in batches_KB])


@given(runs, sizes, st.integers(2, 7), st.integers(1, 4), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_gradient_equals_autograd(
    num_runs: int, shape: tuple[int, int], size: int, num_batches: int, seed: int
) -> None:
    num_samples, dim = shape
    batches = batches_of(num_runs, num_batches, num_samples, min(size, num_samples), seed)
    x = start(num_runs, num_samples, dim, seed)
    loss, gradient = Points(x).gradient(batches)
    for run in range(num_runs):
        leaf = x[:, run].clone().requires_grad_()
        each = loss_by_autograd(leaf, batches[run])
        each.mean().backward()
        torch.testing.assert_close(loss[run], each.mean().detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient[:, run], leaf.grad, rtol=1e-9, atol=1e-11)


@given(runs, sizes, st.integers(1, 4), st.sampled_from([0.01, 0.5, 3.0]), st.booleans(), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_update_equals_torchs_sgd(
    num_runs: int, shape: tuple[int, int], num_batches: int, lr: float, mean: bool, seed: int
) -> None:
    """Three steps; a sample may be in several batches of a step; runs are independent."""
    num_samples, dim = shape
    x = start(num_runs, num_samples, dim, seed)
    moved, before = Points(x), x.clone()
    leaves = [x[:, run].clone().requires_grad_() for run in range(num_runs)]
    optimizers = [torch.optim.SGD([leaf], lr=lr) for leaf in leaves]
    for step in range(3):
        batches = batches_of(num_runs, num_batches, num_samples, 2, seed + step)
        losses_RK = moved.update(batches, lr=lr, scale=1 / num_batches if mean else 1.0)
        for run, (leaf, optimizer) in enumerate(zip(leaves, optimizers, strict=True)):
            optimizer.zero_grad()
            each = loss_by_autograd(leaf, batches[run])
            (each.mean() if mean else each.sum()).backward()
            optimizer.step()
            torch.testing.assert_close(losses_RK[run], each.detach(), rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(moved.x_2RND[:, run], leaf.detach(), rtol=1e-8, atol=1e-9)
    assert torch.equal(x, before), "the starting points are copied"


def test_update_of_many_batches_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, batches = start(2, 8, 3, 0), combinations(8, 3).expand(2, -1, -1)
    whole, pieces = Points(x), Points(x)
    losses_of_whole = whole.update(batches, lr=0.5, scale=0.1)
    monkeypatch.setattr(points, "CHUNK_ELEMENTS", 500)
    torch.testing.assert_close(pieces.update(batches, lr=0.5, scale=0.1), losses_of_whole, rtol=1e-14, atol=0)
    torch.testing.assert_close(pieces.x_2RND, whole.x_2RND, rtol=1e-12, atol=1e-13)


def test_update_of_many_runs_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One large batch for each run; a chunk holds as many runs as fit into memory."""
    x, batches = start(5, 8, 3, 0), torch.arange(8).expand(5, 1, -1)
    whole, pieces = Points(x), Points(x)
    losses_of_whole = whole.update(batches, lr=0.5)
    monkeypatch.setattr(points, "CHUNK_ELEMENTS", 250)  # 8 x (2 x 3 + 8) for each run: two runs at a time
    torch.testing.assert_close(pieces.update(batches, lr=0.5), losses_of_whole, rtol=1e-14, atol=0)
    torch.testing.assert_close(pieces.x_2RND, whole.x_2RND, rtol=1e-12, atol=1e-13)


@given(sizes, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_clip_losses_ignore_rotation_length_and_order(shape: tuple[int, int], seed: int) -> None:
    num_samples, dim = shape
    x = start(1, num_samples, dim, seed)
    loss = clip_losses(similarities(x))
    rotation = torch.linalg.qr(start(1, dim, dim, seed + 1)[0, 0])[0]
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
    lengths = start(1, num_samples, 1, seed + 2).abs() + 0.1
    for other in (x @ rotation, x[:, :, order], x * lengths, x.flip(0)):
        torch.testing.assert_close(clip_losses(similarities(other)), loss, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("num_samples", "size"), [(9, 2), (9, 4), (12, 3)])
def test_mean_batch_loss_estimate_is_unbiased(num_samples: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of 200 estimates is exact within its error, and the reported standard error equals their spread."""
    x = start(1, num_samples, 3, 0)
    exact, _ = mean_batch_loss(x, size, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    monkeypatch.setattr(losses, "EXACT_BATCHES", 0)
    monkeypatch.setattr(losses, "SAMPLED_BATCHES", 50)
    estimates = [mean_batch_loss(x, size, rng) for _ in range(200)]
    means, errors = np.array([[float(mean), float(error)] for mean, error in estimates]).T
    assert abs(means.mean() - float(exact)) < 4 * means.std() / np.sqrt(200)
    assert errors.mean() == pytest.approx(means.std(), rel=0.2)


def test_mean_batch_loss_estimates_where_batches_are_innumerable(monkeypatch: pytest.MonkeyPatch) -> None:
    """For random points in many dimensions the estimated mean has a small error."""
    x = starting_points(512, 64, 0)[:, None].repeat(1, 2, 1, 1)
    monkeypatch.setattr(losses, "SAMPLED_BATCHES", 200)
    mean, error = mean_batch_loss(x, 64, np.random.default_rng(0))
    assert float(mean[0]) == float(mean[1]), "the same batches for every run"
    assert 0 < float(error[0]) < 0.02 * float(mean[0])


def test_least_of_restarts_returns_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    all_samples, ticks = torch.arange(5)[None], []
    few, _ = least_of_restarts(all_samples, num_samples=5, dim=2, restarts=1)
    more, x = least_of_restarts(all_samples, num_samples=5, dim=2, restarts=4, done=lambda: ticks.append(1))
    assert more <= few
    assert len(ticks) == 4
    x = x[:, None]
    assert more == pytest.approx(float(clip_losses(similarities(x))), rel=1e-12)
    _, gradient = Points(x).gradient(all_samples[None])
    assert gradient.abs().max() < 1e-6
    monkeypatch.setattr(losses, "STEPS", 1)
    assert least_of_restarts(all_samples, num_samples=5, dim=2, restarts=1)[0] > more


def test_the_last_round_of_osgd_leaves_out_random_batches() -> None:
    """Ten updates from rounds of four in ascending order of loss: the last round has two."""
    x_2SND = torch.randn(2, 1, 20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method = method_of("osgd", {"k": 10, "q": 4}, 2, 20)
    places: list[int] = []
    for step in range(200):
        batches = method.batches(x_2SND, [5], step)[0]
        last = method.sampler.plan(20, Embeddings(*x_2SND[:, 0]), seed=5, epoch=step, round=2).batches
        places += [int((last == batch).all(dim=1).nonzero()) for batch in batches[8:]]
        assert len(batches) == 10
        assert places[-2] < places[-1]
    # Each place is one of the two in half of 200 steps: a binomial number with a standard deviation of 7.
    assert (torch.tensor(places).bincount(minlength=4) - 100).abs().max() < 5 * 7.1
