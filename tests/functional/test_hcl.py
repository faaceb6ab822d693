"""The loss with debiased hard negatives: golden numbers, a slow oracle, hand values, floor, parameters."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbcl.errors import ConfigError
from mbcl.functional import hcl, nt_xent

STORED = np.load(Path(__file__).parents[1] / "golden" / "hcl.npz")


def views(seed: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def oracle(
    z1: torch.Tensor, z2: torch.Tensor, temperature: float, tau_plus: float, beta: float
) -> tuple[torch.Tensor, int]:
    """The published sum, one pair at a time, and the number of anchors at the floor."""
    rows = [row / row.norm() for row in torch.cat([z1, z2])]
    half, total, floored = len(z1), torch.zeros((), dtype=torch.float64), 0
    num = 2 * half - 2
    for a, row in enumerate(rows):
        partner = (a + half) % (2 * half)
        n = [torch.exp(row @ other / temperature) for c, other in enumerate(rows) if c not in (a, partner)]
        positive = torch.exp(row @ rows[partner] / temperature)
        weighted = sum(x ** (1 + beta) for x in n) / (sum(x**beta for x in n) / num)
        debiased = (weighted - tau_plus * num * positive) / (1 - tau_plus)
        floor = num * math.exp(-1 / temperature)
        if debiased <= floor:
            debiased, floored = torch.tensor(floor, dtype=torch.float64), floored + 1
        total = total + torch.log1p(debiased / positive)
    return total / (2 * half), floored


@pytest.mark.parametrize("case", range(int(STORED["n_cases"])))
def test_hcl_equals_golden_values(case: int) -> None:
    names = ("out_1", "out_2", "temperature", "tau_plus", "beta", "loss_f64", "loss_f32", "grad1_f64", "grad2_f64")
    get = {name: STORED[f"c{case}_{name}"] for name in names}
    parameters = {name: float(get[name]) for name in ("temperature", "tau_plus", "beta")}
    for dtype, rtol, atol, of_largest in ((torch.float64, 1e-9, 0.0, 1e-9), (torch.float32, 1e-5, 1e-7, 2e-5)):
        z1, z2 = (torch.tensor(get[name], dtype=dtype, requires_grad=True) for name in ("out_1", "out_2"))
        loss = hcl(z1, z2, **parameters)
        assert loss.dtype == dtype
        np.testing.assert_allclose(loss.item(), get["loss_f64"], rtol=rtol, atol=atol)
        np.testing.assert_allclose(loss.item(), get["loss_f32"], rtol=1e-5, atol=1e-7)
        for gradient, name in zip(torch.autograd.grad(loss, [z1, z2]), ("grad1_f64", "grad2_f64"), strict=True):
            largest = float(np.abs(get[name]).max())
            np.testing.assert_allclose(gradient.numpy(), get[name], rtol=0, atol=of_largest * largest)


@given(
    seed=st.integers(0, 2**31),
    size=st.integers(2, 6),
    temperature=st.sampled_from([0.1, 0.5, 2.0]),
    tau_plus=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    beta=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
)
@settings(max_examples=40, deadline=None)
def test_hcl_equals_the_oracle(seed: int, size: int, temperature: float, tau_plus: float, beta: float) -> None:
    z1, z2 = (z.requires_grad_() for z in views(seed, size, 3))
    loss = hcl(z1, z2, temperature=temperature, tau_plus=tau_plus, beta=beta)
    expected, _ = oracle(z1, z2, temperature, tau_plus, beta)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    for gradient, slow in zip(
        torch.autograd.grad(loss, [z1, z2]), torch.autograd.grad(expected, [z1, z2]), strict=True
    ):
        torch.testing.assert_close(gradient, slow, rtol=1e-7, atol=1e-9)


def test_hcl_equals_the_oracle_with_anchors_at_the_floor() -> None:
    z1, noise = views(5, 12, 3)
    z1, z2 = z1.requires_grad_(), (z1 + 0.4 * noise).requires_grad_()
    expected, floored = oracle(z1, z2, 0.2, 0.6, 1.0)
    assert 6 < floored < 18
    loss = hcl(z1, z2, temperature=0.2, tau_plus=0.6, beta=1.0)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for gradient, slow in zip(
        torch.autograd.grad(loss, [z1, z2]), torch.autograd.grad(expected, [z1, z2]), strict=True
    ):
        torch.testing.assert_close(gradient, slow, rtol=1e-9, atol=1e-12)


def test_hcl_equals_hand_values() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    # Negatives of cosine 0: R = N = 2 for every beta, and P = e.
    for beta in (0.0, 1.0, 5.0):
        value = hcl(eye, eye, temperature=1.0, tau_plus=0.1, beta=beta)
        assert value.item() == pytest.approx(math.log(1 + (2 - 0.2 * math.e) / (0.9 * math.e)))
    # With tau_plus 0.5, R - 0.5 N P = 2 - e is below the floor, 2 / e.
    floored = hcl(eye, eye, temperature=1.0, tau_plus=0.5)
    assert floored.item() == pytest.approx(math.log(1 + 2 / math.e**2))
    same = torch.ones(5, 3, dtype=torch.float64)
    assert hcl(same, same, temperature=0.1).item() == pytest.approx(math.log(9))  # the correction changes nothing


def test_hcl_gradient_at_the_floor_is_of_the_positive_alone() -> None:
    """Well separated samples: the loss does not depend on their negatives."""
    z1, z2 = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    z2[:, 0] += 0.1
    z1, z2 = z1.requires_grad_(), z2.requires_grad_()
    gradients = torch.autograd.grad(hcl(z1, z2, temperature=0.1), [z1, z2])
    h1, h2 = (z / z.norm(dim=1, keepdim=True) for z in (z1, z2))
    positive = (h1 * h2).sum(1) / 0.1
    expected = torch.autograd.grad(torch.log1p(6 * torch.exp(-10 - positive)).mean(), [z1, z2])
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-18)


@given(seed=st.integers(0, 2**31), temperature=st.sampled_from([0.01, 0.1, 1.0]))
@settings(max_examples=20, deadline=None)
def test_hcl_easy_or_without_weights_is_nt_xent(seed: int, temperature: float) -> None:
    z1, z2 = (z.requires_grad_() for z in views(seed, 6, 4))
    expected = nt_xent(z1, z2, temperature=temperature)
    assert torch.equal(hcl(z1, z2, temperature=temperature, estimator="easy"), expected)
    plain = hcl(z1, z2, temperature=temperature, tau_plus=0.0, beta=0.0)
    torch.testing.assert_close(plain, expected, rtol=1e-10, atol=1e-14)
    for a, b in zip(torch.autograd.grad(plain, [z1, z2]), torch.autograd.grad(expected, [z1, z2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_hcl_increases_with_beta() -> None:
    z1, z2 = views(3, 8, 4)
    losses = [hcl(z1, z2, temperature=0.5, tau_plus=0.0, beta=beta).item() for beta in (0.0, 0.5, 1.0, 4.0, 40.0)]
    assert losses == sorted(losses)
    assert len(set(losses)) == 5


@pytest.mark.parametrize("tau_plus", [0.0, 0.1, 0.999])
@pytest.mark.parametrize("beta", [0.0, 1.0, 30.0])
def test_hcl_is_finite_at_extreme_parameters(tau_plus: float, beta: float) -> None:
    for z1, z2 in ([torch.ones(8, 4)] * 2, [torch.ones(8, 4), -torch.ones(8, 4)], [z.float() for z in views(4, 8, 4)]):
        z1, z2 = (z.clone().requires_grad_() for z in (z1, z2))
        loss = hcl(z1, z2, temperature=0.01, tau_plus=tau_plus, beta=beta)
        assert torch.isfinite(loss)
        for gradient in torch.autograd.grad(loss, [z1, z2]):
            assert torch.isfinite(gradient).all()


def test_hcl_refuses_bad_parameters() -> None:
    eye = torch.eye(3)
    for tau_plus in (-0.1, 1.0, math.nan, "x"):
        with pytest.raises(ConfigError, match=f"tau_plus must be .*>= 0 and < 1, found {tau_plus!r}"):
            hcl(eye, eye, temperature=0.1, tau_plus=tau_plus)  # type: ignore[arg-type]
    for beta in (-1.0, math.inf, None):
        with pytest.raises(ConfigError, match=f"beta must be .*>= 0, found {beta!r}"):
            hcl(eye, eye, temperature=0.1, beta=beta)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="estimator must be 'hard' or 'easy', found 'medium'"):
        hcl(eye, eye, temperature=0.1, estimator="medium")  # type: ignore[arg-type]
