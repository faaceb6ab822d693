"""CLIP's loss: golden numbers of the synthetic study, a slow oracle, hand values, ranks."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbcl.errors import ConfigError
from mbcl.functional import clip

STORED = np.load(Path(__file__).parents[1] / "golden" / "synthetic_pieces.npz")
CASES = sorted({key.split("_")[0] for key in STORED.files if key.endswith("_x_u")})


def oracle(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> float:
    u, v = ([row / row.norm() for row in z.double()] for z in (z1, z2))
    total = 0.0
    for queries, targets in ((u, v), (v, u)):
        for i, query in enumerate(queries):
            scores = [float(query @ target) / temperature for target in targets]
            total += math.log(sum(math.exp(score) for score in scores)) - scores[i]
    return total / len(u)


def views(seed: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_clip_equals_golden_values(case: str) -> None:
    x_u, x_v = (torch.tensor(STORED[f"{case}_x_{side}"], dtype=torch.float64, requires_grad=True) for side in "uv")
    loss = clip(x_u, x_v, temperature=1.0)
    np.testing.assert_allclose(loss.item(), STORED[f"{case}_clip_f64"], rtol=1e-9)
    both = STORED[f"{case}_full_uv_f64"] + STORED[f"{case}_full_vu_f64"]
    np.testing.assert_allclose(loss.item(), both, rtol=1e-9)
    for gradient, side in zip(torch.autograd.grad(loss, [x_u, x_v]), "uv", strict=True):
        expected = STORED[f"{case}_clip_grad_x{side}_f64"]
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    single = clip(x_u.detach().float(), x_v.detach().float(), temperature=1.0)
    np.testing.assert_allclose(single.item(), STORED[f"{case}_clip_f64"], rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_clip_of_all_small_batches_equals_golden_values(case: str) -> None:
    x_u, x_v = (torch.tensor(STORED[f"{case}_x_{side}"], dtype=torch.float64, requires_grad=True) for side in "uv")
    pairs = torch.tensor(STORED[f"{case}_pairs"])
    losses = clip(x_u[pairs], x_v[pairs], temperature=1.0)
    np.testing.assert_allclose(losses.detach().numpy(), STORED[f"{case}_pair_losses_f64"], rtol=1e-9)
    np.testing.assert_allclose(losses.mean().item(), STORED[f"{case}_mini2_f64"], rtol=1e-9)
    assert pairs[losses.argmax()].tolist() == STORED[f"{case}_osgd_choice"].tolist()
    for gradient, side in zip(torch.autograd.grad(losses.mean(), [x_u, x_v]), "uv", strict=True):
        expected = STORED[f"{case}_mini2_grad_x{side}_f64"]
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    triples = torch.tensor(list(itertools.combinations(range(len(x_u)), 3)))
    losses = clip(x_u[triples], x_v[triples], temperature=1.0)
    np.testing.assert_allclose(losses.mean().item(), STORED[f"{case}_mini3_f64"], rtol=1e-9)
    assert triples[losses.argmax()].tolist() == STORED[f"{case}_osgd_choice_B3"].tolist()


def test_clip_equals_hand_values() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    assert clip(eye, eye, temperature=1.0).item() == pytest.approx(2 * math.log(1 + 1 / math.e))
    same = torch.ones(5, 3, dtype=torch.float64)
    assert clip(same, same, temperature=0.1).item() == pytest.approx(2 * math.log(5))


@pytest.mark.parametrize("num_samples", [4, 8, 12])
def test_clip_has_its_minimum_at_the_simplex(num_samples: int) -> None:
    """At the simplex, 2 log(1 + (N-1) exp(-N/(N-1)))."""
    n = num_samples
    simplex = torch.eye(n, dtype=torch.float64) - 1 / n
    expected = 2 * math.log(1 + (n - 1) * math.exp(-n / (n - 1)))
    assert clip(simplex, simplex, temperature=1.0).item() == pytest.approx(expected, rel=1e-12)


@given(seed=st.integers(0, 2**31), size=st.integers(2, 7), temperature=st.sampled_from([0.05, 0.5, 2.0]))
@settings(max_examples=20, deadline=None)
def test_clip_equals_the_oracle_and_is_symmetric(seed: int, size: int, temperature: float) -> None:
    z1, z2 = views(seed, size, 3)
    value = clip(z1, z2, temperature=temperature)
    assert value.item() == pytest.approx(oracle(z1, z2, temperature), rel=1e-10, abs=1e-12)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(clip(z2[order], z1[order], temperature=temperature), value)


@given(seed=st.integers(0, 2**31), ranks=st.sampled_from([1, 2, 3, 6]))
@settings(max_examples=12, deadline=None)
def test_clip_shares_of_ranks_sum_to_the_whole_batch(seed: int, ranks: int) -> None:
    whole = [z.requires_grad_() for z in views(seed, 6, 4)]
    expected = clip(*whole, temperature=0.1)
    local = 6 // ranks
    total = torch.stack(
        [
            clip(
                whole[0][r : r + local],
                whole[1][r : r + local],
                temperature=0.1,
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


def test_clip_passes_gradcheck() -> None:
    z1, z2 = (z.requires_grad_() for z in views(1, 3, 4))
    assert torch.autograd.gradcheck(lambda a, b: clip(a, b, temperature=0.3), (z1, z2))


def test_clip_is_finite_and_computes_in_float32() -> None:
    z1, z2 = (z.float().requires_grad_() for z in views(2, 16, 4))
    loss = clip(z1, z2, temperature=0.01)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, [z1, z2]))
    assert clip(z1.half(), z2.half(), temperature=0.1).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = clip(z1, z2, temperature=0.01)
    assert torch.equal(inside, loss)


def test_clip_refuses_bad_input() -> None:
    eye = torch.eye(3)
    with pytest.raises(ConfigError, match=r"temperature must be > 0, found 0\.0"):
        clip(eye, eye, temperature=0.0)
    with pytest.raises(ValueError, match="at least 2 samples"):
        clip(eye[:1], eye[:1], temperature=0.1)
    with pytest.raises(ValueError, match="of one shape"):
        clip(eye, eye[:2], temperature=0.1)
