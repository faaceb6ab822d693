"""DCL: SimCLR's loss without the positive in its denominator."""

from __future__ import annotations

from mbcl.functional import dcl
from mbcl.objectives._base import OBJECTIVES
from mbcl.objectives._stateless import StatelessObjective


@OBJECTIVES.register("dcl")
class DCL(StatelessObjective):
    """Mean over the 2B anchors of the log-sum-exp over their 2B-2 negatives, minus the similarity of their other view.

    Details of the definition and its numerics: :func:`mbcl.functional.dcl`.

    Formula:
        As ``simclr``, with the sum over the 2B - 2 negatives only.

    Cost:
        (2B)² similarities a step.

    When to use:
        With small batches, and with samplers that do not choose hard batches, such as ``shuffle``: SimCLR's gradient
        vanishes where the negatives of a batch are far away, the gradient of this loss does not. With ``osgd`` and
        ``spectral``, whose batches have near negatives, the two losses are similar; ``osgd`` can score with this one
        (``score: objective``).

    Args:
        temperature: above 0; divides the cosines.

    Reference:
        Yeh et al., Decoupled Contrastive Learning, arXiv 2110.06848.

    Example:
        >>> import torch
        >>> DCL(temperature=1.0)(torch.eye(2), torch.eye(2))
        tensor(-0.3069)
    """

    loss = staticmethod(dcl)
