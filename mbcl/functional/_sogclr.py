"""The dynamic contrastive loss of SogCLR: a surrogate whose weights come from a moving average of every sample.

Letters: b local samples (those of this process), B samples of the whole batch, D dimensions; A = 2b anchors, C = 2B
candidates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mbcl.errors import ConfigError
from mbcl.functional._anchors import compare
from mbcl.functional._checks import check_temperature

MIN_TEMPERATURE = 0.002
"""exp(±1/T) is a normal float64 down to T = 0.00142; the margin is for sums, and for cosines above 1 by rounding."""


def check_moving_temperature(value: object) -> float:
    """Return ``value`` if it is a temperature at which float64 can represent the average of exp(s/T).

    Example:
        >>> check_moving_temperature(0.01)
        0.01
    """
    temperature = check_temperature(value)
    if temperature < MIN_TEMPERATURE:
        raise ConfigError(
            f"temperature must be >= {MIN_TEMPERATURE} for sogclr, which keeps averages of exp(1/temperature) in "
            f"float64, found {value!r}"
        )
    return temperature


def sogclr(
    z1: Tensor,
    z2: Tensor,
    *,
    u: Tensor,
    gamma: Tensor | float,
    temperature: float,
    candidates1: Tensor | None = None,
    candidates2: Tensor | None = None,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Surrogate of the global contrastive loss, and the moving averages that determine its weights.

    With the 2B normalised rows h of both views, s their cosines, p(a) the other view of row a, i(a) its sample, n(a)
    its :math:`K = 2B - 2` negatives and sg the identity without a gradient:

    .. math:: L = \frac{1}{B} \sum_a \Big[ \frac{1}{K} \sum_{c \in n(a)} w_{ac} s_{ac} - s_{a\,p(a)} \Big], \qquad
        w_{ac} = \mathrm{sg}\Big( \frac{e^{s_{ac}/T}}{u_a} \Big)

    .. math:: u_a = (1 - \gamma_{i(a)})\, u_{i(a)} + \gamma_{i(a)}\, g_a, \qquad
        g_a = \frac{1}{K} \sum_{c \in n(a)} e^{s_{ac}/T}

    The new u of a sample is the mean of :math:`u_a` over its two views; both start from the same old one. A sample
    without an old u has :math:`\gamma_i = 1`, which makes the average that of its first batch.

    As published, L is the mean over the B samples of the sum of their two anchors, and its similarities are not
    divided by T: where all :math:`\gamma = 1`, its gradient is 2T times that of :func:`~mbcl.functional.dcl`. Its value
    is no likelihood: it is often negative, and does not measure the progress of training.

    With candidates, the sum runs over the local anchors only, but is divided by the whole batch's B: the sum over the
    ranks is the loss of the whole batch, with its gradient, as in :func:`~mbcl.functional.nt_xent`.

    Args:
        z1: (..., b, D) float, un-normalised projections of view 1. Leading dimensions are separate batches.
        z2: (..., b, D), view 2, row i being the same sample as row i of ``z1``.
        u: (..., b) old moving averages of the local samples, preferably float64: at small T they exceed float32. Where
            :math:`\gamma_i = 1` any finite value will do.
        gamma: in (0, 1], dimensionless, the weight of this batch in u: one number, or (..., b), one per sample.
        temperature: T, dimensionless, at least 0.002.
        candidates1: (..., B, D), un-normalised view 1 of the whole batch; ``z1`` if omitted.
        candidates2: (..., B, D), view 2 of the whole batch; ``z2`` if omitted.
        offset: position of the first local sample among the B.

    Returns:
        The loss, (...) float32, or float64 for float64 inputs; dimensionless. The new u of the local samples,
        (..., b) float64, without a gradient.

    Stability:
        The logarithm of g is a log-sum-exp. g and u themselves exist in float64 only, whose range :math:`e^{1/T}` does
        not exceed. The weights are :math:`e^{s/T - \log u}`, at most :math:`K/\gamma`. At T = 0.01, :math:`e^{1/T}`
        exceeds float32.

    Raises:
        ValueError: if shapes do not fit, or B < 2 (no negatives).
        ConfigError: if the temperature is not a finite number of at least 0.002.

    Reference:
        Yuan et al., Provable Stochastic Optimization for Global Contrastive Learning: Small Batch Does Not Harm
        Performance, arXiv 2202.12387, algorithm 1. The scale is that of the published implementation.

    Example:
        >>> loss, u = sogclr(torch.eye(2), torch.eye(2), u=torch.zeros(2), gamma=1.0, temperature=1.0)
        >>> loss, u  # cosines of 1 with the other view, of 0 with the negatives
        (tensor(-2.), tensor([1.0000, 1.0000], dtype=torch.float64))
    """
    check_moving_temperature(temperature)
    # Temperature 1, since the loss uses the cosines themselves; only the weights divide by the temperature.
    anchors = compare("sogclr", z1, z2, candidates1, candidates2, offset, temperature=1.0)
    shape = z1.shape[:-1]
    gamma_b = torch.as_tensor(gamma, dtype=torch.float64, device=z1.device)
    if u.shape != shape or gamma_b.shape not in (torch.Size(), shape):
        raise ValueError(
            f"sogclr: u, and gamma if it is not one number, must be {tuple(shape)}, "
            f"found {tuple(u.shape)} and {tuple(gamma_b.shape)}"
        )
    with torch.no_grad():
        scaled_AC = anchors.score_AC / temperature
        log_g_A = anchors.log_sum_exp(scaled_AC).double() - math.log(anchors.num_negatives)
        gamma_1b = gamma_b.expand(shape).unsqueeze(-2)
        u_2b = (1 - gamma_1b) * u.double().unsqueeze(-2) + gamma_1b * log_g_A.exp().unflatten(-1, (2, -1))
        log_u_A = u_2b.flatten(-2).log().to(scaled_AC.dtype)
        weight_AC = anchors.negatives(scaled_AC - log_u_A[..., None]).exp()
    repulsion_A = (weight_AC * anchors.score_AC).sum(-1) / anchors.num_negatives
    return 2 * anchors.share(repulsion_A - anchors.positive()), u_2b.mean(-2)
