"""The interface of objectives and their registry."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mbcl.registry import Registry, construct

Distribution = Literal["local", "candidates", "state"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """The projections of all ranks, for objectives that take their negatives from the whole batch.

    Args:
        z1: (B, D) un-normalised projections of view 1 of the whole batch, in rank order.
        z2: (B, D) of view 2.
        offset: position of this rank's first sample among the B.
        indices: (B,) int64 data-set positions of the whole batch, for objectives with state; else None.
    """

    z1: Tensor
    z2: Tensor
    offset: int
    indices: Tensor | None = None

    @staticmethod
    def arguments(candidates: Candidates | None) -> dict[str, Any]:
        """Return the keyword arguments of the functions in :mod:`mbcl.functional`; none in one process."""
        if candidates is None:
            return {}
        return {"candidates1": candidates.z1, "candidates2": candidates.z2, "offset": candidates.offset}


class Objective(nn.Module):
    """Base of all objectives.

    ``distribution`` declares what an objective needs in training on several ranks. The training step gathers it, so the
    mathematics contains no collectives:

    - ``local``: nothing; the loss is a mean over samples, of a function of both views of one sample. Each rank's loss
      is that of its own part of the batch, and the mean over the ranks is the loss of the whole batch.
    - ``candidates``: the projections of all ranks, as :class:`Candidates`, gathered with gradient.
    - ``state``: the candidates with their ``indices``, and state per sample, as a
      :class:`~mbcl.objectives.StatefulObjective` has it.

    With candidates, an objective returns the local anchors' share of the loss, divided by the number of anchors of the
    whole batch: the sum over the ranks is the loss of the whole batch.
    """

    distribution: ClassVar[Distribution]

    @abstractmethod
    def forward(
        self, z1: Tensor, z2: Tensor, indices: Tensor | None = None, *, candidates: Candidates | None = None
    ) -> Tensor:
        """Return the loss of a batch.

        Args:
            z1: (B, D) un-normalised projections of view 1.
            z2: (B, D) of view 2.
            indices: (B,) int64 data-set positions, for objectives with state per sample; others ignore them.
            candidates: all ranks' projections; None in one process.

        Returns:
            Scalar, float32 or better.
        """


OBJECTIVES: Registry[type[Objective]] = Registry("objective", "mbcl.objectives")


def build(name: str, **parameters: object) -> Objective:
    """Make the objective of this name or alias.

    Raises:
        ConfigError: if the name or a parameter is unknown, or a value is out of range.

    Example:
        >>> build("sim", temperature=0.5)
        SimCLR(temperature=0.5)
    """
    return construct("objective", name, OBJECTIVES[name], parameters)
