"""Where an epoch's plans come from, and when: derived on every rank, or made from embeddings, fresh or kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mbcl.config.experiment import Experiment
from mbcl.data import ImageSet
from mbcl.distributed import collectives
from mbcl.engine.embedding_cache import EmbeddingCache
from mbcl.engine.embedding_pass import ViewKey, embed
from mbcl.engine.epoch_state import EpochProgress, PlanMetrics, plan_of, plan_state
from mbcl.engine.precision import Compute
from mbcl.engine.protocols import PlanKey, PlannedBatches, PlanService
from mbcl.engine.step import Learner, StepOutput
from mbcl.errors import PlanError, TrainingError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import Sampler, Shuffle, check_plan


@dataclass(frozen=True)
class MadePlan:
    """A plan that was made from embeddings.

    Args:
        planned: the plan, and what is known about it.
        made_in: the epoch in which the embeddings were made, mean over the samples.
    """

    planned: PlannedBatches
    made_in: float

    def metrics(self, epoch: int) -> PlanMetrics:
        """What is said of the plan in the epoch that trains on it; planning took its time in the first such one."""
        planned = self.planned
        return PlanMetrics(
            seconds=planned.seconds if epoch == planned.plan.epoch else 0.0,
            loss=planned.loss,
            lift=planned.lift,
            age=epoch - self.made_in,
            conflicts=planned.plan.conflicts,
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        planned = self.planned
        facts = {"seconds": planned.seconds, "loss": planned.loss, "lift": planned.lift}
        return {"plan": plan_state(planned.plan), "facts": facts, "made_in": self.made_in}

    @staticmethod
    def from_state(state: dict[str, Any]) -> MadePlan:
        """What :meth:`state_dict` gave."""
        return MadePlan(PlannedBatches(plan_of(state["plan"]), **state["facts"]), state["made_in"])


class PlanSource:
    """Gives the trainer its plans, and keeps what later plans need.

    When a plan is made follows from the experiment and the place in the training alone, so every rank knows it. With
    ``planner.overlap: 1`` one plan at most is on its way beside training; a checkpoint waits for it and holds it.

    Args:
        experiment: the configuration.
        learner: whose projections samplers plan on.
        plans: who plans, if the sampler needs embeddings.
        steps_per_epoch: of the experiment.
    """

    def __init__(self, experiment: Experiment, learner: Learner, plans: PlanService, *, steps_per_epoch: int) -> None:
        self._experiment = experiment
        self._learner = learner
        self._plans = plans
        self._steps_per_epoch = steps_per_epoch
        self._num_train = len(learner.images)
        self._needs_embeddings = experiment.build_sampler().needs_embeddings
        cached = self._needs_embeddings and experiment.embeddings.source == "cached"
        self.cache = EmbeddingCache(self._num_train, steps_per_epoch, learner.world) if cached else None
        self._requested: tuple[PlanKey, float] | None = None
        """What is on its way, and when its embeddings were made."""
        self._ahead: MadePlan | None = None
        """The next plan, if it is here already."""
        self._kept: list[MadePlan] = []
        """The plans of the last planned epoch, by round, where later epochs train on them again."""

    def next(self, round_: int, progress: EpochProgress) -> tuple[BatchPlan, PlanMetrics | None]:
        """The epoch's plan of a round, on every rank the same.

        Raises:
            MbclError: on every rank alike, if embeddings or plan are not sound.
        """
        epoch = progress.epoch
        if not self._needs_embeddings:
            return self._derived(self._experiment.build_sampler(), epoch, round_), None
        planned_in = self._experiment.planner.planned_in(epoch)
        just_made: tuple[Embeddings, float] | None = None
        facts: PlanMetrics | None = None
        if planned_in is None:
            plan = self._derived(Shuffle(batch_size=self._experiment.train.batch_size), epoch, round_)
        else:
            if planned_in == epoch:
                made, just_made = self._planned(self._key(epoch, round_), progress)
                self._keep_for_later(made, round_)
            else:
                made = self._kept[round_]
            plan, facts = made.planned.plan, made.metrics(epoch)
        if self._experiment.planner.overlap:
            due = self._due_after(epoch, round_, progress.step + len(plan))
            if due is not None:
                self._request(due, progress, just_made, ahead=True)
        return plan, facts

    def _derived(self, sampler: Sampler, epoch: int, round_: int) -> BatchPlan:
        plan = sampler.plan(self._num_train, seed=self._experiment.seed, epoch=epoch, round=round_)
        return check_plan(plan, sampler, self._num_train)

    # -- which plan, and when ------------------------------------------------------------------------------------------

    def _key(self, epoch: int, round_: int) -> PlanKey:
        """The plan of a round, or that of all the rounds which an epoch needs."""
        if self._experiment.embeddings.refresh == "round":
            return PlanKey(epoch, round_)
        length = self._experiment.build_sampler(epoch).plan_length(self._num_train)
        return PlanKey(epoch, round_, -(-self._steps_per_epoch // length))

    def _due_after(self, epoch: int, round_: int, step: int) -> PlanKey | None:
        """The plan that is due next, if one is to be made: after a round that ends at a step of an epoch."""
        planned_in = self._experiment.planner.planned_in
        if step < self._steps_per_epoch:
            return self._key(epoch, round_ + 1) if planned_in(epoch) == epoch else None
        following = epoch + 1
        if following < self._experiment.train.epochs and planned_in(following) == following:
            return self._key(following, 0)
        return None

    def _keep_for_later(self, made: MadePlan, round_: int) -> None:
        if self._experiment.planner.every > 1:
            self._kept = [*self._kept[:round_], made]

    # -- plans from embeddings -----------------------------------------------------------------------------------------

    def _planned(self, key: PlanKey, progress: EpochProgress) -> tuple[MadePlan, tuple[Embeddings, float] | None]:
        """The plan of ``key``, and the embeddings that it was made from if that was now."""
        self.settle(progress)
        made, self._ahead = self._ahead, None
        just_made = None
        if made is None:
            just_made = self._request(key, progress)
            self.settle(progress)
            made, self._ahead = self._ahead, None
        assert made is not None
        found = made.planned.plan
        assert (found.epoch, found.round) == (key.epoch, key.round), f"{key} is due, {found.epoch} was made"
        return made, just_made

    def _request(
        self,
        key: PlanKey,
        progress: EpochProgress,
        shard: tuple[Embeddings, float] | None = None,
        *,
        ahead: bool = False,
    ) -> tuple[Embeddings, float]:
        """Have a plan made from these embeddings, or those of this moment; returns them."""
        if shard is None:
            with progress.clock("embed"):
                shard = self._shard(key, progress)
        with progress.clock("wait"):
            sampler = self._experiment.build_sampler(key.epoch)
            self._plans.request(key, shard[0], sampler, ahead=ahead)
        self._requested = key, shard[1]
        return shard

    def settle(self, progress: EpochProgress) -> None:
        """Wait for the plan that is on its way, if there is one: then it is part of :meth:`state_dict`.

        Raises:
            MbclError: on every rank alike, if the plan cannot be made.
        """
        if self._requested is None:
            return
        (key, made_in), self._requested = self._requested, None
        with progress.clock("wait"):
            self._ahead = MadePlan(self._plans.receive(key), made_in)

    def _shard(self, key: PlanKey, progress: EpochProgress) -> tuple[Embeddings, float]:
        """This rank's share of the embeddings that a plan is made from, and the epoch that they were made in."""
        epoch = progress.epoch
        if self.cache is None:
            return self._fresh(key.epoch), float(epoch)
        if not self.cache.begun:
            shard = self._fresh(key.epoch)
            time = epoch * self._steps_per_epoch + progress.step
            self.cache.record(shard.indices, shard.z1, shard.z2, time=time)
            return shard, float(epoch)
        shard = collectives.run_and_sync_errors(_finite, self._learner.world, self.cache.shard, epoch)
        return shard, epoch - self.cache.age(epoch)

    def _fresh(self, epoch: int) -> Embeddings:
        source, learner = self._experiment.embeddings, self._learner
        # The very views that the steps of that epoch will train on.
        views = ViewKey(learner.seed, epoch, augmented=source.views == "augmented")
        return embed_share(
            learner,
            learner.images,
            views,
            mode=source.mode,
            batch_size=source.batch_size,
            compute=learner.compute,
            epoch=epoch,
        )

    def keep(self, stepped: StepOutput, *, epoch: int, step: int) -> None:
        """Keep a step's projections for the plans to come.

        Args:
            stepped: what the step left.
            epoch: counts from 0.
            step: within the epoch, from 0.
        """
        if self.cache is not None and self.cache.begun:
            time = epoch * self._steps_per_epoch + step + 1
            self.cache.record(stepped.positions, stepped.z1, stepped.z2, time=time)

    def state_dict(self) -> dict[str, Any]:
        """The plans that were made for later than now, after :meth:`settle`."""
        assert self._requested is None, "a plan that is on its way cannot be stored"
        return {
            "ahead": self._ahead.state_dict() if self._ahead else {},
            "kept": [made.state_dict() for made in self._kept],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What :meth:`state_dict` gave."""
        self._ahead = MadePlan.from_state(state["ahead"]) if state["ahead"] else None
        self._kept = [MadePlan.from_state(made) for made in state["kept"]]


def embed_share(
    learner: Learner, images: ImageSet, views: ViewKey, *, mode: str, batch_size: int, compute: Compute, epoch: int
) -> Embeddings:
    """This rank's share of the embeddings; if they are not finite anywhere, every rank raises.

    Raises:
        TrainingError: on every rank alike.
    """
    if mode == "eval":
        learner.share_statistics()
    made = partial(embed, learner.model, images, views, mode=mode, batch_size=batch_size, world=learner.world)
    return collectives.run_and_sync_errors(_finite, learner.world, partial(made, compute=compute), epoch)


def _finite(make: Callable[[], Embeddings], epoch: int) -> Embeddings:
    """Embeddings, or an error of training if they are not finite."""
    try:
        return make()
    except PlanError as error:
        raise TrainingError(f"epoch {epoch + 1}: {error}") from error
