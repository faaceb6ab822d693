"""NT-Xent: golden numbers, a slow oracle, hand values, properties, ranks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbcl.errors import ConfigError
from mbcl.functional import nt_xent

GOLDEN = Path(__file__).parents[1] / "golden"


def cases(name: str) -> list[dict[str, np.ndarray]]:
    stored = np.load(GOLDEN / f"{name}.npz")
    return [
        {key.split("_", 1)[1]: stored[key] for key in stored.files if key.startswith(f"c{case}_")}
        for case in range(int(stored["n_cases"]))
    ]


def oracle(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> float:
    """The published sum, one pair at a time."""
    rows = [row / max(np.sqrt((row**2).sum()), 1e-12) for row in torch.cat([z1, z2]).double().numpy()]
    half = len(z1)
    total = 0.0
    for a, row in enumerate(rows):
        others = [math.exp(float(row @ other) / temperature) for b, other in enumerate(rows) if b != a]
        total += math.log(sum(others)) - float(row @ rows[(a + half) % (2 * half)]) / temperature
    return total / (2 * half)


def views(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("case", cases("ntxent"), ids=lambda case: f"B{len(case['z_i'])}-seed{case['seed']}")
def test_nt_xent_equals_golden_values(case: dict[str, np.ndarray]) -> None:
    for dtype, suffix in ((torch.float64, "f64"), (torch.float32, "f32")):
        z1, z2 = (torch.tensor(case[key], dtype=dtype, requires_grad=True) for key in ("z_i", "z_j"))
        loss = nt_xent(z1, z2, temperature=float(case["tau"]))
        loss.backward()
        assert loss.dtype == dtype
        rtol, atol, of_largest = (1e-9, 0.0, 1e-9) if suffix == "f64" else (1e-5, 1e-7, 2e-5)
        np.testing.assert_allclose(loss.item(), case["loss_f64"], rtol=rtol, atol=atol)
        np.testing.assert_allclose(loss.item(), case[f"loss_{suffix}"], rtol=rtol, atol=atol)
        for z, key in ((z1, "grad_i_f64"), (z2, "grad_j_f64")):
            assert z.grad is not None
            np.testing.assert_allclose(
                z.grad.numpy(), case[key], rtol=0, atol=of_largest * float(np.abs(case[key]).max())
            )


@given(
    seed=st.integers(0, 2**31),
    size=st.integers(2, 7),
    dim=st.integers(1, 5),
    temperature=st.sampled_from([0.05, 0.5, 2]),
)
@settings(max_examples=25, deadline=None)
def test_nt_xent_equals_the_oracle(seed: int, size: int, dim: int, temperature: float) -> None:
    z1, z2 = views(seed, size, dim)
    value = nt_xent(z1, z2, temperature=temperature).item()
    assert value == pytest.approx(oracle(z1, z2, temperature), rel=1e-10, abs=1e-12)


def test_nt_xent_equals_hand_values() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    assert nt_xent(eye, eye, temperature=1.0).item() == pytest.approx(math.log(1 + 2 / math.e))
    same = torch.ones(5, 3, dtype=torch.float64)
    assert nt_xent(same, same, temperature=0.1).item() == pytest.approx(math.log(9))  # 2B - 1 equal choices
    zero = torch.zeros(5, 3, dtype=torch.float64)
    assert nt_xent(zero, zero, temperature=0.1).item() == pytest.approx(math.log(9))


@given(seed=st.integers(0, 2**31), size=st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_nt_xent_ignores_order_views_lengths_and_rotation(seed: int, size: int) -> None:
    z1, z2 = views(seed, size, 4)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(size, generator=generator)
    lengths = torch.rand(size, 1, generator=generator, dtype=torch.float64) + 0.1
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    value = nt_xent(z1, z2, temperature=0.2)
    assert value >= 0
    for other in (
        nt_xent(z1[order], z2[order], temperature=0.2),
        nt_xent(z2, z1, temperature=0.2),
        nt_xent(z1 * lengths, z2, temperature=0.2),
        nt_xent(z1 @ rotation, z2 @ rotation, temperature=0.2),
    ):
        torch.testing.assert_close(other, value, rtol=1e-10, atol=1e-12)


@given(seed=st.integers(0, 2**31), ranks=st.sampled_from([1, 2, 3, 6]))
@settings(max_examples=12, deadline=None)
def test_nt_xent_shares_of_ranks_sum_to_the_whole_batch(seed: int, ranks: int) -> None:
    whole = [z.requires_grad_() for z in views(seed, 6, 4)]
    expected = nt_xent(*whole, temperature=0.1)
    expected_gradients = torch.autograd.grad(expected, whole)
    local = 6 // ranks
    parts = [
        nt_xent(
            whole[0][r * local : (r + 1) * local],
            whole[1][r * local : (r + 1) * local],
            temperature=0.1,
            candidates1=whole[0],
            candidates2=whole[1],
            offset=r * local,
        )
        for r in range(ranks)
    ]
    total = torch.stack(parts).sum()
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-14)
    for gradient, expected_gradient in zip(torch.autograd.grad(total, whole), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", cases("ddp"), ids=lambda case: f"n{len(case['x1'])}")
def test_nt_xent_of_two_processes_equals_golden_values(case: dict[str, np.ndarray]) -> None:
    """The sum over two ranks has the loss and the weights' gradient of one process with all samples."""
    weight, bias = (torch.tensor(case[key], dtype=torch.float64, requires_grad=True) for key in ("W", "b"))
    z1, z2 = (torch.tensor(case[key], dtype=torch.float64) @ weight.T + bias for key in ("x1", "x2"))
    world_size, local = int(case["world_size"]), len(z1) // int(case["world_size"])
    total = sum(
        nt_xent(
            z1[r * local : (r + 1) * local],
            z2[r * local : (r + 1) * local],
            temperature=float(case["tau"]),
            candidates1=z1,
            candidates2=z2,
            offset=r * local,
        )
        for r in range(world_size)
    )
    assert isinstance(total, torch.Tensor)
    np.testing.assert_allclose(total.item(), case["sim_full_loss_f64"], rtol=1e-9)
    np.testing.assert_allclose(total.item(), case["sim_loss_ranks_f64"], rtol=1e-9)
    for gradient, key in zip(torch.autograd.grad(total, [weight, bias]), ("W", "b"), strict=True):
        largest = float(np.abs(case[f"sim_full_{key}_f64"]).max())
        np.testing.assert_allclose(gradient.numpy(), case[f"sim_full_{key}_f64"], rtol=0, atol=1e-9 * largest)
        np.testing.assert_allclose(gradient.numpy(), case[f"sim_ddp_{key}_ranks_f64"][0], rtol=0, atol=1e-9 * largest)


def test_nt_xent_treats_leading_dimensions_as_batches() -> None:
    z1, z2 = views(0, 2, 3, 5, 4)
    losses = nt_xent(z1, z2, temperature=0.1)
    assert losses.shape == (2, 3)
    torch.testing.assert_close(losses[1, 2], nt_xent(z1[1, 2], z2[1, 2], temperature=0.1))


def test_nt_xent_passes_gradcheck() -> None:
    z1, z2 = (z.requires_grad_() for z in views(1, 3, 4))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.3), (z1, z2))
    assert torch.autograd.gradcheck(
        lambda a, b: nt_xent(a[1:2], b[1:2], temperature=0.3, candidates1=a, candidates2=b, offset=1), (z1, z2)
    )


@pytest.mark.parametrize("temperature", [0.01, 0.05])
def test_nt_xent_is_finite_at_small_temperatures(temperature: float) -> None:
    z1, z2 = (z.requires_grad_() for z in views(2, 16, 4, dtype=torch.float32))
    for partner in (z2, -z1, z1):
        z1.grad = None
        loss = nt_xent(z1, partner, temperature=temperature)
        loss.backward()
        assert torch.isfinite(loss)
        assert z1.grad is not None
        assert torch.isfinite(z1.grad).all()


def test_nt_xent_is_precise_near_zero() -> None:
    eye = torch.eye(4)
    expected = math.log1p(6 * math.exp(-1 / 0.05))
    assert nt_xent(eye, eye, temperature=0.05).item() == pytest.approx(expected, rel=1e-5)


def test_nt_xent_computes_in_float32_or_more() -> None:
    z1, z2 = views(3, 8, 4, dtype=torch.float32)
    for half in (torch.float16, torch.bfloat16):
        low1, low2 = z1.to(half), z2.to(half)
        widened = nt_xent(low1, low2, temperature=0.1)
        assert widened.dtype == torch.float32
        assert torch.equal(widened, nt_xent(low1.float(), low2.float(), temperature=0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nt_xent(z1, z2, temperature=0.1)
    assert torch.equal(inside, nt_xent(z1, z2, temperature=0.1))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf, True, "warm"])
def test_nt_xent_refuses_a_bad_temperature(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature must be"):
        nt_xent(torch.eye(2), torch.eye(2), temperature=temperature)


def test_nt_xent_refuses_bad_shapes() -> None:
    eye = torch.eye(3)
    with pytest.raises(ValueError, match="of one shape"):
        nt_xent(eye, eye[:2], temperature=0.1)
    with pytest.raises(ValueError, match="floating point"):
        nt_xent(eye.long(), eye.long(), temperature=0.1)
    with pytest.raises(ValueError, match="at least 2 samples"):
        nt_xent(eye[:1], eye[:1], temperature=0.1)
    with pytest.raises(ValueError, match="both views"):
        nt_xent(eye, eye, temperature=0.1, candidates1=eye)
    with pytest.raises(ValueError, match="candidates must be"):
        nt_xent(eye, eye, temperature=0.1, candidates1=eye, candidates2=eye[:2])
    with pytest.raises(ValueError, match="offset 1"):
        nt_xent(eye, eye, temperature=0.1, candidates1=eye, candidates2=eye, offset=1)
