"""SogCLR's state under saving, casting and moving, and its checks of indices."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

import mbcl
from mbcl.objectives import SogCLR


def batch(seed: int, size: int = 4, num_samples: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = (torch.randn(size, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return z1, z2, torch.randperm(num_samples, generator=generator)[:size]


def test_sogclr_state_is_the_same_after_saving_pickling_and_copying() -> None:
    objective = SogCLR(num_samples=10, temperature=0.01)
    for step in range(3):
        objective(*batch(step))
    stored = io.BytesIO()
    torch.save(objective.state_dict(), stored)
    stored.seek(0)
    loaded = SogCLR(num_samples=10, temperature=0.01)
    loaded.load_state_dict(torch.load(stored, weights_only=True))
    for other in (loaded, pickle.loads(pickle.dumps(objective)), copy.deepcopy(objective)):
        torch.testing.assert_close(other.state_dict(), objective.state_dict(), rtol=0, atol=0)
        assert other.age() == objective.age()
        original = copy.deepcopy(objective)
        assert torch.equal(other(*batch(3)), original(*batch(3)))
        assert torch.equal(other.u, original.u)
    assert set(objective.state_dict()) == {"u", "visited_at", "num_updates"}


def test_sogclr_u_stays_float64_under_casts() -> None:
    objective = SogCLR(num_samples=10, temperature=0.01)
    same = torch.ones(4, 3)
    objective(same, same, torch.arange(4))
    before = copy.deepcopy(objective.state_dict())
    assert before["u"].max() > 1e43  # beyond float32
    for cast in (
        objective.float(),
        objective.half(),
        objective.bfloat16(),
        objective.to(torch.float16),
        torch.nn.Sequential(objective).to("cpu", torch.float32)[0],
    ):
        assert cast is objective
        torch.testing.assert_close(objective.state_dict(), before, rtol=0, atol=0)
    # A state that was saved in float32 is loaded into float64.
    objective.load_state_dict({**before, "u": before["u"].clamp(max=1e30).float()})
    assert objective.u.dtype == torch.float64


def test_sogclr_moves_all_buffers_to_a_device() -> None:
    objective = SogCLR(num_samples=10).to("meta")
    assert {buffer.device.type for buffer in objective.buffers()} == {"meta"}
    assert objective.half().u.dtype == torch.float64
    assert SogCLR(num_samples=10).half().to("meta").u.dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sogclr_on_the_gpu_equals_the_cpu() -> None:
    on_cpu, on_gpu = SogCLR(num_samples=10), SogCLR(num_samples=10).cuda()
    for step in range(3):
        z1, z2, indices = batch(step)
        loss, expected = on_gpu(z1.cuda(), z2.cuda(), indices.cuda()), on_cpu(z1, z2, indices)
        torch.testing.assert_close(loss.cpu(), expected)
    on_gpu.half()
    assert on_gpu.u.dtype == torch.float64
    torch.testing.assert_close({key: value.cpu() for key, value in on_gpu.state_dict().items()}, on_cpu.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sogclr_loss_is_float32_for_float32_and_half(dtype: torch.dtype) -> None:
    z1, z2, indices = batch(1)
    objective = SogCLR(num_samples=10, temperature=0.01)
    for _ in range(2):
        a, b = (z.to(dtype).requires_grad_() for z in (z1, z2))
        loss = objective(a, b, indices)
        assert loss.dtype == torch.float32
        for gradient in torch.autograd.grad(loss, [a, b]):
            assert torch.isfinite(gradient).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = objective.eval()(z1.float(), z2.float(), indices)
    assert torch.equal(inside, objective(z1.float(), z2.float(), indices))


def test_sogclr_refuses_bad_indices() -> None:
    z1, z2, indices = batch(0)
    objective = mbcl.objectives.build("sogclr", num_samples=10)
    before = copy.deepcopy(objective.state_dict())
    for wrong, text in (
        (None, r"indices are required: the \(B,\) int64 data-set positions"),
        (indices[:3], r"indices must be \(4,\), found \(3,\)"),
        (indices[:, None], r"indices must be \(4,\), found \(4, 1\)"),
        (indices.int(), r"indices must be int64, found torch\.int32"),
        (indices.double(), "indices must be int64"),
        (torch.tensor([0, 1, 2, 10]), r"indices must be in \[0, 10\), found 0 to 10"),
        (torch.tensor([-1, 1, 2, 3]), r"indices must be in \[0, 10\), found -1 to 3"),
    ):
        with pytest.raises(ValueError, match=text):
            objective(z1, z2, wrong)
    with pytest.raises(ValueError, match=r"4 indices, but values of shape \(3,\)"):
        objective.commit(indices, torch.ones(3))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"in \[0, 10\)"):
        objective.commit(indices + 10, torch.ones(4))  # type: ignore[operator]
    torch.testing.assert_close(objective.state_dict(), before, rtol=0, atol=0)
