"""Diagnostics of a representation that need no labels.

Letters: N samples, D dimensions, c rows of a chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mbcl.functional import normalize, raise_half
from mbcl.metrics._retrieval import chunk_rows


def alignment(u: Tensor, v: Tensor) -> float:
    r"""Mean squared distance of two views on the unit sphere: :math:`\frac1N \sum_i \|\hat u_i - \hat v_i\|^2`.

    Args:
        u: (N, D) float embeddings of view 1, un-normalised.
        v: (N, D) of view 2, row i of the same sample.

    Returns:
        A number in [0, 4]; 0 if both views of every sample have the same direction, 2 if they are unrelated.

    Raises:
        ValueError: if shapes do not fit or N is 0.

    Reference:
        Wang & Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the
        Hypersphere, ICML 2020, equation 5 with alpha = 2.

    Example:
        >>> alignment(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
        2.0
    """
    if u.ndim != 2 or u.shape != v.shape or len(u) == 0:
        raise ValueError(f"alignment: two (N, D) tensors, N > 0, are needed; found {tuple(u.shape)}, {tuple(v.shape)}")
    return float((normalize(u) - normalize(v)).double().square().sum(dim=1).mean())


def uniformity(x: Tensor) -> float:
    r"""How evenly samples are spread over the unit sphere.

    .. math:: \log \frac{1}{N (N - 1)} \sum_{i \ne j} \exp(-2 \|\hat x_i - \hat x_j\|^2)

    Args:
        x: (N, D) float embeddings, un-normalised, N at least 2.

    Returns:
        A number <= 0 up to rounding; 0 if all samples are the same point, lower is more even.

    Raises:
        ValueError: if ``x`` is not (N, D) with N at least 2.

    Reference:
        Wang & Isola 2020, equation 6 with t = 2, and appendix A; the mean is over pairs of different samples, as in
        their code.

    Example:
        >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        -8.0
    """
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"uniformity: (N, D) with N at least 2 is needed; found {tuple(x.shape)}")
    rows = chunk_rows(len(x))
    parts = []
    with torch.no_grad(), torch.autocast(device_type=x.device.type, enabled=False):
        x_ND = normalize(x)
        squared_N = x_ND.square().sum(dim=1)  # 1, or 0 for a zero row
        for start in range(0, len(x), rows):
            part_cD = x_ND[start : start + rows]
            d_cN = squared_N[start : start + rows, None] + squared_N - 2 * part_cD @ x_ND.T
            d_cN.clamp_(min=0.0).diagonal(offset=start).fill_(math.inf)
            parts.append(d_cN.mul_(-2.0).logsumexp(dim=1).double())
    return float(torch.cat(parts).logsumexp(dim=0)) - math.log(len(x) * (len(x) - 1))


def effective_rank(x: Tensor) -> float:
    r"""The effective number of directions of a representation: the exponential of the entropy of its singular values.

    .. math:: \exp\Big(-\sum_k p_k \log p_k\Big), \qquad p_k = \sigma_k / {\textstyle\sum_l \sigma_l}

    Args:
        x: (N, D) float embeddings, neither centred nor normalised.

    Returns:
        A number in [1, min(N, D)]; 0 if all entries are 0.

    Raises:
        ValueError: if ``x`` is not (N, D) with N and D above 0, or an entry is not finite.

    Reference:
        Roy & Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007, definition 1.

    Example:
        >>> round(effective_rank(torch.eye(5)), 6)
        5.0
    """
    if x.ndim != 2 or 0 in x.shape or not bool(torch.isfinite(x).all()):
        raise ValueError(f"effective rank: a finite (N, D) tensor is needed; found {tuple(x.shape)}")
    singular = torch.linalg.svdvals(raise_half(x).detach().double())
    total = float(singular.sum())
    if total == 0:
        return 0.0
    p = singular / total
    return math.exp(float(torch.special.entr(p).sum()))
