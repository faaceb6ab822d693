"""Common tests of NT-Xent, DCL and HCL: invariances, ranks, precision, argument checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbcl.errors import ConfigError
from mbcl.functional import dcl, hcl, nt_xent

LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "nt_xent": nt_xent,
    "dcl": dcl,
    "hcl": hcl,
    "hcl-strong": partial(hcl, tau_plus=0.3, beta=2.5),
    "hcl-plain": partial(hcl, tau_plus=0.0, beta=0.0),
    "hcl-easy": partial(hcl, estimator="easy"),
}

all_losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))


def views(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(2)]


@all_losses
@given(seed=st.integers(0, 2**31), size=st.integers(2, 9), temperature=st.sampled_from([0.01, 0.1, 1.0]))
@settings(max_examples=15, deadline=None)
def test_loss_ignores_order_views_lengths_and_rotation(
    loss: Callable[..., torch.Tensor], seed: int, size: int, temperature: float
) -> None:
    z1, z2 = views(seed, size, 4)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(size, generator=generator)
    lengths = torch.rand(size, 1, generator=generator, dtype=torch.float64) + 0.1
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    value = loss(z1, z2, temperature=temperature)
    for other in (
        loss(z1[order], z2[order], temperature=temperature),
        loss(z2, z1, temperature=temperature),
        loss(z1 * lengths, z2, temperature=temperature),
        loss(z1 @ rotation, z2 @ rotation, temperature=temperature),
    ):
        torch.testing.assert_close(other, value, rtol=1e-9, atol=1e-11)


@all_losses
@given(seed=st.integers(0, 2**31), ranks=st.sampled_from([1, 2, 3, 6]), temperature=st.sampled_from([0.1, 1.0]))
@settings(max_examples=15, deadline=None)
def test_loss_shares_of_ranks_sum_to_the_whole_batch(
    loss: Callable[..., torch.Tensor], seed: int, ranks: int, temperature: float
) -> None:
    whole = [z.requires_grad_() for z in views(seed, 6, 4)]
    expected = loss(*whole, temperature=temperature)
    local = 6 // ranks
    total = torch.stack(
        [
            loss(
                *(z[r : r + local] for z in whole),
                temperature=temperature,
                candidates1=whole[0],
                candidates2=whole[1],
                offset=r,
            )
            for r in range(0, 6, local)
        ]
    ).sum()
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-14)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(total, whole), torch.autograd.grad(expected, whole), strict=True
    ):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


@all_losses
def test_loss_treats_leading_dimensions_as_batches(loss: Callable[..., torch.Tensor]) -> None:
    z1, z2 = views(0, 2, 3, 5, 4)
    losses = loss(z1, z2, temperature=0.1)
    assert losses.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(losses[i, j], loss(z1[i, j], z2[i, j], temperature=0.1))
    shares = [
        loss(z1[..., r : r + 1, :], z2[..., r : r + 1, :], temperature=0.1, candidates1=z1, candidates2=z2, offset=r)
        for r in range(5)
    ]
    torch.testing.assert_close(torch.stack(shares).sum(0), losses)


@all_losses
@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_loss_passes_gradcheck(loss: Callable[..., torch.Tensor], temperature: float) -> None:
    z1, z2 = (z.requires_grad_() for z in views(1, 3, 4))
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, temperature=temperature), (z1, z2))
    assert torch.autograd.gradcheck(
        lambda a, b: loss(a[1:2], b[1:2], temperature=temperature, candidates1=a, candidates2=b, offset=1), (z1, z2)
    )


@all_losses
@pytest.mark.parametrize("temperature", [0.01, 0.05])
@pytest.mark.parametrize("arrangement", ["random", "opposite", "equal views", "all equal", "two groups", "zero"])
def test_loss_is_finite_at_small_temperatures(
    loss: Callable[..., torch.Tensor], temperature: float, arrangement: str
) -> None:
    z1, z2 = views(2, 16, 4, dtype=torch.float32)
    match arrangement:
        case "opposite":
            z2 = -z1
        case "equal views":
            z2 = z1.clone()
        case "all equal":
            z1, z2 = z1[:1].repeat(16, 1), z1[:1].repeat(16, 1)
        case "two groups":
            z1 = torch.cat([z1[:1].repeat(8, 1), -z1[:1].repeat(8, 1)])
            z2 = z1.flip(0)
        case "zero":
            z1 = torch.zeros(16, 4)
    z1, z2 = z1.requires_grad_(), z2.requires_grad_()
    value = loss(z1, z2, temperature=temperature)
    assert torch.isfinite(value)
    for gradient in torch.autograd.grad(value, [z1, z2]):
        assert torch.isfinite(gradient).all()
    exact = loss(z1.detach().double(), z2.detach().double(), temperature=temperature)
    # The rounding error of a cosine is divided by the temperature.
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=3e-7 / temperature, check_dtype=False)


@all_losses
def test_loss_computes_in_float32_or_more(loss: Callable[..., torch.Tensor]) -> None:
    z1, z2 = (z.requires_grad_() for z in views(3, 8, 4, dtype=torch.float32))
    for half in (torch.float16, torch.bfloat16):
        low1, low2 = z1.to(half), z2.to(half)
        widened = loss(low1, low2, temperature=0.1)
        assert widened.dtype == torch.float32
        assert torch.equal(widened, loss(low1.float(), low2.float(), temperature=0.1))
    outside = loss(z1, z2, temperature=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(z1, z2, temperature=0.1)
    assert torch.equal(inside, outside)
    for gradient, expected in zip(
        torch.autograd.grad(inside, [z1, z2]), torch.autograd.grad(outside, [z1, z2]), strict=True
    ):
        assert torch.equal(gradient, expected)


@all_losses
def test_loss_refuses_bad_input(loss: Callable[..., torch.Tensor]) -> None:
    eye = torch.eye(3)
    for temperature in (0.0, -1.0, math.nan, math.inf, True, "warm"):
        with pytest.raises(ConfigError, match=f"temperature must be .*found {temperature!r}"):
            loss(eye, eye, temperature=temperature)
    with pytest.raises(ValueError, match="of one shape"):
        loss(eye, eye[:2], temperature=0.1)
    with pytest.raises(ValueError, match="at least 2 samples"):
        loss(eye[:1], eye[:1], temperature=0.1)
    with pytest.raises(ValueError, match="offset 1"):
        loss(eye, eye, temperature=0.1, candidates1=eye, candidates2=eye, offset=1)
