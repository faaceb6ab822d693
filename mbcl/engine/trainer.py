"""The training loop: epochs of planned batches, one row of metrics and one checkpoint each."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mbcl import __version__, dist
from mbcl.data import ImageSet
from mbcl.dist import World
from mbcl.engine import checkpoint as checkpoints
from mbcl.engine.embed import ViewKey, embed
from mbcl.engine.epoch import EpochCount
from mbcl.engine.planning import LocalPlanService
from mbcl.engine.prepare import Facts, SplitData, check_model, facts_of, load_data
from mbcl.engine.protocols import Observer, PlanKey, PlanService, Row
from mbcl.engine.records import MetricsLog, write_config
from mbcl.engine.step import Learner, wrap
from mbcl.errors import CheckpointError, ConfigError, MbclError, PlanError, TrainingError
from mbcl.experiment import Experiment
from mbcl.metrics import retrieval
from mbcl.models import ContrastiveModel
from mbcl.optim import cosine_lr, scale_lr
from mbcl.plan import BatchPlan, Embeddings
from mbcl.seeding import derive
from mbcl.storage import Store

log = logging.getLogger(__name__)

CHECK_EVERY = 25
"""Steps between two looks at the loss: a look waits for the device and for all ranks."""


@dataclass(frozen=True)
class Outcome:
    """What training ended with.

    Args:
        epochs: completed epochs.
        row: the last row of metrics.
        checkpoint: the last checkpoint's name.
    """

    epochs: int
    row: Row
    checkpoint: str


def _load(experiment: Experiment, world: World) -> tuple[SplitData, Facts, ContrastiveModel]:
    """The data, what their sizes decide, and the model; if they are missing on one node, every rank raises."""
    error: MbclError | None = None
    try:
        data = load_data(experiment.data, seed=experiment.seed)
        facts = facts_of(experiment, data)
        model = check_model(experiment, data)
    except MbclError as caught:
        error = caught
    dist.agree(error, world)
    return data, facts, model


class Trainer:
    """Trains one experiment on this rank. Every rank of the world runs the same code.

    Args:
        experiment: the configuration.
        world: this rank and the number of ranks; the process group is already up where there are several.
        store: the trial's folder.
        plans: who plans, for samplers that need embeddings; planned in this process if None.
        observers: told about every step and epoch.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        world: World,
        store: Store,
        plans: PlanService | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.experiment = experiment
        self.world = world
        self.store = store
        self.observers = observers
        if experiment.train.batch_size % world.size:
            raise ConfigError(
                f"train.batch_size: {experiment.train.batch_size} is not divisible by {world.size} workers"
            )
        data, self.facts, model = _load(experiment, world)
        self.validation = data.validation.to(world.device)
        self.sampler = experiment.build_sampler()
        self.plans = plans
        if self.sampler.needs_embeddings and plans is None:
            self.plans = LocalPlanService(
                self.sampler, num_samples=self.facts.num_train, seed=experiment.seed, world=world
            )
        self.learner = self._build_learner(data, model)
        self.base_lr = scale_lr(
            experiment.optimizer["lr"], batch_size=experiment.train.batch_size, rule=experiment.schedule.scale_lr
        )
        self.metrics = MetricsLog(store)
        self.epoch = 0
        self.last_row: Row = {}

    def _build_learner(self, data: SplitData, model: ContrastiveModel) -> Learner:
        experiment, world = self.experiment, self.world
        if world.size > 1:
            model = dist.convert_sync_batchnorm(model, world)
        model = model.to(world.device).train()
        return Learner(
            model=model,
            network=wrap(model, world),
            objective=experiment.build_objective().to(world.device),
            optimizer=experiment.build_optimizer(model.parameters()),
            images=data.train.to(world.device),
            world=world,
            seed=derive(experiment.seed, "views"),
        )

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train from the last good checkpoint, or from the start, to the end.

        Raises:
            TrainingError: if the loss is not finite, on every rank alike.
        """
        try:
            self._resume()
            if self.world.rank == 0:
                write_config(self.store, self.experiment, self.facts)
            while self.epoch < self.experiment.train.epochs:
                row = self._run_epoch()
                for observer in self.observers:
                    observer.on_epoch(row)
        finally:
            for observer in self.observers:
                observer.close()
        return Outcome(self.epoch, self.last_row, checkpoints.name_of(self.epoch))

    def _run_epoch(self) -> Row:
        counted = EpochCount()
        steps = self.facts.steps_per_epoch
        plan, cursor, round_ = self._next_plan(0, counted), 0, 0
        while len(counted.losses) < steps:
            if cursor == len(plan):
                round_ += 1
                plan, cursor = self._next_plan(round_, counted), 0
            upto = min(cursor + CHECK_EVERY, len(plan), cursor + steps - len(counted.losses))
            with counted.clock("train"):
                self._run_steps(plan.batches[cursor:upto], counted)
            counted.used.append(plan.batches[cursor:upto])
            cursor = upto
        self.epoch += 1
        row = self._finish_epoch(counted)
        self.last_row = row
        return row

    def _run_steps(self, batches: Tensor, counted: EpochCount) -> None:
        """Some steps, then one look at their losses, which every rank takes together."""
        rates = []
        losses = []
        first = len(counted.losses)
        for offset, batch in enumerate(batches):
            rates.append(self._lr(first + offset))
            losses.append(self.learner.step(batch, epoch=self.epoch, lr=rates[-1]))
        together = dist.all_reduce_sum(torch.stack(losses), self.world).double().cpu()
        done = self.epoch * self.facts.steps_per_epoch + first
        for offset, (loss, lr) in enumerate(zip(together.tolist(), rates, strict=True)):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {done + offset} (epoch {self.epoch + 1}, learning rate {lr:.4g})"
                )
            for observer in self.observers:
                observer.on_step(done + offset, loss, lr)
        counted.losses.extend(together)

    def _lr(self, step: int) -> float:
        schedule = self.experiment.schedule
        return cosine_lr(
            epoch=self.epoch + step / self.facts.steps_per_epoch,
            base_lr=self.base_lr,
            warmup_epochs=schedule.warmup_epochs,
            epochs=self.experiment.train.epochs,
        )

    # -- plans --------------------------------------------------------------------------------------------------

    def _next_plan(self, round_: int, counted: EpochCount) -> BatchPlan:
        """The plan of this epoch's ``round_``; samplers without embeddings derive it on every rank."""
        key = PlanKey(self.epoch, round_)
        if not self.sampler.needs_embeddings:
            return self.sampler.plan(
                self.facts.num_train, seed=self.experiment.seed, epoch=key.epoch, round=key.round
            ).validate(self.facts.num_train, distinct=self.sampler.distinct)
        assert self.plans is not None
        source = self.experiment.embeddings
        # The very views that the coming steps will train on.
        views = ViewKey(self.learner.seed, self.epoch, augmented=source.views == "augmented")
        with counted.clock("embed"):
            shard = self._embed(self.learner.images, views, mode=source.mode, batch_size=source.batch_size)
        with counted.clock("wait"):
            self.plans.request(key, shard)
            planned = self.plans.receive(key)
        counted.plans.append(planned)
        return planned.plan

    def _embed(self, images: ImageSet, views: ViewKey, *, mode: str, batch_size: int) -> Embeddings:
        """This rank's share of the embeddings; if they are not finite anywhere, every rank raises.

        Raises:
            TrainingError: on every rank alike.
        """
        error: MbclError | None = None
        shard: Embeddings | None = None
        try:
            shard = embed(self.learner.model, images, views, mode=mode, batch_size=batch_size, world=self.world)
        except PlanError as caught:
            error = TrainingError(f"epoch {self.epoch + 1}: {caught}")
        dist.agree(error, self.world)
        assert shard is not None
        return shard

    # -- the end of an epoch ------------------------------------------------------------------------------------

    def _finish_epoch(self, counted: EpochCount) -> Row:
        last = self.epoch == self.experiment.train.epochs
        if last or self.epoch % self.experiment.train.eval_every == 0:
            with counted.clock("eval"):
                counted.validation = self._validate()
        row = counted.row(epoch=self.epoch, lr=self._lr(-1), num_train=self.facts.num_train)
        if self.world.rank == 0:
            self._save(row)
        dist.barrier(self.world)
        return row

    def _validate(self) -> float:
        """Mean R@1 of both directions between two views of the validation images, at most 1."""
        views = ViewKey(derive(self.experiment.seed, "validation views"))
        batch_size = self.experiment.evaluation.batch_size
        shard = self._embed(self.validation, views, mode="eval", batch_size=batch_size)
        u, v = dist.gather(shard.z1, self.world), dist.gather(shard.z2, self.world)
        found = retrieval(u, v, ks=(1,), similarity=self.experiment.evaluation.similarity)
        return (found["u2v/top1"] + found["v2u/top1"]) / 2

    # -- checkpoints --------------------------------------------------------------------------------------------

    def _save(self, row: dict[str, Any]) -> None:
        learner = self.learner
        state = {
            "model": learner.model.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
            "objective": learner.objective.state_dict(),
        }
        meta = {"experiment": self.experiment.model_dump(mode="json"), "row": row, "mbcl": __version__}
        self.metrics.append(row)
        checkpoints.save(
            self.store, epoch=self.epoch, state=state, meta=meta, keep=self.experiment.train.keep_checkpoints
        )

    def _resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one. Rank 0 chooses, the others follow."""
        found = checkpoints.latest(self.store) if self.world.rank == 0 else None
        name = dist.broadcast_object(found.name if found else "", self.world)
        error: MbclError | None = None
        try:
            if name and found is None:
                found = checkpoints.load(self.store, name)
            if found is not None:
                self._check_owner(found)
        except MbclError as caught:
            error = caught
        dist.agree(error, self.world)
        if self.world.rank == 0:
            self.metrics.truncate(found.epoch if found else 0)
        if found is None:
            return
        self.learner.model.load_state_dict(found.state["model"])
        self.learner.optimizer.load_state_dict(found.state["optimizer"])
        self.learner.objective.load_state_dict(found.state["objective"])
        self.epoch = found.epoch
        self.last_row = found.meta["row"]
        log.info("resuming from %s", name)

    def _check_owner(self, found: checkpoints.Checkpoint) -> None:
        wanted = self.experiment.model_dump(mode="json")
        stored = found.meta["experiment"]
        if stored != wanted:
            changed = sorted(key for key in wanted if stored.get(key) != wanted[key])
            raise CheckpointError(
                f"{self.store.uri}: its checkpoint {found.name} belongs to another experiment; "
                f"different: {', '.join(changed)}"
            )
