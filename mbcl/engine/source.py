"""Where an epoch's plans come from: derived on every rank, or made from embeddings that are fresh or kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mbcl import dist
from mbcl.data import ImageSet
from mbcl.engine.cache import EmbeddingCache
from mbcl.engine.compute import Compute
from mbcl.engine.embed import ViewKey, embed
from mbcl.engine.epoch import EpochProgress, PlanFacts
from mbcl.engine.protocols import PlanKey, PlanService
from mbcl.engine.step import Learner, Stepped
from mbcl.errors import PlanError, TrainingError
from mbcl.experiment import Experiment
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import Sampler


class PlanSource:
    """Gives the trainer its plans, and keeps what later plans need.

    Args:
        experiment: the configuration.
        sampler: its sampler.
        learner: whose projections samplers plan on.
        plans: who plans; None if the sampler needs no embeddings.
        steps_per_epoch: of the experiment.
    """

    def __init__(
        self,
        experiment: Experiment,
        sampler: Sampler,
        learner: Learner,
        plans: PlanService | None,
        *,
        steps_per_epoch: int,
    ) -> None:
        self._experiment = experiment
        self._sampler = sampler
        self._learner = learner
        self._plans = plans
        self._steps_per_epoch = steps_per_epoch
        self._num_train = len(learner.images)
        cached = sampler.needs_embeddings and experiment.embeddings.source == "cached"
        self.cache = EmbeddingCache(self._num_train, steps_per_epoch, learner.world) if cached else None

    def next(self, round_: int, progress: EpochProgress) -> tuple[BatchPlan, PlanFacts | None]:
        """The epoch's plan of a round, on every rank the same.

        Raises:
            MbclError: on every rank alike, if embeddings or plan are not sound.
        """
        key = PlanKey(progress.epoch, round_)
        if not self._sampler.needs_embeddings:
            plan = self._sampler.plan(
                self._num_train, seed=self._experiment.seed, epoch=key.epoch, round=key.round
            ).validate(self._num_train, distinct=self._sampler.distinct)
            return plan, None
        assert self._plans is not None
        with progress.clock("embed"):
            shard, age = self._shard(key)
        with progress.clock("wait"):
            self._plans.request(key, shard)
            planned = self._plans.receive(key)
        return planned.plan, PlanFacts(planned.seconds, planned.loss, planned.lift, age)

    def _shard(self, key: PlanKey) -> tuple[Embeddings, float]:
        """This rank's share of the embeddings that a plan is made from, and their age in epochs."""
        if self.cache is None:
            return self._fresh(key.epoch), 0.0
        if key == PlanKey(0, 0):
            shard = self._fresh(0)
            self.cache.record(shard.indices, shard.z1, shard.z2, time=0)
            return shard, 0.0
        shard = dist.agreed(_finite, self._learner.world, self.cache.shard, key.epoch)
        return shard, self.cache.age(key.epoch)

    def _fresh(self, epoch: int) -> Embeddings:
        source, learner = self._experiment.embeddings, self._learner
        # The very views that the coming steps will train on.
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

    def keep(self, stepped: Stepped, *, epoch: int, step: int) -> None:
        """Keep a step's projections for the plans to come.

        Args:
            stepped: what the step left.
            epoch: counts from 0.
            step: within the epoch, from 0.
        """
        if self.cache is not None:
            time = epoch * self._steps_per_epoch + step + 1
            self.cache.record(stepped.positions, stepped.z1, stepped.z2, time=time)


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
    return dist.agreed(_finite, learner.world, partial(made, compute=compute), epoch)


def _finite(make: Callable[[], Embeddings], epoch: int) -> Embeddings:
    """Embeddings, or an error of training if they are not finite."""
    try:
        return make()
    except PlanError as error:
        raise TrainingError(f"epoch {epoch + 1}: {error}") from error
