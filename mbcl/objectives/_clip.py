"""CLIP: each view picks its partner among the other view's rows."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mbcl.functional import check_temperature, clip
from mbcl.objectives._base import OBJECTIVES, Candidates, Distribution, Objective


@OBJECTIVES.register("clip")
class CLIP(Objective):
    """L(u, v) + L(v, u): the sum, not the average, of the two directions' cross-entropies; no same-view negatives.

    Definition, numerics and reference: :func:`mbcl.functional.clip`.

    Meant for every sampler. It is the loss that the theory of batch selection is about: the average over all
    C(N, B) batches has the same minimiser as the loss of the whole data set, and the synthetic study trains it with
    ``temperature=1`` under every sampler.

    Args:
        temperature: above 0; divides the cosines.

    Example:
        >>> import torch
        >>> CLIP(temperature=1.0)(torch.eye(2), torch.eye(2))
        tensor(0.6265)
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
            return clip(z1, z2, temperature=self.temperature)
        return clip(
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
