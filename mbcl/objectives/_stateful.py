"""What the objectives with state per sample have in common: how the ranks keep it equal.

Letters: b samples of this rank, B samples of the whole batch.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from mbcl.objectives._base import Distribution, Objective


class StatefulObjective(Objective):
    """Base of the objectives that remember something of every sample, in buffers, equal on all ranks.

    In one process the forward pass in training mode updates the buffers by itself. On several ranks it is given
    :class:`~mbcl.objectives.Candidates`, touches no buffer, and leaves the new state of this rank's samples in
    ``pending``. The training step, on every rank alike:

    1. ``loss = objective(z1, z2, indices, candidates=candidates)``, with ``candidates.indices``,
    2. gathers ``objective.pending`` of all ranks, in rank order,
    3. ``objective.commit(candidates.indices, gathered)``.

    A pass in evaluation mode changes nothing and leaves nothing pending.
    """

    distribution: ClassVar[Distribution] = "state"

    pending: Tensor | None
    """(b,) new state of this rank's samples, detached, from a forward pass in training mode with candidates until it
    is committed; else None."""

    def __init__(self) -> None:
        super().__init__()
        self.pending = None

    @abstractmethod
    def commit(self, indices: Tensor, values: Tensor) -> None:
        """Write the new state of a whole batch, as one update.

        Args:
            indices: (B,) int64 data-set positions, distinct.
            values: (B,) the new state, in the same order: what all ranks had pending.
        """

    @abstractmethod
    def age(self) -> float | None:
        """How many updates ago the state of a sample was written, mean over the samples that have one.

        0 means by the last update, 1 by the one before. An update is a committed batch.

        Returns:
            The mean, at least 0; None if no sample has state.
        """
