"""Progress of a running epoch: its plan and the cursor in it, counters, and the row of metrics that it yields.

Checkpoints hold all of it, so that a training interrupted within an epoch resumes at the next batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from mbcl.engine.metrics_log import KEYS
from mbcl.engine.plan_times import TRAINED
from mbcl.engine.protocols import Row
from mbcl.plan import BatchPlan
from mbcl.planner.plans import plan_of, plan_state
from mbcl.samplers import equal_pairs

STAGES = ("train", "embed", "wait", "eval")
_STORED = ("epoch", "cursor", "round", "losses", "skipped", "visited", "same_class", "embedded", "seconds")
"""The fields of :class:`EpochProgress` that checkpoints hold as they are."""


def missing_keys(state: Mapping[str, Any]) -> list[str]:
    """Return the keys that a :meth:`EpochProgress.state_dict` of an earlier version lacks; none if it is empty."""
    return [key for key in (*_STORED, "total", "plan", "facts") if state and key not in state]


@dataclass(frozen=True)
class PlanMetrics:
    """Metrics of a plan that was computed from embeddings.

    Args:
        seconds, loss, lift: as in :class:`mbcl.planner.PlannedBatches`.
        age: epochs from the computation of the embeddings to the epoch that uses the plan, mean over the samples.
        batches: how many of the plan's batches are trained on; the epoch's end may cut off the others.
        conflicts: pairs of a sample and one of its nearest neighbours that share one of these batches despite the
            sampler's ``skip``; None where conflicts are not counted.
    """

    seconds: float
    loss: float
    lift: float
    age: float
    batches: int
    conflicts: int | None = None


@dataclass
class EpochProgress:
    """Progress of one epoch, from its first plan to its row of metrics.

    Args:
        epoch: counts from 0.
        plan: the current plan; None before the first.
        cursor: how many batches of the plan are done.
        round: index of the plan within this epoch, from 0.
        plan_metrics: of every plan of this epoch that was computed from embeddings.
        losses: (steps done,) float64, over the global batches.
        skipped: steps without a weight update, because fp16's gradients were not finite.
        visited: (N,) bool, the samples that this epoch trained on.
        same_class: pairs of different samples of one class that shared a batch; None where labels mean nothing.
        embedded: images that were embedded for plans, counted once for every time.
        validation: metrics of the validation images, without ``val/``; empty if they were not measured.
        u_age: epochs since the objective's per-sample state was updated, where it has any.
        seconds: wall time by stage.
        total: wall seconds of earlier attempts at this epoch.
    """

    epoch: int
    visited: Tensor
    plan: BatchPlan | None = None
    cursor: int = 0
    round: int = 0
    plan_metrics: list[PlanMetrics] = field(default_factory=list)
    losses: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    skipped: int = 0
    same_class: int | None = None
    embedded: int = 0
    validation: Mapping[str, float] = field(default_factory=dict)
    u_age: float | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    total: float = 0.0
    _start: float = field(default_factory=time.perf_counter)

    @property
    def step(self) -> int:
        """Number of steps done in this epoch."""
        return len(self.losses)

    @property
    def next_round(self) -> int | None:
        """The round of the plan that is due, or None while the current plan has batches left."""
        if self.plan is None:
            return 0
        return self.round + 1 if self.cursor == len(self.plan) else None

    def begin(self, plan: BatchPlan, metrics: PlanMetrics | None) -> None:
        """Start a plan; ``metrics`` is None if it was not computed from embeddings."""
        self.plan, self.cursor, self.round = plan, 0, plan.round
        if metrics is not None:
            self.plan_metrics.append(metrics)

    def batches(self, max_batches: int) -> Tensor:
        """Return the next batches of the plan, at most ``max_batches``: (n, B)."""
        assert self.plan is not None
        return self.plan.batches[self.cursor : self.cursor + max_batches]

    def trained(self, batches: Tensor, losses: Tensor, labels: Tensor | None = None) -> None:
        """Record batches that were trained on, (n, B), and their losses, (n,) float64.

        ``labels`` are the classes of all samples, (N,); None where they mean nothing.
        """
        self.cursor += len(batches)
        self.losses = torch.cat([self.losses, losses])
        self.visited[batches.flatten()] = True
        if labels is not None:
            self.same_class = (self.same_class or 0) + equal_pairs(labels[batches])

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Add the wall time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def row(self, *, lr: float, last: Row) -> dict[str, float | int | None]:
        """Build the row of metrics, with every key.

        ``lr`` is the learning rate of the last step; ``last`` is the row of the epoch before, empty before the first.
        """
        assert self.plan is not None
        batch_size = self.plan.batches.shape[1]
        row: dict[str, float | int | None] = dict.fromkeys(KEYS)
        row["epoch"] = self.epoch + 1
        row["step"] = (self.epoch + 1) * self.step
        row["train/loss"] = float(self.losses.mean())
        row["train/lr"] = lr
        row["train/skipped_steps"] = self.skipped
        if self.same_class is not None:
            row["train/same_class"] = self.same_class / (self.step * batch_size * (batch_size - 1) / 2)
        trained = self.step * batch_size
        row["work/images"] = (last.get("work/images") or 0) + trained
        row["work/passes"] = (last.get("work/passes") or 0) + TRAINED * trained + self.embedded
        row |= {f"val/{name}": value for name, value in self.validation.items()}
        row["sogclr/u_age"] = self.u_age
        if self.plan_metrics:
            row["plan/seconds"] = sum(plan.seconds for plan in self.plan_metrics)
            num_batches = sum(plan.batches for plan in self.plan_metrics)
            for key in ("loss", "lift", "age"):
                mean = sum(getattr(plan, key) * plan.batches for plan in self.plan_metrics) / num_batches
                row[f"plan/{key}"] = mean if math.isfinite(mean) else None
            row["plan/coverage"] = float(self.visited.double().mean())
            conflicts = [plan.conflicts for plan in self.plan_metrics if plan.conflicts is not None]
            row["plan/conflicts"] = sum(conflicts) if conflicts else None
        for stage in STAGES:
            row[f"time/{stage}"] = self.seconds[stage]
        row["time/plan"] = row["plan/seconds"] or 0.0
        row["time/total"] = self.elapsed()
        return row

    def elapsed(self) -> float:
        """Return the wall seconds of this epoch so far, over all attempts at it."""
        return self.total + time.perf_counter() - self._start

    def state_dict(self) -> dict[str, Any]:
        """Return the progress as tensors and plain values."""
        assert self.plan is not None
        state = {key: getattr(self, key) for key in _STORED}
        metrics = [asdict(metrics) for metrics in self.plan_metrics]
        return state | {"plan": plan_state(self.plan), "facts": metrics, "total": self.elapsed()}

    @staticmethod
    def from_state(state: dict[str, Any]) -> EpochProgress:
        """Restore the progress from a :meth:`state_dict`."""
        return EpochProgress(
            **{key: state[key] for key in (*_STORED, "total")},
            plan=plan_of(state["plan"]),
            plan_metrics=[PlanMetrics(**metrics) for metrics in state["facts"]],
        )
