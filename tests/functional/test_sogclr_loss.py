"""SogCLR's surrogate loss as a function: golden numbers of one process, a slow oracle, ranks, range, precision."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbcl.errors import ConfigError
from mbcl.functional import check_moving_temperature, dcl, sogclr

DDP = np.load(Path(__file__).parents[1] / "golden" / "ddp.npz")


def views(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(2)]


def averages(seed: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Old u, and one gamma for each sample; some are 1."""
    generator = torch.Generator().manual_seed(seed + 1)
    u, gamma = torch.rand(2, size, generator=generator, dtype=torch.float64)
    return 5 * u + 0.1, torch.where(gamma < 0.3, 1.0, gamma)


def oracle(
    z1: torch.Tensor, z2: torch.Tensor, u: torch.Tensor, gamma: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, list[float]]:
    """The published sum, one pair at a time, with weights that have no gradient."""
    a, b = ([row / row.norm() for row in z] for z in (z1, z2))
    size = len(a)
    num_negatives = 2 * (size - 1)
    total, new = torch.zeros((), dtype=torch.float64), []
    for i in range(size):
        averages = []
        for this, other in ((a, b), (b, a)):
            s = [this[i] @ other[j] for j in range(size) if j != i] + [this[i] @ this[j] for j in range(size) if j != i]
            g = sum(math.exp(x.item() / temperature) for x in s) / num_negatives
            averages.append((1 - gamma[i].item()) * u[i].item() + gamma[i].item() * g)
            total = total - this[i] @ other[i]
            total = total + sum(math.exp(x.item() / temperature) / averages[-1] * x for x in s) / num_negatives
        new.append(sum(averages) / 2)
    return total / size, new


@given(seed=st.integers(0, 2**31), size=st.integers(2, 6), temperature=st.sampled_from([0.05, 0.5, 2.0]))
@settings(max_examples=30, deadline=None)
def test_sogclr_equals_the_oracle(seed: int, size: int, temperature: float) -> None:
    """Value, new u, and the gradient; the weights have none."""
    z1, z2 = (z.requires_grad_() for z in views(seed, size, 3))
    u, gamma = averages(seed, size)
    loss, new = sogclr(z1, z2, u=u, gamma=gamma, temperature=temperature)
    expected, expected_new = oracle(z1, z2, u, gamma, temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(new.numpy(), expected_new, rtol=1e-10)
    assert not new.requires_grad
    for gradient, slow in zip(
        torch.autograd.grad(loss, [z1, z2]), torch.autograd.grad(expected, [z1, z2]), strict=True
    ):
        torch.testing.assert_close(gradient, slow, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("case", range(int(DDP["n_cases"])))
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_sogclr_equals_golden_values_of_the_first_step(case: int, ranks: int) -> None:
    """The shares of any number of ranks add up to the loss and gradient of one process."""
    get = {key.split("_", 1)[1]: DDP[key] for key in DDP.files if key.startswith(f"c{case}_")}
    for dtype, suffix in ((torch.float64, "f64"), (torch.float32, "f32")):
        weight, bias = (torch.tensor(get[key], dtype=dtype, requires_grad=True) for key in ("W", "b"))
        z1, z2 = (torch.tensor(get[key], dtype=dtype) @ weight.T + bias for key in ("x1", "x2"))
        local = len(z1) // ranks
        parts = [
            sogclr(
                z1[r : r + local],
                z2[r : r + local],
                u=torch.zeros(local),
                gamma=1.0,
                temperature=float(get["tau"]),
                candidates1=z1,
                candidates2=z2,
                offset=r,
            )
            for r in range(0, len(z1), local)
        ]
        total = torch.stack([loss for loss, _ in parts]).sum()
        assert total.dtype == dtype
        of_largest = 1e-9 if suffix == "f64" else 2e-5
        np.testing.assert_allclose(total.item(), get["sog_full_loss_f64"], **_tolerance(suffix))
        for gradient, key in zip(torch.autograd.grad(total, [weight, bias]), ("W", "b"), strict=True):
            expected = get[f"sog_full_{key}_f64"]
            np.testing.assert_allclose(
                gradient.numpy(), expected, rtol=0, atol=of_largest * float(np.abs(expected).max())
            )
        u = torch.cat([new for _, new in parts])
        assert u.dtype == torch.float64
        rtol = 1e-9 if suffix == "f64" else 5e-6
        np.testing.assert_allclose(u.numpy(), get[f"sog_full_u_{suffix}"][get["index"]], rtol=rtol)


def _tolerance(suffix: str) -> dict[str, float]:
    return {"rtol": 1e-9} if suffix == "f64" else {"rtol": 0.0, "atol": 1e-6}


@given(seed=st.integers(0, 2**31), ranks=st.sampled_from([1, 2, 3, 6]))
@settings(max_examples=12, deadline=None)
def test_sogclr_shares_of_ranks_sum_to_the_whole_batch(seed: int, ranks: int) -> None:
    whole = [z.requires_grad_() for z in views(seed, 6, 4)]
    u, gamma = averages(seed, 6)
    expected, expected_new = sogclr(*whole, u=u, gamma=gamma, temperature=0.1)
    local = 6 // ranks
    parts = [
        sogclr(
            *(z[r : r + local] for z in whole),
            u=u[r : r + local],
            gamma=gamma[r : r + local],
            temperature=0.1,
            candidates1=whole[0],
            candidates2=whole[1],
            offset=r,
        )
        for r in range(0, 6, local)
    ]
    total = torch.stack([loss for loss, _ in parts]).sum()
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(torch.cat([new for _, new in parts]), expected_new, rtol=1e-13, atol=0)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(total, whole), torch.autograd.grad(expected, whole), strict=True
    ):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


@given(seed=st.integers(0, 2**31), size=st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_sogclr_ignores_order_views_and_lengths(seed: int, size: int) -> None:
    z1, z2 = views(seed, size, 4)
    u, gamma = averages(seed, size)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(size, generator=generator)
    lengths = torch.rand(size, 1, generator=generator, dtype=torch.float64) + 0.1
    loss, new = sogclr(z1, z2, u=u, gamma=gamma, temperature=0.1)
    for other, other_new, expected_new in (
        (*sogclr(z1[order], z2[order], u=u[order], gamma=gamma[order], temperature=0.1), new[order]),
        (*sogclr(z2, z1, u=u, gamma=gamma, temperature=0.1), new),
        (*sogclr(z1 * lengths, z2, u=u, gamma=gamma, temperature=0.1), new),
    ):
        torch.testing.assert_close(other, loss, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(other_new, expected_new, rtol=1e-10, atol=0)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_sogclr_gradient_with_gamma_one_is_dcls(temperature: float) -> None:
    z1, z2 = (z.requires_grad_() for z in views(1, 6, 4))
    loss, _ = sogclr(z1, z2, u=torch.zeros(6), gamma=1.0, temperature=temperature)
    decoupled = 2 * temperature * dcl(z1, z2, temperature=temperature)
    for gradient, expected in zip(
        torch.autograd.grad(loss, [z1, z2]), torch.autograd.grad(decoupled, [z1, z2]), strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_sogclr_takes_a_scalar_gamma_and_leading_dimensions() -> None:
    z1, z2 = views(2, 3, 5, 4)
    u, _ = averages(2, 5)
    losses, new = sogclr(z1, z2, u=u.expand(3, 5), gamma=0.7, temperature=0.2)
    assert losses.shape == (3,)
    assert new.shape == (3, 5)
    one, one_new = sogclr(z1[1], z2[1], u=u, gamma=torch.full((5,), 0.7, dtype=torch.float64), temperature=0.2)
    torch.testing.assert_close(losses[1], one)
    torch.testing.assert_close(new[1], one_new)


def test_sogclr_equals_hand_values() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    loss, new = sogclr(eye, eye, u=torch.tensor([3.0, 0.0]), gamma=0.5, temperature=1.0)
    torch.testing.assert_close(new, torch.tensor([2.0, 0.5], dtype=torch.float64))  # g = exp(0) = 1
    assert loss.item() == pytest.approx(-2)
    same = torch.ones(2, 3, dtype=torch.float64)
    loss, new = sogclr(same, same, u=torch.zeros(2), gamma=1.0, temperature=0.5)
    assert loss.item() == pytest.approx(0)  # every weight is 1, every cosine 1
    assert new.tolist() == pytest.approx([math.exp(2)] * 2)


@pytest.mark.parametrize("temperature", [0.002, 0.01])
@pytest.mark.parametrize("arrangement", ["random", "opposite", "all equal", "orthogonal"])
def test_sogclr_is_finite_at_small_temperatures(temperature: float, arrangement: str) -> None:
    z1, z2 = views(3, 8, 8, dtype=torch.float32)
    match arrangement:
        case "opposite":
            z2 = -z1
        case "all equal":
            z1, z2 = torch.ones(8, 8), torch.ones(8, 8)
        case "orthogonal":
            z1, z2 = torch.eye(8), torch.eye(8)
    z1, z2 = z1.requires_grad_(), z2.requires_grad_()
    u = torch.zeros(8, dtype=torch.float64)
    for gamma in (1.0, 0.9):
        exact, _ = sogclr(z1.detach().double(), z2.detach().double(), u=u, gamma=gamma, temperature=temperature)
        loss, u = sogclr(z1, z2, u=u, gamma=gamma, temperature=temperature)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert u.dtype == torch.float64
        assert torch.isfinite(u).all()
        assert (u > 0).all()
        for gradient in torch.autograd.grad(loss, [z1, z2]):
            assert torch.isfinite(gradient).all()
        torch.testing.assert_close(loss.double(), exact, rtol=1e-3, atol=1e-3)
    if arrangement == "all equal":
        assert u.min() > 3.5e38  # beyond float32


def test_sogclr_computes_in_float32_or_more() -> None:
    z1, z2 = (z.requires_grad_() for z in views(4, 8, 4, dtype=torch.float32))
    u, gamma = averages(4, 8)
    for half in (torch.float16, torch.bfloat16):
        low = [z1.to(half), z2.to(half)]
        widened = sogclr(*low, u=u, gamma=gamma, temperature=0.1)
        assert widened[0].dtype == torch.float32
        for a, b in zip(widened, sogclr(*(z.float() for z in low), u=u, gamma=gamma, temperature=0.1), strict=True):
            assert torch.equal(a, b)
    outside = sogclr(z1, z2, u=u, gamma=gamma, temperature=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sogclr(z1, z2, u=u, gamma=gamma, temperature=0.1)
    for a, b in zip(inside, outside, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.autograd.grad(inside[0], z1)[0], torch.autograd.grad(outside[0], z1)[0])


def test_sogclr_refuses_bad_input() -> None:
    eye, u = torch.eye(3), torch.zeros(3)
    for temperature in (0.0, -1.0, math.nan, math.inf, True, "warm", 0.0019):
        with pytest.raises(ConfigError, match=f"temperature must be .*found {temperature!r}"):
            sogclr(eye, eye, u=u, gamma=1.0, temperature=temperature)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"temperature must be >= 0\.002 for sogclr, .*, found 0\.001$"):
        check_moving_temperature(0.001)
    assert check_moving_temperature(0.002) == 0.002
    with pytest.raises(ValueError, match=r"must be \(3,\), found \(2,\) and \(\)"):
        sogclr(eye, eye, u=u[:2], gamma=1.0, temperature=0.1)
    with pytest.raises(ValueError, match=r"must be \(3,\), found \(3,\) and \(2,\)"):
        sogclr(eye, eye, u=u, gamma=torch.ones(2), temperature=0.1)
    with pytest.raises(ValueError, match="at least 2 samples"):
        sogclr(eye[:1], eye[:1], u=u[:1], gamma=1.0, temperature=0.1)
    with pytest.raises(ValueError, match="offset 1"):
        sogclr(eye, eye, u=u, gamma=1.0, temperature=0.1, candidates1=eye, candidates2=eye, offset=1)
