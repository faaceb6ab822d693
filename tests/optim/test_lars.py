"""LARS: golden steps, a slow oracle, bad input."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import mbcl
from mbcl.errors import ConfigError

STORED = np.load(Path(__file__).parents[1] / "golden" / "lars.npz")


@pytest.mark.parametrize("case", range(int(STORED["n_cases"])))
@pytest.mark.parametrize("dtype,suffix", [(torch.float64, "f64"), (torch.float32, "f32")])
def test_lars_equals_golden_steps(case: int, dtype: torch.dtype, suffix: str) -> None:
    """The gradients are stored, so rounding errors do not grow: each step rounds an entry a few times."""
    get = {key.split("_", 1)[1]: STORED[key] for key in STORED.files if key.startswith(f"c{case}_")}
    count = range(int(get["n_params"]))
    params = [torch.nn.Parameter(torch.tensor(get[f"p{j}_init"], dtype=dtype)) for j in count]
    optimizer = mbcl.optim.LARS(
        params,
        lr=0.0,
        momentum=float(get["momentum"]),
        weight_decay=float(get["weight_decay"]),
        trust_coefficient=float(get["trust"]),
    )
    for step in range(int(get["n_steps"])):
        optimizer.param_groups[0]["lr"] = float(get["lr"][step])
        for j, p in enumerate(params):
            p.grad = torch.tensor(get[f"p{j}_grads"][step], dtype=dtype)
        optimizer.step()
        for j, p in enumerate(params):
            expected = get[f"p{j}_after_{suffix}"][step]
            bound = 10 * (step + 1) * torch.finfo(dtype).eps
            np.testing.assert_allclose(p.detach().numpy(), expected, rtol=0, atol=bound * float(np.abs(expected).max()))


def test_lars_equals_hand_values() -> None:
    """A matrix step has length trust * norm, a vector is not scaled, and momentum precedes the learning rate."""
    matrix, vector = (torch.nn.Parameter(torch.tensor(x)) for x in ([[3.0, 4.0]], [3.0, 4.0]))
    optimizer = mbcl.optim.LARS([matrix, vector], lr=1.0, momentum=0.5, weight_decay=0.0, trust_coefficient=0.1)
    for _ in range(2):
        matrix.grad, vector.grad = torch.tensor([[0.0, 7.0]]), torch.tensor([0.0, 1.0])
        optimizer.step()
    torch.testing.assert_close(vector.detach(), torch.tensor([3.0, 4.0 - 1 - 1.5]))
    first = 0.1 * 5
    second = 0.5 * first + 0.1 * math.hypot(3, 4 - first)
    torch.testing.assert_close(matrix.detach(), torch.tensor([[3.0, 4.0 - first - second]]))


@pytest.mark.parametrize("weight_decay", [1e-6, 0.5])
def test_lars_moves_by_weight_decay_without_a_gradient(weight_decay: float) -> None:
    p = torch.nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    p.grad = torch.zeros_like(p)
    mbcl.optim.LARS([p], lr=1.0, weight_decay=weight_decay, trust_coefficient=0.01).step()
    torch.testing.assert_close(p.detach(), torch.tensor([[3.0, 4.0]], dtype=torch.float64) * 0.99)


def test_lars_handles_zero_weights_and_zero_gradients() -> None:
    p, still = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    p.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    mbcl.optim.LARS([p, still], lr=0.5).step()
    torch.testing.assert_close(p.detach(), torch.full((2, 2), -0.5))
    torch.testing.assert_close(still.detach(), torch.zeros(2, 2))


def test_lars_resumes_exactly() -> None:
    def step(params: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()

    params = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3))]
    optimizer = mbcl.optim.LARS([{"params": params[:1]}, {"params": params[1:], "lr": 0.1}], lr=0.3)
    step(params, optimizer, 0)
    saved = copy.deepcopy((params, optimizer.state_dict()))
    step(params, optimizer, 1)
    other = mbcl.optim.LARS([{"params": saved[0][:1]}, {"params": saved[0][1:]}], lr=9.0)
    other.load_state_dict(saved[1])
    step(saved[0], other, 1)
    assert all(torch.equal(a, b) for a, b in zip(params, saved[0], strict=True))


def test_lars_takes_a_closure_and_skips_missing_gradients() -> None:
    p, unused = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = mbcl.optim.LARS([p, unused], lr=0.5)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert torch.equal(unused.detach(), torch.ones(2, 2))
    assert not torch.equal(p.detach(), torch.ones(2, 2))


@pytest.mark.parametrize(
    "settings,match",
    [
        ({"lr": -1.0}, r"lr must be >= 0, found -1\.0"),
        ({"lr": float("nan")}, "lr must be a number"),
        ({"lr": 1.0, "momentum": 1.5}, r"momentum must be >= 0 and <= 1, found 1\.5"),
        ({"lr": 1.0, "weight_decay": -1e-6}, "weight_decay must be >= 0"),
        ({"lr": 1.0, "trust_coefficient": 0.0}, "trust_coefficient must be > 0"),
    ],
)
def test_lars_refuses_bad_settings(settings: dict[str, float], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        mbcl.optim.LARS([torch.nn.Parameter(torch.ones(2, 2))], **settings)


def test_lars_refuses_sparse_gradients() -> None:
    p = torch.nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(ValueError, match="sparse"):
        mbcl.optim.LARS([p], lr=1.0).step()
