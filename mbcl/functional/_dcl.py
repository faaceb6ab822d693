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
    gradient of an anchor has no common factor that vanishes in small or easy batches. Arguments and errors are those of
    :func:`~mbcl.functional.nt_xent`, also with candidates: the sum over the ranks is the loss of the whole batch.

    Returns:
        (...) float32, or float64 for float64 inputs; in nats, at least :math:`\log(2B-2) - 2/\tau`: it can be negative.

    Stability:
        A log-sum-exp minus a similarity: nothing overflows at any temperature.

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
