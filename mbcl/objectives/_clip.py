"""CLIP: cross-entropy from each view to the other, in both directions."""

from __future__ import annotations

from mbcl.functional import clip
from mbcl.objectives._base import OBJECTIVES
from mbcl.objectives._stateless import StatelessObjective


@OBJECTIVES.register("clip")
class CLIP(StatelessObjective):
    """L(u, v) + L(v, u): the sum, not the average, of the two directions' cross-entropies; no same-view negatives.

    Details of the definition and its numerics: :func:`mbcl.functional.clip`.

    Formula:
        With S = u v^T / temperature, L(u, v) is the mean over i of log(sum over j of exp S_ij) - S_ii; the loss is L(u,
        v) + L(v, u).

    Cost:
        B² similarities a step, a quarter of ``simclr``.

    When to use:
        With every sampler. The theory of batch selection is about this loss: its average over all C(N, B) batches has
        the same minimiser as the loss of the whole data set. The synthetic study trains it with ``temperature=1`` under
        every sampler.

    Args:
        temperature: above 0; divides the cosines.

    Reference:
        Cho et al., Mini-Batch Optimization of Contrastive Loss, arXiv 2307.05906, section 3; Radford et al., arXiv
        2103.00020, figure 3.

    Example:
        >>> import torch
        >>> CLIP(temperature=1.0)(torch.eye(2), torch.eye(2))
        tensor(0.6265)
    """

    loss = staticmethod(clip)
