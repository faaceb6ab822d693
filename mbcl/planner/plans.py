"""What planners and trainings exchange: the key of a plan, a plan with its metrics, and the service that plans.

One process, torchrun and Ray implement the service differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import Sampler

PLAN_TENSORS = ("batches", "batch_conflicts")
"""The tensors of :func:`plan_state`; the second may be None."""


@dataclass(frozen=True)
class PlanKey:
    """The key of a plan: a plan is a pure function of the sampler, the embeddings, the seed and this key.

    Args:
        epoch: counts from 0.
        round: counts the plans of an epoch from 0.
        rounds: how many plans, from ``round`` on, are computed at once and joined to one.
        steps: steps that the epoch has left for the plan; None for as many as it has batches. If there are fewer,
            random batches of the last round are left out. In a training it follows from the other fields, so equality
            ignores it.
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
        loss: mean NT-Xent of the batches under the planner's embeddings; NaN where their sides have two widths.
        lift: ``loss`` over the mean of random batches on the same embeddings; NaN where that is 0 or NaN.
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


def plan_state(plan: BatchPlan) -> dict[str, Any]:
    """Serialise a plan for a checkpoint as a tensor and plain values, without its scores."""
    state = {key: getattr(plan, key) for key in ("sampler", "seed", "epoch", "round")}
    return {"batches": plan.batches.int(), "batch_conflicts": plan.batch_conflicts} | state


def plan_of(state: dict[str, Any]) -> BatchPlan:
    """Restore a plan from :func:`plan_state`."""
    return BatchPlan(**{**state, "batches": state["batches"].long()})


def planned_state(planned: PlannedBatches) -> dict[str, Any]:
    """Serialise a plan with its metrics as tensors and plain values, without its scores."""
    return {"plan": plan_state(planned.plan), "metrics": [planned.seconds, planned.loss, planned.lift]}


def planned_of(state: Mapping[str, Any]) -> PlannedBatches:
    """Restore a plan with its metrics from :func:`planned_state`."""
    return PlannedBatches(plan_of(state["plan"]), *state["metrics"])
