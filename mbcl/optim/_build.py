"""Optimisers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mbcl.errors import ConfigError
from mbcl.functional import check_number
from mbcl.optim._lars import LARS
from mbcl.registry import Registry, construct

Params = Iterable[Tensor] | Iterable[dict[str, Any]]
Factory = Callable[..., Optimizer]

OPTIMIZERS: Registry[Factory] = Registry("optimizer", "mbcl.optimizers")
"""Functions of the parameters and, by keyword, the settings; their signatures define the configuration's schema."""


@OPTIMIZERS.register("lars")
def lars(
    params: Params,
    *,
    lr: float = 0.075,
    momentum: float = 0.9,
    weight_decay: float = 1e-6,
    trust_coefficient: float = 0.001,
) -> Optimizer:
    """:class:`~mbcl.optim.LARS` with the published settings.

    Args:
        params: the tensors, or groups of them.
        lr: learning rate before the schedule's scaling.
        momentum: share of the last update that the next one keeps.
        weight_decay: factor of the weights that is added to their gradient.
        trust_coefficient: length of a step at learning rate 1, as a share of the tensor's norm.
    """
    return LARS(params, lr, momentum, weight_decay, trust_coefficient)


@OPTIMIZERS.register("sgd")
def sgd(
    params: Params, *, lr: float = 0.075, momentum: float = 0.9, weight_decay: float = 1e-6, nesterov: bool = False
) -> Optimizer:
    """:class:`torch.optim.SGD`; weight decay applies to every tensor.

    Args:
        params: the tensors, or groups of them.
        lr: learning rate before the schedule's scaling.
        momentum: share of the last update that the next one keeps.
        weight_decay: factor of the weights that is added to their gradient.
        nesterov: take the gradient after the step of the momentum.
    """
    check_number("lr", lr, least=0.0)
    check_number("momentum", momentum, least=0.0, most=1.0)
    check_number("weight_decay", weight_decay, least=0.0)
    if nesterov and momentum == 0:
        raise ConfigError("nesterov needs a momentum above 0, found momentum 0")
    return torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


@OPTIMIZERS.register("adamw")
def adamw(
    params: Params,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> Optimizer:
    """:class:`torch.optim.AdamW` with torch's defaults; weight decay applies to every tensor.

    Args:
        params: the tensors, or groups of them.
        lr: learning rate before the schedule's scaling.
        betas: decay rates of the means of the gradient and of its square.
        eps: added to the root of the mean square.
        weight_decay: share of the weights, times the learning rate, that a step subtracts.
    """
    check_number("lr", lr, least=0.0)
    check_number("eps", eps, least=0.0)
    check_number("weight_decay", weight_decay, least=0.0)
    for beta in betas:
        check_number("betas", beta, least=0.0, most=1.0)
    return torch.optim.AdamW(params, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay)


def build(name: str, params: Params, **parameters: object) -> Optimizer:
    """Make the optimiser of this name for tensors or parameter groups.

    Raises:
        ConfigError: if the name or a setting is unknown, or a value is out of range.

    Example:
        >>> type(build("lars", [torch.nn.Parameter(torch.ones(2, 2))], lr=0.4)).__name__
        'LARS'
    """
    factory: Factory = partial(OPTIMIZERS[name], params)
    return construct("optimizer", name, factory, parameters)
