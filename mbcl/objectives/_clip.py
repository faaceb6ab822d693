"""CLIP: cross-entropy from each view to the other, in both directions."""

from __future__ import annotations

from mbcl.functional import clip
from mbcl.objectives._base import OBJECTIVES
from mbcl.objectives._stateless import StatelessObjective


@OBJECTIVES.register("clip")
class CLIP(StatelessObjective):
    """L(u, v) + L(v, u): the sum, not the average, of the two directions' cross-entropies; no same-view negatives.

    Definition, numerics and reference: :func:`mbcl.functional.clip`.

    Meant for every sampler. The theory of batch selection is about this loss: its average over all C(N, B) batches has
    the same minimiser as the loss of the whole data set. The synthetic study trains it with ``temperature=1`` under
    every sampler.

    Args:
        temperature: above 0; divides the cosines.

    Example:
        >>> import torch
        >>> CLIP(temperature=1.0)(torch.eye(2), torch.eye(2))
        tensor(0.6265)
    """

    loss = staticmethod(clip)
