"""The loss of CLIP, between two views.

Letters: b local samples (those of this process), B samples of the whole batch, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mbcl.functional._checks import check_temperature, check_views
from mbcl.functional._similarity import cosine_similarity


def clip(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float,
    candidates1: Tensor | None = None,
    candidates2: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    r"""Cross-entropy from view 1 to view 2 plus from view 2 to view 1: their sum, not their average.

    With u, v the normalised views and :math:`S = u v^T / \tau`:

    .. math:: L = L(u, v) + L(v, u), \qquad
        L(u, v) = \frac{1}{B} \sum_i \Big[ \log \sum_j e^{S_{ij}} - S_{ii} \Big]

    Negatives come from the other view only. Arguments, errors and numerical stability are those of
    :func:`~mbcl.functional.nt_xent`, also with candidates: the sum over the ranks is the loss of the whole batch.

    Returns:
        (...) float32, or float64 for float64 inputs; in nats, not negative.

    Reference:
        Cho et al., Mini-Batch Optimization of Contrastive Loss, arXiv 2307.05906, section 3 (without temperature);
        Radford et al., arXiv 2103.00020, figure 3 (the average of the two directions).

    Example:
        >>> clip(torch.eye(2), torch.eye(2), temperature=1.0)  # 2 log(1 + 1/e)
        tensor(0.6265)
    """
    check_temperature(temperature)
    check_views("clip", z1, z2, candidates1, candidates2, offset)
    c1, c2 = (z1, z2) if candidates1 is None or candidates2 is None else (candidates1, candidates2)
    return _one_way(z1, c2, temperature, offset) + _one_way(z2, c1, temperature, offset)


def _one_way(u_bD: Tensor, v_BD: Tensor, temperature: float, offset: int) -> Tensor:
    """The local anchors' part of L(u, v)."""
    s_bB = cosine_similarity(u_bD, v_BD) / temperature
    own_b1 = torch.arange(offset, offset + u_bD.shape[-2], device=u_bD.device)[:, None].expand(*s_bB.shape[:-1], 1)
    x_b = s_bB.scatter(-1, own_b1, -torch.inf).logsumexp(-1) - s_bB.gather(-1, own_b1).squeeze(-1)
    return torch.logaddexp(x_b, torch.zeros_like(x_b)).sum(-1) / v_BD.shape[-2]
