"""Scores of the local anchors with the candidates of the whole batch: the common part of NT-Xent, DCL, HCL and SogCLR.

Letters: b local samples (those of this process), B samples of the whole batch, D dimensions; A = 2b anchors, C = 2B
candidates, both views one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbcl.functional._checks import check_views
from mbcl.functional._similarity import cosine_similarity


@dataclass(frozen=True, eq=False)
class Anchors:
    """Scores of the local anchors, and the positions of each anchor itself and of its other view among the candidates.

    Args:
        score_AC: (..., A, C) cosines over the temperature; float32, or float64 for float64 inputs.
        own_A1: (..., A, 1) int64, the candidate that is the anchor itself.
        positive_A1: (..., A, 1) int64, the candidate that is its other view.
    """

    score_AC: Tensor
    own_A1: Tensor
    positive_A1: Tensor

    @property
    def num_candidates(self) -> int:
        """2B, the number of candidates, which is also the number of anchors of the whole batch."""
        return self.score_AC.shape[-1]

    @property
    def num_negatives(self) -> int:
        """2B - 2, the number of candidates that are neither an anchor itself nor its other view."""
        return self.num_candidates - 2

    def positive(self) -> Tensor:
        """(..., A) score of each anchor with its other view."""
        return self.score_AC.gather(-1, self.positive_A1).squeeze(-1)

    def negatives(self, x_AC: Tensor) -> Tensor:
        """(..., A, C) the values ``x_AC``, with -inf where a candidate is not a negative of the anchor."""
        return x_AC.scatter(-1, torch.cat([self.own_A1, self.positive_A1], dim=-1), -torch.inf)

    def log_sum_exp(self, x_AC: Tensor) -> Tensor:
        """(..., A) log-sum-exp of ``x_AC`` over the negatives of each anchor; never overflows."""
        return self.negatives(x_AC).logsumexp(-1)

    def share(self, loss_A: Tensor) -> Tensor:
        """(...) sum over the local anchors, divided by the number of anchors of the whole batch."""
        return loss_A.sum(-1) / self.num_candidates


def compare(
    name: str,
    z1: Tensor,
    z2: Tensor,
    candidates1: Tensor | None,
    candidates2: Tensor | None,
    offset: int,
    *,
    temperature: float,
) -> Anchors:
    """Compute the scores of both views' anchors with both views' candidates; ``name`` is the loss's, for messages.

    The other arguments are those of :func:`mbcl.functional.nt_xent`.

    Raises:
        ValueError: if shapes do not fit, or B < 2.
    """
    check_views(name, z1, z2, candidates1, candidates2, offset)
    z_AD = torch.cat([z1, z2], dim=-2)
    c_CD = z_AD if candidates1 is None or candidates2 is None else torch.cat([candidates1, candidates2], dim=-2)
    score_AC = cosine_similarity(z_AD, c_CD) / temperature
    num_samples = c_CD.shape[-2] // 2
    sample_b = torch.arange(offset, offset + z1.shape[-2], device=z1.device)
    return Anchors(
        score_AC,
        own_A1=torch.cat([sample_b, sample_b + num_samples])[:, None].expand(*score_AC.shape[:-1], 1),
        positive_A1=torch.cat([sample_b + num_samples, sample_b])[:, None].expand(*score_AC.shape[:-1], 1),
    )
