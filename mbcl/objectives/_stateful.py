"""The base of the objectives with state per sample, and the protocol that keeps it equal on all ranks.

Letters: b samples of this rank, B samples of the whole batch.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from mbcl.objectives._base import Distribution, Objective


class StatefulObjective(Objective):
    """Base of the objectives with state per sample, in buffers that are equal on all ranks.

    In one process the forward pass in training mode updates the buffers itself. On several ranks it receives
    :class:`~mbcl.objectives.Candidates`, changes no buffer, and leaves the new state of this rank's samples in
    ``pending``. The training step, on every rank:

    1. computes ``loss = objective(z1, z2, indices, candidates=candidates)``, with ``candidates.indices``,
    2. gathers ``objective.pending`` of all ranks, in rank order,
    3. calls ``objective.commit(candidates.indices, gathered)``.

    A forward pass in evaluation mode changes no buffer and leaves ``pending`` None.
    """

    distribution: ClassVar[Distribution] = "state"

    pending: Tensor | None
    """(b,) new state of this rank's samples, detached, between a forward pass in training mode with candidates and its
    commit; else None."""

    def __init__(self) -> None:
        super().__init__()
        self.pending = None

    @abstractmethod
    def commit(self, indices: Tensor, values: Tensor) -> None:
        """Write the new state of a whole batch as one update.

        Args:
            indices: (B,) int64 data-set positions, distinct.
            values: (B,) the new state in the same order, gathered from ``pending`` of all ranks.
        """

    @abstractmethod
    def age(self) -> float | None:
        """Return the mean number of updates since a sample's state was written, over the samples that have state.

        A state of the last update has age 0, one of the update before has age 1. An update is a committed batch.

        Returns:
            The mean, at least 0; None if no sample has state.
        """
