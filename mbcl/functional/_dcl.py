"""The decoupled contrastive loss: NT-Xent without the positive in its denominator.

Letters: b local samples (those of this process), B samples of the whole batch, D dimensions; A = 2b anchors, C = 2B
candidates.
"""

from __future__ import annotations

from torch import Tensor

from mbcl.functional._anchors import compare
from mbcl.functional._checks import check_temperature


def dcl(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float,
    candidates1: Tensor | None = None,
    candidates2: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    r"""Decoupled contrastive loss between two views, over all 2B anchors.

    With the 2B normalised rows h of both views, :math:`S = h h^T / \tau`, p(a) the other view of row a and n(a) its
    2B - 2 negatives, all rows except a and p(a):

    .. math:: L = \frac{1}{2B} \sum_a \Big[ \log \sum_{c \in n(a)} e^{S_{ac}} - S_{a\,p(a)} \Big]

    Since the positive is not in the sum, the attraction of the views does not weaken when the negatives are far: the
    gradient of an anchor has no common factor that vanishes in small or easy batches. Candidates work as in
    :func:`~mbcl.functional.nt_xent`: the sum over the ranks is the loss of the whole batch.

    Args:
        z1: (..., b, D) float, un-normalised projections of view 1. Leading dimensions are separate batches.
        z2: (..., b, D), view 2, row i being the same sample as row i of ``z1``.
        temperature: :math:`\tau`, dimensionless, above 0.
        candidates1: (..., B, D), un-normalised view 1 of the whole batch; ``z1`` if omitted.
        candidates2: (..., B, D), view 2 of the whole batch; ``z2`` if omitted.
        offset: position of the first local sample among the B.

    Returns:
        (...) float32, or float64 for float64 inputs; in nats, at least :math:`\log(2B-2) - 2/\tau`: it can be negative.

    Stability:
        A log-sum-exp minus a similarity: nothing overflows at any temperature.

    Raises:
        ValueError: if shapes do not fit, or B < 2 (no negatives).
        ConfigError: if the temperature is not a finite number above 0.

    Reference:
        Yeh et al., Decoupled Contrastive Learning, arXiv 2110.06848, section 3, the loss :math:`L_{DC}`.

    Example:
        >>> import torch
        >>> dcl(torch.eye(2), torch.eye(2), temperature=1.0)  # log(2) - 1
        tensor(-0.3069)
    """
    check_temperature(temperature)
    anchors = compare("dcl", z1, z2, candidates1, candidates2, offset, temperature=temperature)
    return anchors.share(anchors.log_sum_exp(anchors.score_AC) - anchors.positive())
