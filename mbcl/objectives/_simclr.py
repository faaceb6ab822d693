"""SimCLR: NT-Xent over both views of the whole batch."""

from __future__ import annotations

from mbcl.functional import nt_xent
from mbcl.objectives._base import OBJECTIVES
from mbcl.objectives._stateless import StatelessObjective


@OBJECTIVES.register("simclr", aliases=("sim",))
class SimCLR(StatelessObjective):
    """Mean over the 2B anchors of the cross-entropy that picks an anchor's other view among all other 2B-1 rows.

    Details of the definition and its numerics: :func:`mbcl.functional.nt_xent`.

    Formula:
        With the 2B rows h of both views, S = h h^T / temperature and p(a) the other view of row a, the mean over a of
        log(sum over c != a of exp S_ac) - S_a,p(a).

    Cost:
        (2B)² similarities a step.

    When to use:
        With every sampler. Samplers that choose batches by loss (``osgd``, ``spectral``) score them with this function.
        The sampler has the largest influence at small batches.

    Args:
        temperature: above 0; divides the cosines.

    Reference:
        Chen et al., A Simple Framework for Contrastive Learning, arXiv 2002.05709, equation 1.

    Example:
        >>> import torch
        >>> SimCLR(temperature=1.0)(torch.eye(2), torch.eye(2))
        tensor(0.5514)
    """

    loss = staticmethod(nt_xent)
