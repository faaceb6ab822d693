"""Objectives: the contract of every registered one, then each objective's own values and parameters."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

import mbcl
from mbcl.errors import ConfigError
from mbcl.functional import clip, dcl, hcl, nt_xent
from mbcl.objectives import OBJECTIVES, Candidates, StatefulObjective
from mbcl.testing import check_objective

REQUIRED: dict[str, dict[str, object]] = {"sogclr": {"num_samples": 8}}
"""Required parameters of objectives."""

all_objectives = pytest.mark.parametrize("name", list(OBJECTIVES))


def batch(seed: int = 0, size: int = 6, dim: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = (torch.randn(size, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    return z1, z2, torch.randperm(size, generator=generator)


@all_objectives
def test_objective_keeps_its_promises(name: str) -> None:
    """In one process; ``tests/testing`` has several."""
    check_objective(name, num_workers=1)


@all_objectives
def test_objective_shares_of_ranks_sum_to_the_whole_batch(name: str) -> None:
    """Checked over three steps: loss, gradients and, where an objective has it, state."""
    if OBJECTIVES[name].distribution == "local":
        pytest.skip("not made of shares")
    alone = mbcl.objectives.build(name, **REQUIRED.get(name, {}))
    ranks = [mbcl.objectives.build(name, **REQUIRED.get(name, {})) for _ in range(2)]
    for step in range(3):
        z1, z2, indices = batch(step)
        z1, z2 = z1.requires_grad_(), z2.requires_grad_()
        expected = alone(z1, z2, indices)
        shares = [
            rank(z1[rows], z2[rows], indices[rows], candidates=Candidates(z1, z2, rows.start, indices))
            for rank, rows in zip(ranks, (slice(0, 3), slice(3, 6)), strict=True)
        ]
        torch.testing.assert_close(shares[0] + shares[1], expected)
        for gradient, expected_gradient in zip(
            torch.autograd.grad(shares[0] + shares[1], [z1, z2]), torch.autograd.grad(expected, [z1, z2]), strict=True
        ):
            torch.testing.assert_close(gradient, expected_gradient)
        if isinstance(alone, StatefulObjective):
            pending = torch.cat([rank.pending for rank in ranks])  # type: ignore[misc, union-attr]
            for rank in ranks:
                rank.commit(indices, pending)  # type: ignore[operator]
    for rank in ranks:
        torch.testing.assert_close(rank.state_dict(), alone.state_dict())


@all_objectives
def test_objective_without_state_takes_leading_dimensions(name: str) -> None:
    """A sampler scores many batches at once."""
    if OBJECTIVES[name].distribution == "state":
        pytest.skip("its batches come with indices")
    objective = mbcl.objectives.build(name)
    z1, z2 = (torch.stack([batch(seed)[view] for seed in range(3)]) for view in range(2))
    losses = objective(z1, z2)
    assert losses.shape == (3,)
    torch.testing.assert_close(losses[1], objective(z1[1], z2[1]))


@all_objectives
def test_objective_declares_its_distribution_and_is_documented(name: str) -> None:
    objective = OBJECTIVES[name]
    assert objective.distribution in ("local", "candidates", "state")
    assert objective.__doc__ is not None
    assert {"Formula:", "Cost:", "When to use:", "Reference:"} <= set(map(str.strip, objective.__doc__.splitlines()))
    parameters = inspect.signature(objective, eval_str=True).parameters.values()
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters)
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)


@all_objectives
@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan"), "hot", None])
def test_build_refuses_a_bad_temperature(name: str, temperature: object) -> None:
    with pytest.raises(ConfigError, match=f"temperature must be .*found {temperature!r}"):
        mbcl.objectives.build(name, **{**REQUIRED.get(name, {}), "temperature": temperature})


@all_objectives
def test_build_suggests_the_nearest_parameter(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown parameter 'tempera'; did you mean 'temperature'\?"):
        mbcl.objectives.build(name, tempera=0.1)


def test_build_suggests_the_nearest_objective() -> None:
    with pytest.raises(ConfigError, match=r"unknown objective 'simclrr'; did you mean 'simclr'\?"):
        mbcl.objectives.build("simclrr")


def test_build_knows_published_names_and_defaults() -> None:
    assert OBJECTIVES.canonical("sim") == "simclr"
    assert OBJECTIVES.canonical("sog") == "sogclr"
    for name in ("simclr", "sim", "clip", "dcl", "hcl", "sog"):
        required = REQUIRED.get(OBJECTIVES.canonical(name), {})
        assert mbcl.objectives.build(name, **required).temperature == 0.1
    hard = "HCL(temperature=0.1, tau_plus=0.1, beta=1.0, estimator='hard')"
    assert repr(mbcl.objectives.build("hcl")) == hard
    dynamic = "SogCLR(num_samples=8, temperature=0.1, gamma=0.9, first_touch='sample')"
    assert repr(mbcl.objectives.build("sogclr", num_samples=8)) == dynamic
    assert repr(mbcl.objectives.build("clip", temperature=1)) == "CLIP(temperature=1)"


def test_objectives_equal_their_functions() -> None:
    z1, z2, _ = batch(5)
    for name, function in (("simclr", nt_xent), ("clip", clip), ("dcl", dcl), ("hcl", hcl)):
        assert torch.equal(mbcl.objectives.build(name, temperature=0.3)(z1, z2), function(z1, z2, temperature=0.3))
    parameters = {"temperature": 0.3, "tau_plus": 0.2, "beta": 0.5, "estimator": "hard"}
    assert torch.equal(mbcl.objectives.build("hcl", **parameters)(z1, z2), hcl(z1, z2, **parameters))  # type: ignore[arg-type]
    easy = mbcl.objectives.build("hcl", temperature=0.3, estimator="easy")
    assert torch.equal(easy(z1, z2), nt_xent(z1, z2, temperature=0.3))


@pytest.mark.parametrize(
    "name, parameters, text",
    [
        ("hcl", {"tau_plus": 1.0}, "tau_plus must be >= 0 and < 1, found 1.0"),
        ("hcl", {"beta": -1}, "beta must be >= 0, found -1"),
        ("hcl", {"estimator": "soft"}, "estimator must be 'hard' or 'easy', found 'soft'"),
        ("sogclr", {"gamma": 0.0}, "gamma must be > 0 and <= 1, found 0.0"),
        ("sogclr", {"gamma": 1.5}, "gamma must be > 0 and <= 1, found 1.5"),
        ("sogclr", {"first_touch": "never"}, "first_touch must be 'sample' or 'batch', found 'never'"),
        ("sogclr", {"num_samples": 0}, "num_samples must be a whole number >= 1, found 0"),
        ("sogclr", {"temperature": 0.001}, "temperature must be >= 0.002 for sogclr"),
    ],
)
def test_build_refuses_bad_parameters(name: str, parameters: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        mbcl.objectives.build(name, **{**REQUIRED.get(name, {}), **parameters})


def test_build_requires_num_samples_for_sogclr() -> None:
    with pytest.raises(ConfigError, match="parameter 'num_samples' is required"):
        mbcl.objectives.build("sogclr")
