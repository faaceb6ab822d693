"""What the engine asks of whoever runs it. In one process, under torchrun and under Ray these are different objects.

The engine knows no Ray; orchestration hands it these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import Sampler

Row = Mapping[str, float | int | None]


@dataclass(frozen=True)
class PlanKey:
    """Which plan of an experiment: a plan is a pure function of the sampler, the embeddings, the seed and this.

    Args:
        epoch: counts from 0.
        round: counts the plans of an epoch from 0.
        rounds: how many plans, from ``round`` on, are made at once and joined to one.
    """

    epoch: int
    round: int
    rounds: int = 1


@dataclass(frozen=True)
class PlannedBatches:
    """A plan and what is known about it.

    Args:
        plan: the batches.
        seconds: wall time from the embeddings to the plan with its loss, wherever it is made; with what it takes to
            hand pools to tasks, without the way to the ranks.
        loss: mean NT-Xent of the planned batches under the planner's embeddings.
        lift: ``loss`` over the mean of random batches on the same embeddings; NaN where that is 0.
    """

    plan: BatchPlan
    seconds: float
    loss: float
    lift: float


class PlanService(Protocol):
    """Turns the embeddings that the ranks hold into plans. Every rank calls it, in the same order."""

    def request(self, key: PlanKey, shard: Embeddings, sampler: Sampler, *, ahead: bool = False) -> None:
        """Hand over this rank's shard of the embeddings; returns at once where planning runs elsewhere.

        Args:
            key: which plan; several may be on their way.
            shard: this rank's rows.
            sampler: who plans; a schedule may change it from epoch to epoch.
            ahead: whether training goes on before the plan is received.
        """

    def receive(self, key: PlanKey) -> PlannedBatches:
        """Wait for the plan of ``key``; every rank gets the same one."""

    def close(self) -> None:
        """Give back what is held; no plan is requested any more."""


class Observer(Protocol):
    """Is told what happens in training. Every rank has its own; files are written by rank 0 alone."""

    def on_step(self, step: int, loss: float, lr: float) -> None:
        """After every step: ``step`` counts from 0 over the whole training."""

    def on_checkpoint(self) -> None:
        """Before a checkpoint is written: what was told so far must outlive this process, for it is not told again."""

    def on_epoch(self, row: Row) -> None:
        """After every epoch, with the same row on every rank, its checkpoint already written."""

    def close(self) -> None:
        """After the last epoch, or when training failed."""


class BaseObserver:
    """An :class:`Observer` whose hooks do nothing, to be overridden one by one."""

    def on_step(self, step: int, loss: float, lr: float) -> None:  # noqa: D102
        pass

    def on_checkpoint(self) -> None:  # noqa: D102
        pass

    def on_epoch(self, row: Row) -> None:  # noqa: D102
        pass

    def close(self) -> None:  # noqa: D102
        pass
