"""Where an epoch stands while it runs: its plan and the place in it, what was counted, and the row that it becomes.

All of it goes into checkpoints, so that a training that was cut within an epoch goes on at the very next batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from mbcl.engine.metrics_log import empty_row
from mbcl.plan import BatchPlan

STAGES = ("train", "embed", "wait", "eval")


@dataclass(frozen=True)
class PlanMetrics:
    """What is known about a plan that was made from embeddings.

    Args:
        seconds: wall time from the embeddings to the plan with its loss, wherever it is made; with what it takes to
            hand pools to tasks, without the way to the ranks.
        loss: mean NT-Xent of the planned batches under the planner's embeddings.
        lift: ``loss`` over the mean of random batches on the same embeddings; NaN where that is 0.
        age: epochs from the making of the embeddings to the epoch that the plan is used in, mean over the samples.
        conflicts: pairs of a sample and one of its nearest that share a batch against the sampler's ``skip``; None
            where none are counted.
    """

    seconds: float
    loss: float
    lift: float
    age: float
    conflicts: int | None = None


def plan_state(plan: BatchPlan) -> dict[str, Any]:
    """A plan for a checkpoint, as a tensor and plain values; scores are not kept."""
    return {
        "batches": plan.batches.int(),
        "sampler": plan.sampler,
        "seed": plan.seed,
        "epoch": plan.epoch,
        "round": plan.round,
        "conflicts": plan.conflicts,
    }


def plan_of(state: dict[str, Any]) -> BatchPlan:
    """What :func:`plan_state` took."""
    return BatchPlan(**{**state, "batches": state["batches"].long()})


@dataclass
class EpochProgress:
    """One epoch, from its first plan to its row.

    Args:
        epoch: counts from 0.
        num_train: N.
        plan: the plan that is being trained on; None before the first.
        cursor: how many of its batches were trained on.
        round: which plan of this epoch it is, from 0.
        facts: of every plan of this epoch that was made from embeddings.
        losses: (steps done,) float64, over the global batches.
        skipped: steps of which fp16's gradients were not finite, so that the weights stayed.
        visited: (N,) bool, the samples that were trained on in this epoch.
        validation: R@1 on the validation images, if it was measured.
        u_age: epochs since the objective's state per sample was updated, where it has any.
        seconds: wall time by stage.
        total: wall seconds of earlier attempts at this epoch.
    """

    epoch: int
    num_train: int
    plan: BatchPlan | None = None
    cursor: int = 0
    round: int = 0
    facts: list[PlanMetrics] = field(default_factory=list)
    losses: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    skipped: int = 0
    visited: Tensor = field(default=None)  # type: ignore[assignment]  # filled below
    validation: float | None = None
    u_age: float | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    total: float = 0.0
    _start: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        if self.visited is None:
            self.visited = torch.zeros(self.num_train, dtype=torch.bool)  # type: ignore[unreachable]

    @property
    def step(self) -> int:
        """Steps done in this epoch."""
        return len(self.losses)

    @property
    def next_round(self) -> int | None:
        """The round of the plan that is due, or None while there are batches left."""
        if self.plan is None:
            return 0
        return self.round + 1 if self.cursor == len(self.plan) else None

    def begin(self, plan: BatchPlan, facts: PlanMetrics | None) -> None:
        """Take up a plan, made from embeddings if there are facts about it."""
        self.plan, self.cursor, self.round = plan, 0, plan.round
        if facts is not None:
            self.facts.append(facts)

    def batches(self, most: int) -> Tensor:
        """The next batches of the plan, at most so many: (n, B)."""
        assert self.plan is not None
        return self.plan.batches[self.cursor : self.cursor + most]

    def trained(self, batches: Tensor, losses: Tensor) -> None:
        """Count batches that were trained on, (n, B), and their losses, (n,) float64."""
        self.cursor += len(batches)
        self.losses = torch.cat([self.losses, losses])
        self.visited[batches.flatten()] = True

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def row(self, *, lr: float) -> dict[str, float | int | None]:
        """The row of metrics, with every key.

        Args:
            lr: of the last step.
        """
        row = empty_row()
        row["epoch"] = self.epoch + 1
        row["step"] = (self.epoch + 1) * self.step
        row["train/loss"] = float(self.losses.mean())
        row["train/lr"] = lr
        row["train/skipped_steps"] = self.skipped
        row["val/retrieval/top1"] = self.validation
        row["sogclr/u_age"] = self.u_age
        if self.facts:
            row["plan/seconds"] = sum(facts.seconds for facts in self.facts)
            for key in ("loss", "lift", "age"):
                mean = sum(getattr(facts, key) for facts in self.facts) / len(self.facts)
                row[f"plan/{key}"] = mean if math.isfinite(mean) else None
            row["plan/coverage"] = float(self.visited.double().mean())
            counted = [facts.conflicts for facts in self.facts if facts.conflicts is not None]
            row["plan/conflicts"] = sum(counted) if counted else None
        for stage in STAGES:
            row[f"time/{stage}"] = self.seconds[stage]
        row["time/plan"] = row["plan/seconds"] or 0.0
        row["time/total"] = self.elapsed()
        return row

    def elapsed(self) -> float:
        """Wall seconds of this epoch so far, over all attempts at it."""
        return self.total + time.perf_counter() - self._start

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        assert self.plan is not None
        return {
            "epoch": self.epoch,
            "plan": plan_state(self.plan),
            "cursor": self.cursor,
            "round": self.round,
            "facts": [asdict(facts) for facts in self.facts],
            "losses": self.losses,
            "skipped": self.skipped,
            "visited": self.visited,
            "seconds": dict(self.seconds),
            "total": self.elapsed(),
        }

    @staticmethod
    def from_state(state: dict[str, Any]) -> EpochProgress:
        """What :meth:`state_dict` gave."""
        return EpochProgress(
            epoch=state["epoch"],
            num_train=len(state["visited"]),
            plan=plan_of(state["plan"]),
            cursor=state["cursor"],
            round=state["round"],
            facts=[PlanMetrics(**facts) for facts in state["facts"]],
            losses=state["losses"],
            skipped=state["skipped"],
            visited=state["visited"],
            seconds=state["seconds"],
            total=state["total"],
        )
