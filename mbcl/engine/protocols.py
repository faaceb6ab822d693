"""The interfaces between the engine and its host: one process, torchrun and Ray implement them differently.

The engine does not import Ray; the orchestration passes in its own implementations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import Sampler

Row = Mapping[str, float | int | None]


@dataclass(frozen=True)
class PlanKey:
    """The key of a plan: a plan is a pure function of the sampler, the embeddings, the seed and this key.

    Args:
        epoch: counts from 0.
        round: counts the plans of an epoch from 0.
        rounds: how many plans, from ``round`` on, are computed at once and joined to one.
        steps: steps that the epoch has left for the plan. If it has more batches, the epoch's end cuts it off, and only
            those that are trained on are scored; None for all. The plan does not depend on it, nor does equality.
    """

    epoch: int
    round: int
    rounds: int = 1
    steps: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class PlannedBatches:
    """A plan with its metrics.

    Args:
        plan: the batches.
        seconds: wall time from the embeddings to the scored plan, wherever it is computed; includes handing pools to
            tasks, excludes the transfer to the ranks.
        loss: mean NT-Xent under the planner's embeddings, of the batches that are trained on.
        lift: ``loss`` over the mean of random batches on the same embeddings; NaN where that is 0.
    """

    plan: BatchPlan
    seconds: float
    loss: float
    lift: float


class PlanService(Protocol):
    """A service that computes plans from the ranks' embeddings. Every rank makes the same calls in the same order."""

    def request(self, key: PlanKey, shard: Embeddings, sampler: Sampler, *, ahead: bool = False) -> None:
        """Request a plan and pass in this rank's shard of the embeddings; asynchronous if planning runs elsewhere.

        Several requests may be pending. A schedule may change the sampler from epoch to epoch. ``ahead`` says whether
        training continues before the plan is received.
        """

    def receive(self, key: PlanKey) -> PlannedBatches:
        """Wait for the plan of ``key``; every rank receives the same plan."""

    def close(self) -> None:
        """Release all resources; no further plan is requested."""


class Observer(Protocol):
    """A listener for the events of a training. Every rank has its own observers; only those of rank 0 write files."""

    def on_step(self, step: int, loss: float, lr: float) -> None:
        """Handle the end of a step; ``step`` counts from 0 over the whole training."""
        return

    def on_checkpoint(self) -> None:
        """Persist all events so far, just before a checkpoint is written: a resumed training does not repeat them."""
        return

    def on_epoch(self, row: Row) -> None:
        """Handle the end of an epoch, after its checkpoint was written; ``row`` is the same on every rank."""
        return

    def close(self) -> None:
        """Release all resources, after the last epoch or after a failure of training."""
        return


class BaseObserver(Observer):
    """An observer whose hooks do nothing; subclasses override the hooks that they need."""
