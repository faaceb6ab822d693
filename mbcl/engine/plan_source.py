"""The source of an epoch's plans: derived on every rank, or computed from fresh or cached embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from mbcl.config.experiment import Experiment
from mbcl.data.samples import SampleSet
from mbcl.distributed import collectives
from mbcl.engine.embedding_pass import ViewKey, embed
from mbcl.engine.epoch_state import EpochProgress, PlanMetrics
from mbcl.engine.plan_times import PlanTimes
from mbcl.engine.precision import Compute
from mbcl.engine.setup import Samples
from mbcl.engine.step import Learner, StepOutput
from mbcl.errors import DivergenceError, PlanError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.planner.embedding_cache import EmbeddingCache
from mbcl.planner.plans import PlanKey, PlannedBatches, PlanService, plan_of, plan_state
from mbcl.samplers import Sampler, Shuffle, check_plan

T = TypeVar("T")
Shard = tuple[Embeddings, float]
"""A rank's rows of the embeddings, and the epoch in which they were computed, mean over the samples."""


@dataclass(frozen=True)
class MadePlan:
    """A plan from embeddings, and ``made_in``, the epoch in which they were computed, mean over the samples."""

    planned: PlannedBatches
    made_in: float

    def metrics(self, epoch: int, batches: int) -> PlanMetrics:
        """Return the plan's metrics for an epoch that trains on so many of its batches.

        Only the first such epoch counts its seconds.
        """
        planned = self.planned
        seconds = planned.seconds if epoch == planned.plan.epoch else 0.0
        counts = planned.plan.batch_conflicts
        conflicts = None if counts is None else int(counts[:batches].sum())
        return PlanMetrics(seconds, planned.loss, planned.lift, epoch - self.made_in, batches, conflicts)

    def state_dict(self) -> dict[str, Any]:
        """Return the plan as tensors and plain values."""
        planned = self.planned
        metrics = {"seconds": planned.seconds, "loss": planned.loss, "lift": planned.lift}
        return {"plan": plan_state(planned.plan), "facts": metrics, "made_in": self.made_in}

    @staticmethod
    def from_state(state: dict[str, Any]) -> MadePlan:
        """Restore a plan from :meth:`state_dict`."""
        return MadePlan(PlannedBatches(plan_of(state["plan"]), **state["facts"]), state["made_in"])


class PlanSource:
    """The trainer's source of plans, with the state that later plans need.

    The experiment and the current step alone determine when a plan is computed, so all ranks agree without
    communication. With ``planner.overlap: 1`` at most one plan is computed concurrently with training; a checkpoint
    waits for it and includes it. The plan service is used if the sampler needs embeddings: the learner's projections.
    """

    def __init__(self, experiment: Experiment, learner: Learner, plans: PlanService, samples: Samples) -> None:
        self._experiment = experiment
        self._bind = samples.bind
        self._learner = learner
        self._plans = plans
        self._num_train = samples.number
        self._times = PlanTimes(experiment, samples)
        self._steps_per_epoch = self._times.steps_per_epoch
        self._needs_embeddings = experiment.build_sampler().needs_embeddings
        cached = self._needs_embeddings and experiment.embeddings.source == "cached"
        self.cache = EmbeddingCache(self._num_train, self._steps_per_epoch, learner.world) if cached else None
        self._requested: tuple[PlanKey, float] | None = None
        """The pending request: its key, and the epoch in which its embeddings were computed."""
        self._ahead: MadePlan | None = None
        """The next plan, if it was received ahead."""
        self._reusable: list[MadePlan] = []
        """The plans of the last planned epoch by round, if later epochs reuse them."""

    def next(self, round_: int, progress: EpochProgress) -> tuple[BatchPlan, PlanMetrics | None]:
        """Return the epoch's plan of a round, the same on every rank.

        Raises:
            MbclError: on every rank alike, if the embeddings or the plan are invalid.
        """
        epoch = progress.epoch
        if not self._needs_embeddings:
            return self._derive(self._sampler(), epoch, round_), None
        planned_in = self._experiment.planner.planned_in(epoch)
        just_made: Shard | None = None
        metrics: PlanMetrics | None = None
        if planned_in is None:
            plan = self._derive(self._bind(Shuffle(batch_size=self._experiment.train.batch_size)), epoch, round_)
        else:
            if planned_in == epoch:
                made, just_made = self._obtain(self._times.key(epoch, round_), progress)
                if self._experiment.planner.every > 1:  # later epochs reuse the plan
                    self._reusable = [*self._reusable[:round_], made]
            else:
                made = self._reusable[round_]
            plan = made.planned.plan
            metrics = made.metrics(epoch, min(len(plan), self._steps_per_epoch - progress.step))
        if self._experiment.planner.overlap:
            due = self._times.due_after(epoch, round_, progress.step + len(plan))
            if due is not None:
                self._request(due, progress, just_made, ahead=True)
        return plan, metrics

    def _sampler(self, epoch: int = 0) -> Sampler:
        """Return the sampler of an epoch with the ids of the training images."""
        return self._bind(self._experiment.build_sampler(epoch))

    def _derive(self, sampler: Sampler, epoch: int, round_: int) -> BatchPlan:
        """Compute a plan without embeddings; it depends on seed, epoch and round only."""
        plan = sampler.plan(self._num_train, seed=self._experiment.seed, epoch=epoch, round=round_)
        return check_plan(plan, sampler, self._num_train)

    # -- plans from embeddings -----------------------------------------------------------------------------------------

    def _obtain(self, key: PlanKey, progress: EpochProgress) -> tuple[MadePlan, Shard | None]:
        """Return the plan of ``key``, and the embeddings if they were computed for it just now."""
        self.settle(progress)
        made, self._ahead = self._ahead, None
        just_made = None
        if made is None:
            just_made = self._request(key, progress)
            self.settle(progress)
            made, self._ahead = self._ahead, None
        assert made is not None
        plan = made.planned.plan
        assert (plan.epoch, plan.round) == (key.epoch, key.round), f"{key} is due, {plan.epoch} was made"
        return made, just_made

    def _request(
        self, key: PlanKey, progress: EpochProgress, shard: Shard | None = None, *, ahead: bool = False
    ) -> Shard:
        """Request a plan from these embeddings, or from current ones; returns the embeddings with their epoch."""
        if shard is None:
            with progress.clock("embed"):
                shard = self._embedding_shard(key, progress)
        with progress.clock("wait"):
            sampler = self._sampler(key.epoch)
            self._plans.request(key, shard[0], sampler, ahead=ahead)
        self._requested = key, shard[1]
        return shard

    def settle(self, progress: EpochProgress) -> None:
        """Wait for the pending plan, if any, so that :meth:`state_dict` includes it.

        Raises:
            MbclError: on every rank alike, if planning failed.
        """
        if self._requested is None:
            return
        (key, made_in), self._requested = self._requested, None
        with progress.clock("wait"):
            self._ahead = MadePlan(self._plans.receive(key), made_in)

    def _embedding_shard(self, key: PlanKey, progress: EpochProgress) -> Shard:
        """Return this rank's shard of the embeddings for a plan."""
        epoch = progress.epoch
        if self.cache is None:
            return self._embed(key, progress), float(epoch)
        if not self.cache.begun:
            shard = self._embed(key, progress)
            time = epoch * self._steps_per_epoch + progress.step
            self.cache.record(shard.indices, shard.z1, shard.z2, time=time)
            return shard, float(epoch)
        shard = collectives.run_and_sync_errors(require_finite, self._learner.world, self.cache.shard, epoch)
        return shard, epoch - self.cache.age(epoch)

    def _embed(self, key: PlanKey, progress: EpochProgress) -> Embeddings:
        """Compute this rank's shard of fresh embeddings for a plan."""
        progress.embedded += self._num_train
        source, learner = self._experiment.embeddings, self._learner
        # The same views as the steps of the plan's epoch train on.
        views = ViewKey(learner.seed, key.epoch, augmented=source.views == "augmented")
        return embed_share(
            learner,
            learner.images,
            views,
            mode=source.mode,
            batch_size=source.batch_size,
            compute=learner.compute,
            epoch=key.epoch,
            round=key.round,
        )

    def keep(self, stepped: StepOutput, *, epoch: int, step: int) -> None:
        """Record a step's projections in the cache, if there is one; ``step`` counts from 0 within the epoch."""
        if self.cache is not None and self.cache.begun:
            time = epoch * self._steps_per_epoch + step + 1
            self.cache.record(stepped.positions, stepped.z1, stepped.z2, time=time)

    def state_dict(self) -> dict[str, Any]:
        """Return the plans that later rounds and epochs need; call :meth:`settle` first."""
        assert self._requested is None, "a plan that is on its way cannot be stored"
        return {
            "ahead": self._ahead.state_dict() if self._ahead else {},
            "kept": [made.state_dict() for made in self._reusable],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the plans from :meth:`state_dict`."""
        self._ahead = MadePlan.from_state(state["ahead"]) if state["ahead"] else None
        self._reusable = [MadePlan.from_state(made) for made in state["kept"]]


def embed_share(
    learner: Learner,
    images: SampleSet,
    views: ViewKey,
    *,
    mode: str,
    batch_size: int,
    compute: Compute,
    epoch: int,
    round: int = 0,
) -> Embeddings:
    """Compute this rank's shard of the embeddings. A collective call.

    Raises:
        DivergenceError: on every rank alike, if the embeddings of any rank are not finite.
    """
    if mode == "eval":
        learner.share_statistics()
    make = partial(embed, learner.model, images, views, mode=mode, batch_size=batch_size, world=learner.world)
    make = partial(make, compute=compute, round=round)
    shard: Embeddings = collectives.run_and_sync_errors(require_finite, learner.world, make, epoch)
    return shard


def require_finite(make: Callable[[], T], epoch: int) -> T:
    """Compute embeddings; embeddings that are not finite raise DivergenceError instead of PlanError."""
    try:
        return make()
    except PlanError as error:
        raise DivergenceError(f"epoch {epoch + 1}: {error}") from error
