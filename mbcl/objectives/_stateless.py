"""The base of the objectives without state: a temperature, and the whole batch as candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from mbcl.functional import check_temperature
from mbcl.objectives._base import Candidates, Distribution, Objective


class StatelessObjective(Objective):
    """Base of the objectives that are a pure function of the batch's projections and a few numbers.

    A subclass sets ``loss`` to its function: ``(z1, z2, *, temperature, candidates1, candidates2, offset)`` to a
    scalar.
    If the function has more parameters than these, the subclass overrides :meth:`settings`.

    Args:
        temperature: above 0; divides the cosines.
    """

    distribution: ClassVar[Distribution] = "candidates"
    loss: ClassVar[Callable[..., Tensor]]

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(
        self, z1: Tensor, z2: Tensor, indices: Tensor | None = None, *, candidates: Candidates | None = None
    ) -> Tensor:
        """Return the loss of a batch, as in the base class; leading dimensions are separate batches, for samplers."""
        return type(self).loss(z1, z2, **self.settings(), **Candidates.arguments(candidates))

    def settings(self) -> dict[str, object]:
        """Return the parameters as keyword arguments of the loss function."""
        return {"temperature": self.temperature}

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
