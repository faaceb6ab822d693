"""The contrastive loss with debiased hard negatives.

Letters: b local samples (those of this process), B samples of the whole batch, D dimensions; A = 2b anchors, C = 2B
candidates.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mbcl.functional._anchors import Anchors, compare
from mbcl.functional._checks import check_choice, check_number, check_temperature

HardNegatives = Literal["hard", "easy"]


def hcl(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float,
    tau_plus: float = 0.1,
    beta: float = 1.0,
    estimator: HardNegatives = "hard",
    candidates1: Tensor | None = None,
    candidates2: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    r"""Contrastive loss whose negatives are weighted by their similarity and corrected for false ones.

    With the 2B normalised rows h of both views, p(a) the other view of row a, n(a) its :math:`N = 2B - 2` negatives,
    :math:`n_{ac} = e^{h_a \cdot h_c / t}` and :math:`P_a = e^{h_a \cdot h_{p(a)} / t}`:

    .. math:: L = \frac{1}{2B} \sum_a \log\Big(1 + \frac{G_a}{P_a}\Big), \qquad
        G_a = \max\Big( \frac{R_a - \tau^+ N P_a}{1 - \tau^+},\; N e^{-1/t} \Big), \qquad
        R_a = \frac{\sum_{c \in n(a)} n_{ac}^{1+\beta}}{\frac{1}{N} \sum_{c \in n(a)} n_{ac}^{\beta}}

    R is the sum over the negatives with weights that rise with the similarity (:math:`\beta`). The subtracted term is
    the part of R that is expected from samples of the anchor's class (:math:`\tau^+`). The second argument of the
    maximum is the least value of a sum over N negatives; where it is the larger one, G is a constant, and only P has a
    gradient. With ``estimator="easy"`` G is the plain sum, :math:`\sum_c n_{ac}`, and the loss is
    :func:`~mbcl.functional.nt_xent`; so it is for the ``hard`` estimator with :math:`\beta = \tau^+ = 0`.

    Candidates work as in :func:`~mbcl.functional.nt_xent`, and B is the whole batch's: the sum over the ranks is the
    loss of the whole batch.

    Args:
        z1: (..., b, D) float, un-normalised projections of view 1. Leading dimensions are separate batches.
        z2: (..., b, D), view 2, row i being the same sample as row i of ``z1``.
        temperature: t, dimensionless, above 0.
        tau_plus: :math:`\tau^+`, in [0, 1): the share of samples that are of the anchor's class. Not used by ``easy``.
        beta: :math:`\beta`, at least 0: the exponent of the weights of hard negatives; 0 for equal weights. Not used by
            ``easy``.
        estimator: ``hard``, the equation above, or ``easy``, without weights and correction.
        candidates1: (..., B, D), un-normalised view 1 of the whole batch; ``z1`` if omitted.
        candidates2: (..., B, D), view 2 of the whole batch; ``z2`` if omitted.
        offset: position of the first local sample among the B.

    Returns:
        (...) float32, or float64 for float64 inputs; in nats, not negative.

    Stability:
        Everything stays in the log domain: at t = 0.01, :math:`n^{1+\beta} = e^{200}` exceeds float32. The
        difference in G is :math:`R (1 - e^r)` with :math:`r = \log(\tau^+ N P / R)`, and the loss is
        :math:`\log(1 + e^x)` with :math:`x = \log G - \log P`, which keeps the relative precision of a loss near 0.

    Raises:
        ValueError: if shapes do not fit, or B < 2 (no negatives).
        ConfigError: if a parameter is out of its range.

    Reference:
        Robinson et al., Contrastive Learning with Hard Negative Samples, arXiv 2010.04592, section 3: the weights and
        the estimator. Chuang et al., Debiased Contrastive Learning, arXiv 2007.00224: the correction and its floor.

    Example:
        >>> hcl(torch.eye(2), torch.eye(2), temperature=1.0, tau_plus=0.1)  # log(1 + (2 - 0.2 e) / (0.9 e))
        tensor(0.4671)
    """
    check_temperature(temperature)
    check_number("tau_plus", tau_plus, least=0.0, below=1.0)
    check_number("beta", beta, least=0.0)
    check_choice("estimator", estimator, ("hard", "easy"))
    anchors = compare("hcl", z1, z2, candidates1, candidates2, offset, temperature=temperature)
    positive_A = anchors.positive()
    if estimator == "easy":
        log_g_A = anchors.log_sum_exp(anchors.score_AC)
    else:
        log_g_A = _log_debiased(anchors, positive_A, temperature, tau_plus, beta)
    x_A = log_g_A - positive_A
    return anchors.share(torch.logaddexp(x_A, torch.zeros_like(x_A)))


def _log_debiased(anchors: Anchors, positive_A: Tensor, temperature: float, tau_plus: float, beta: float) -> Tensor:
    """Logarithm of G of every anchor."""
    s_AC, log_n = anchors.score_AC, math.log(anchors.num_negatives)
    log_r_A = anchors.log_sum_exp((1 + beta) * s_AC) - anchors.log_sum_exp(beta * s_AC) + log_n
    log_tau = math.log(tau_plus) if tau_plus > 0 else -math.inf
    ratio_A = log_tau + log_n + positive_A - log_r_A
    floor = log_n - 1 / temperature

    def log_g(ratio_A: Tensor) -> Tensor:
        return log_r_A + torch.log(-torch.expm1(ratio_A)) - math.log1p(-tau_plus)

    # A ratio above 0 (R is below the subtracted term) gives a NaN, and a comparison of NaN with the floor is False. The
    # second call gets a harmless ratio for such anchors: a NaN would reach the gradient even from the branch of
    # torch.where that is not taken.
    with torch.no_grad():
        above_A = log_g(ratio_A) > floor
    return torch.where(above_A, log_g(torch.where(above_A, ratio_A, -1.0)), floor)
