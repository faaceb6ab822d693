"""The decoupled contrastive loss: a slow oracle, hand values, its relation to NT-Xent."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbcl.functional import dcl, nt_xent


def views(seed: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def oracle(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> float:
    """The published sum, one pair at a time."""
    rows = [row / row.norm() for row in torch.cat([z1, z2])]
    half = len(z1)
    total = 0.0
    for a, row in enumerate(rows):
        partner = (a + half) % (2 * half)
        negatives = [float(row @ other) / temperature for c, other in enumerate(rows) if c not in (a, partner)]
        total += math.log(sum(math.exp(score) for score in negatives)) - float(row @ rows[partner]) / temperature
    return total / (2 * half)


@given(
    seed=st.integers(0, 2**31),
    size=st.integers(2, 7),
    dim=st.integers(1, 5),
    temperature=st.sampled_from([0.05, 0.5, 2]),
)
@settings(max_examples=25, deadline=None)
def test_dcl_equals_the_oracle(seed: int, size: int, dim: int, temperature: float) -> None:
    z1, z2 = views(seed, size, dim)
    value = dcl(z1, z2, temperature=temperature).item()
    assert value == pytest.approx(oracle(z1, z2, temperature), rel=1e-10, abs=1e-12)
    assert value >= math.log(2 * size - 2) - 2 / temperature - 1e-9


def test_dcl_equals_hand_values() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    assert dcl(eye, eye, temperature=1.0).item() == pytest.approx(math.log(2) - 1)
    same = torch.ones(5, 3, dtype=torch.float64)
    assert dcl(same, same, temperature=0.1).item() == pytest.approx(math.log(8))  # 2B - 2 equal negatives
    assert dcl(eye * 2, -eye, temperature=1.0).item() == pytest.approx(math.log(2) + 1)


def test_dcl_is_below_nt_xent() -> None:
    """NT-Xent of an anchor is log(1 + e^x), where x is its DCL loss."""
    z1, z2 = views(0, 6, 4)
    assert dcl(z1, z2, temperature=0.1) < nt_xent(z1, z2, temperature=0.1)
    # All anchors are equivalent here, so the mean equals the loss of one anchor.
    eye = torch.eye(5, dtype=torch.float64)
    x = dcl(eye, eye, temperature=0.2)
    torch.testing.assert_close(torch.log1p(x.exp()), nt_xent(eye, eye, temperature=0.2))


def test_dcl_gradient_does_not_vanish_in_easy_batches() -> None:
    z1, _ = views(1, 4, 8)
    z1 = torch.linalg.qr(z1.T)[0].T.contiguous().requires_grad_()
    z2 = (z1.detach() + 0.1 * views(2, 4, 8)[0]).requires_grad_()
    coupled = torch.autograd.grad(nt_xent(z1, z2, temperature=0.05), z1)[0]
    decoupled = torch.autograd.grad(dcl(z1, z2, temperature=0.05), z1)[0]
    assert decoupled.norm() > 1000 * coupled.norm()
