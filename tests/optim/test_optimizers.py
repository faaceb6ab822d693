"""Optimisers by name."""

from __future__ import annotations

import inspect

import pytest
import torch

import mbcl
from mbcl.errors import ConfigError
from mbcl.optim import OPTIMIZERS


def params() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3))]


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_optimizer_lowers_the_loss(name: str) -> None:
    weights = params()
    optimizer = mbcl.optim.build(name, weights, lr=0.1)
    assert all(group["lr"] == 0.1 for group in optimizer.param_groups)
    for _ in range(3):
        optimizer.zero_grad()
        sum((p**2).sum() for p in weights).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert all(bool((p < 1).all()) for p in weights)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_its_formula(nesterov: bool) -> None:
    weights, gradients = _random_steps()
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = mbcl.optim.build("sgd", [parameter], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    velocity = torch.zeros_like(weights)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        decayed = gradient + 0.01 * weights
        velocity = 0.9 * velocity + decayed
        weights = weights - 0.1 * (decayed + 0.9 * velocity if nesterov else velocity)
        torch.testing.assert_close(parameter.data, weights)


def test_adamw_is_its_formula() -> None:
    weights, gradients = _random_steps()
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = mbcl.optim.build("adamw", [parameter], lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.01)
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
    for step, gradient in enumerate(gradients, 1):
        parameter.grad = gradient.clone()
        optimizer.step()
        mean, square = 0.8 * mean + 0.2 * gradient, 0.95 * square + 0.05 * gradient**2
        unbiased_mean, unbiased_square = mean / (1 - 0.8**step), square / (1 - 0.95**step)
        weights = weights * (1 - 0.1 * 0.01) - 0.1 * unbiased_mean / (unbiased_square.sqrt() + 1e-3)
        torch.testing.assert_close(parameter.data, weights)


def _random_steps() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights and the gradients of five steps."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 5, generator=generator), torch.randn(5, 7, 5, generator=generator)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_optimizer_signature_has_keyword_settings_with_defaults(name: str) -> None:
    parameters = inspect.signature(OPTIMIZERS[name], eval_str=True).parameters
    assert next(iter(parameters)) == "params"
    settings = [parameter for key, parameter in parameters.items() if key != "params"]
    assert all(setting.kind is inspect.Parameter.KEYWORD_ONLY for setting in settings)
    assert all(setting.default is not inspect.Parameter.empty for setting in settings)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_build_refuses_bad_settings(name: str) -> None:
    for key, value in (("lr", -1), ("weight_decay", -1.0), ("lr", float("inf"))):
        with pytest.raises(ConfigError, match=f"{key} must be .*{value}"):
            mbcl.optim.build(name, params(), **{key: value})
    with pytest.raises(ConfigError, match=r"unknown parameter 'weight_decy'; did you mean 'weight_decay'\?"):
        mbcl.optim.build(name, params(), weight_decy=0)


def test_build_resolves_names() -> None:
    assert isinstance(mbcl.optim.build("sgd", params(), nesterov=True), torch.optim.SGD)
    assert isinstance(mbcl.optim.build("adamw", params(), betas=(0.8, 0.9)), torch.optim.AdamW)
    assert isinstance(mbcl.optim.build("lars", params()), mbcl.optim.LARS)
    with pytest.raises(ConfigError, match=r"unknown optimizer 'larss'; did you mean 'lars'\?"):
        mbcl.optim.build("larss", params())
    with pytest.raises(ConfigError, match="betas must be"):
        mbcl.optim.build("adamw", params(), betas=(0.9, 1.5))
    with pytest.raises(ConfigError, match="nesterov needs a momentum above 0"):
        mbcl.optim.build("sgd", params(), momentum=0.0, nesterov=True)
