"""Objectives: every registered one, then each by itself."""

from __future__ import annotations

import inspect
import pickle

import pytest
import torch

import mbcl
from mbcl.errors import ConfigError
from mbcl.functional import clip, nt_xent
from mbcl.objectives import OBJECTIVES, Candidates

REQUIRED: dict[str, dict[str, object]] = {}
"""Parameters of objectives that cannot be built without."""

each_objective = pytest.mark.parametrize("name", list(OBJECTIVES))


def batch(seed: int = 0, size: int = 6, dim: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = (torch.randn(size, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    return z1, z2, torch.randperm(size, generator=generator)


@each_objective
def test_a_batch_has_a_finite_scalar_loss_and_gradients(name: str) -> None:
    z1, z2, indices = batch()
    for dtype in (torch.float64, torch.float32, torch.float16):
        a, b = (z.to(dtype).requires_grad_() for z in (z1, z2))
        loss = mbcl.objectives.build(name, **REQUIRED.get(name, {}))(a, b, indices)
        assert loss.shape == ()
        assert loss.dtype == (torch.float32 if dtype == torch.float16 else dtype)
        for gradient in torch.autograd.grad(loss, [a, b]):
            assert torch.isfinite(gradient).all()


@each_objective
def test_the_order_of_the_batch_does_not_matter(name: str) -> None:
    z1, z2, indices = batch(1)
    order = torch.randperm(len(z1), generator=torch.Generator().manual_seed(2))
    first = mbcl.objectives.build(name, **REQUIRED.get(name, {}))(z1, z2, indices)
    second = mbcl.objectives.build(name, **REQUIRED.get(name, {}))(z1[order], z2[order], indices[order])
    torch.testing.assert_close(first, second)


@each_objective
def test_shares_of_the_ranks_add_up(name: str) -> None:
    if OBJECTIVES[name].distribution != "candidates":
        pytest.skip("not made of shares")
    z1, z2, indices = batch(3)
    objective = mbcl.objectives.build(name, **REQUIRED.get(name, {}))
    shares = [
        objective(z1[r : r + 3], z2[r : r + 3], indices[r : r + 3], candidates=Candidates(z1, z2, r, indices))
        for r in (0, 3)
    ]
    torch.testing.assert_close(shares[0] + shares[1], objective(z1, z2, indices))


@each_objective
def test_declares_its_distribution_and_documents_itself(name: str) -> None:
    objective = OBJECTIVES[name]
    assert objective.distribution in ("local", "candidates", "state")
    assert objective.__doc__ is not None
    assert "Meant for" in objective.__doc__
    parameters = inspect.signature(objective, eval_str=True).parameters.values()
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters)
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)


@each_objective
def test_survives_pickling_and_its_state_dict(name: str) -> None:
    z1, z2, indices = batch(4)
    objective = mbcl.objectives.build(name, **REQUIRED.get(name, {}))
    copy = pickle.loads(pickle.dumps(objective))
    copy.load_state_dict(objective.state_dict())
    assert torch.equal(copy(z1, z2, indices), objective(z1, z2, indices))


@each_objective
@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan"), "hot", None])
def test_bad_temperature(name: str, temperature: object) -> None:
    with pytest.raises(ConfigError, match=f"temperature must be .*found {temperature!r}"):
        mbcl.objectives.build(name, **{**REQUIRED.get(name, {}), "temperature": temperature})


@each_objective
def test_unknown_parameter_names_the_nearest(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown parameter 'tempera'; did you mean 'temperature'\?"):
        mbcl.objectives.build(name, tempera=0.1)


def test_unknown_objective_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown objective 'simclrr'; did you mean 'simclr'\?"):
        mbcl.objectives.build("simclrr")


def test_published_names_and_defaults() -> None:
    assert OBJECTIVES.canonical("sim") == "simclr"
    for name in ("simclr", "sim", "clip"):
        assert mbcl.objectives.build(name).temperature == 0.1
    assert repr(mbcl.objectives.build("clip", temperature=1)) == "CLIP(temperature=1)"


def test_values_are_those_of_the_functions() -> None:
    z1, z2, _ = batch(5)
    assert torch.equal(mbcl.objectives.build("simclr", temperature=0.3)(z1, z2), nt_xent(z1, z2, temperature=0.3))
    assert torch.equal(mbcl.objectives.build("clip", temperature=0.3)(z1, z2), clip(z1, z2, temperature=0.3))
