"""SimCLR: NT-Xent over both views of the whole batch."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mbcl.functional import check_temperature, nt_xent
from mbcl.objectives._base import OBJECTIVES, Candidates, Distribution, Objective


@OBJECTIVES.register("simclr", aliases=("sim",))
class SimCLR(Objective):
    """Mean over the 2B anchors of the cross-entropy that picks an anchor's other view among all other 2B-1 rows.

    Definition, numerics and reference: :func:`mbcl.functional.nt_xent`.

    Meant for every sampler. Samplers that choose batches by loss (``osgd``, ``spectral``) score them with this very
    function; at small batches it depends on the sampler most.

    Args:
        temperature: above 0; divides the cosines.

    Example:
        >>> import torch
        >>> SimCLR(temperature=1.0)(torch.eye(2), torch.eye(2))
        tensor(0.5514)
    """

    distribution: ClassVar[Distribution] = "candidates"

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(
        self, z1: Tensor, z2: Tensor, indices: Tensor | None = None, *, candidates: Candidates | None = None
    ) -> Tensor:
        """The loss of a batch, as in the base class. Leading dimensions are separate batches, as a sampler needs."""
        if candidates is None:
            return nt_xent(z1, z2, temperature=self.temperature)
        return nt_xent(
            z1,
            z2,
            temperature=self.temperature,
            candidates1=candidates.z1,
            candidates2=candidates.z2,
            offset=candidates.offset,
        )

    def extra_repr(self) -> str:
        """The parameters."""
        return f"temperature={self.temperature}"
