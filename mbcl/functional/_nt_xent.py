"""NT-Xent, the loss of SimCLR.

Letters: b local samples (those of this process), B samples of the whole batch, D dimensions; A = 2b anchors, C = 2B
candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mbcl.functional._anchors import compare
from mbcl.functional._checks import check_temperature


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float,
    candidates1: Tensor | None = None,
    candidates2: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    r"""Normalised-temperature cross-entropy between two views, over all 2B anchors.

    With the 2B normalised rows h of both views, :math:`S = h h^T / \tau` and p(a) the other view of row a:

    .. math:: L = \frac{1}{2B} \sum_a \Big[ \log \sum_{c \ne a} e^{S_{ac}} - S_{a\,p(a)} \Big]

    With candidates, the sum runs over the local anchors only, but is divided by 2B, the anchors of the whole batch: the
    sum over the ranks is the loss of the whole batch. The gradients are those of the whole batch, too, if the backward
    pass of the gather that made the candidates sums the gradients of all ranks.

    Args:
        z1: (..., b, D) float, un-normalised projections of view 1. Leading dimensions are separate batches.
        z2: (..., b, D), view 2, row i being the same sample as row i of ``z1``.
        temperature: :math:`\tau`, dimensionless, above 0.
        candidates1: (..., B, D), un-normalised view 1 of the whole batch; ``z1`` if omitted.
        candidates2: (..., B, D), view 2 of the whole batch; ``z2`` if omitted.
        offset: position of the first local sample among the B.

    Returns:
        (...) float32, or float64 for float64 inputs; in nats, not negative.

    Stability:
        Computed as :math:`\log(1 + e^{x_a})` with :math:`x_a` the log-sum-exp over the negatives minus the positive:
        nothing overflows at any temperature, and a loss near 0 keeps its relative precision.

    Raises:
        ValueError: if shapes do not fit, or B < 2 (no negatives).
        ConfigError: if the temperature is not a finite number above 0.

    Reference:
        Chen et al., A Simple Framework for Contrastive Learning, arXiv 2002.05709, equation 1.

    Example:
        >>> nt_xent(torch.eye(2), torch.eye(2), temperature=1.0)  # log(1 + 2/e)
        tensor(0.5514)
    """
    check_temperature(temperature)
    anchors = compare("nt_xent", z1, z2, candidates1, candidates2, offset, temperature=temperature)
    x_A = anchors.log_sum_exp(anchors.score_AC) - anchors.positive()
    return anchors.share(torch.logaddexp(x_A, torch.zeros_like(x_A)))
