"""The training loop: epochs of planned batches, one row of metrics and one checkpoint each."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mbcl import __version__
from mbcl.config.experiment import Experiment
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine import checkpoint as checkpoints
from mbcl.engine import train_state
from mbcl.engine.build import build_learner, load_parts
from mbcl.engine.embedding_pass import ViewKey
from mbcl.engine.epoch_state import EpochProgress
from mbcl.engine.metrics_log import MetricsLog, write_config
from mbcl.engine.plan_service import LocalPlanService
from mbcl.engine.plan_source import PlanSource, embed_share
from mbcl.engine.planning_costs import planning_cost
from mbcl.engine.precision import Compute
from mbcl.engine.protocols import Observer, PlanService, Row
from mbcl.engine.tracking import build_trackers
from mbcl.errors import StorageError, TrainingError
from mbcl.io.store import Store, is_uri
from mbcl.metrics import retrieval
from mbcl.objectives import StatefulObjective
from mbcl.optim import cosine_lr, scale_lr
from mbcl.seeding import derive

logger = logging.getLogger(__name__)

MAX_SYNC_INTERVAL = 25
"""Steps between two looks, at most: a look waits for the device and for all ranks."""
SYNC_SECONDS = 10.0
"""Seconds between two looks where steps are slow: a machine that will be taken away says so 30 to 120 s before."""


@dataclass(frozen=True)
class TrainingOutcome:
    """What training ended with.

    Args:
        epochs: completed epochs.
        row: the last row of metrics.
        checkpoint: the last checkpoint's name.
    """

    epochs: int
    row: Row
    checkpoint: str


class Trainer:
    """Trains one experiment on this rank. Every rank of the world runs the same code.

    Args:
        experiment: the configuration.
        world: this rank and the number of ranks; the process group is already up where there are several.
        store: the trial's folder.
        plans: who plans, for samplers that need embeddings; planned in this process if None.
        observers: told about every step and epoch.
        run_id: what trackers call this run; a training that goes on keeps the name that it began with.
        notice: whether this rank's machine is about to go and no checkpoint was written since; asked at every look. If
            any rank says so, all write one.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        world: World,
        store: Store,
        plans: PlanService | None = None,
        observers: Sequence[Observer] = (),
        run_id: str = "",
        notice: Callable[[], bool] = lambda: False,
    ) -> None:
        self.experiment = experiment
        self.world = world
        self.store = store
        self.observers = observers
        self.run_id = run_id
        self.notice = notice
        self._noticed = False
        self._look, self._seconds_a_step = 1, 0.0
        experiment.train.check_workers(world.size)
        # Of several machines one may still copy or decode data that another has: for hours where they are large.
        data, self.facts, model = collectives.run_and_sync_errors(
            collectives.run_while_ranks_wait, world, load_parts, world, experiment
        )
        self.validation = data.validation.to(world.device)
        self.learner = collectives.run_and_sync_errors(build_learner, world, experiment, data, model, world)
        self.plans = plans or LocalPlanService(num_samples=self.facts.num_train, seed=experiment.seed, world=world)
        self.source = PlanSource(experiment, self.learner, self.plans, steps_per_epoch=self.facts.steps_per_epoch)
        self.base_lr = scale_lr(
            experiment.optimizer["lr"], batch_size=experiment.train.batch_size, rule=experiment.schedule.scale_lr
        )
        self.metrics = MetricsLog(store)
        self.epoch = 0
        self.progress: EpochProgress | None = None
        self.last_row: Row = {}

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> TrainingOutcome:
        """Train to the end, from where :meth:`resume` left it.

        Raises:
            TrainingError: if the loss is not finite, on every rank alike.
        """
        try:
            self._on_rank_0(lambda: write_config(self.store, self.experiment, self.facts))
            while self.epoch < self.experiment.train.epochs:
                row = self._run_epoch()
                for observer in self.observers:
                    observer.on_epoch(row)
        finally:
            self.plans.close()
            for observer in self.observers:
                observer.close()
        return TrainingOutcome(self.epoch, self.last_row, checkpoints.name_of(self.epoch))

    def _run_epoch(self) -> Row:
        progress = self.progress or EpochProgress(self.epoch, self.facts.num_train)
        self.progress = None
        steps, every = self.facts.steps_per_epoch, self.experiment.train.checkpoint_steps or self.facts.steps_per_epoch
        while progress.step < steps:
            if (due := progress.next_round) is not None:
                progress.begin(*self.source.next(due, progress))
            # Up to the next look, the end of the epoch, or the next checkpoint.
            batches = progress.batches(min(self._look, steps - progress.step, every - progress.step % every))
            with progress.clock("train"):
                losses = self._run_steps(batches, progress)
            progress.trained(batches, losses)
            if (self._noticed or progress.step % every == 0) and progress.step < steps:
                self.source.settle(progress)
                self._save(self.last_row, progress)
        return self._finish_epoch(progress)

    def _run_steps(self, batches: Tensor, progress: EpochProgress) -> Tensor:
        """Some steps, then one look at their losses, (n,) float64, which every rank takes together."""
        start = time.perf_counter()
        rates = []
        losses = []
        for step, batch in enumerate(batches, progress.step):
            rates.append(self._lr(step))
            stepped = self.learner.step(batch, epoch=self.epoch, lr=rates[-1])
            self.source.keep(stepped, epoch=self.epoch, step=step)
            losses.append(stepped.loss)
            progress.skipped += stepped.skipped
        if self.learner.scaler.get_scale() < 1:
            raise TrainingError(
                f"the gradients are not finite in fp16 at any scale of the loss (epoch {self.epoch + 1}, learning rate "
                f"{rates[-1]:.4g})"
            )
        together = self._sync_losses(torch.stack(losses))
        self._seconds_a_step = (time.perf_counter() - start) / len(losses)
        done = self.epoch * self.facts.steps_per_epoch + progress.step
        for offset, (loss, lr) in enumerate(zip(together.tolist(), rates, strict=True)):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {done + offset} (epoch {self.epoch + 1}, learning rate {lr:.4g})"
                )
            for observer in self.observers:
                observer.on_step(done + offset, loss, lr)
        return together

    def _sync_losses(self, losses: Tensor) -> Tensor:
        """The losses of some steps over all ranks, (n,) float64 on the CPU, and what else all ranks must know alike."""
        told = torch.tensor([self.notice(), self._seconds_a_step], dtype=losses.dtype, device=losses.device)
        together = collectives.all_reduce_sum(torch.cat([losses, told]), self.world).double().cpu()
        *_, noticed, seconds = together.tolist()
        self._noticed = noticed > 0
        if seconds > 0:
            self._look = int(min(max(1.0, SYNC_SECONDS * self.world.size / seconds), MAX_SYNC_INTERVAL))
        return together[:-2]

    def _lr(self, step: int) -> float:
        schedule = self.experiment.schedule
        return cosine_lr(
            epoch=self.epoch + step / self.facts.steps_per_epoch,
            base_lr=self.base_lr,
            warmup_epochs=schedule.warmup_epochs,
            epochs=self.experiment.train.epochs,
        )

    # -- the end of an epoch ------------------------------------------------------------------------------------

    def _finish_epoch(self, progress: EpochProgress) -> Row:
        last_lr = self._lr(progress.step - 1)
        self.epoch += 1
        last = self.epoch == self.experiment.train.epochs
        if last or self.epoch % self.experiment.train.eval_every == 0:
            with progress.clock("eval"):
                progress.validation = self._validate()
        self.source.settle(progress)  # after validation, which leaves planning more time
        progress.u_age = self._u_age()
        self.last_row = progress.row(lr=last_lr)
        self.metrics.add(self.last_row)
        self._save(self.last_row)
        self.last_row = {**self.last_row, "time/total": progress.elapsed()}  # with what the checkpoint took
        self._on_rank_0(lambda: self.metrics.write(self.last_row))
        return self.last_row

    def _validate(self) -> float:
        """Mean R@1 of both directions between two views of the validation images, at most 1; without autocast."""
        shard = embed_share(
            self.learner,
            self.validation,
            ViewKey(derive(self.experiment.seed, "validation views")),
            mode="eval",
            batch_size=self.experiment.evaluation.batch_size,
            compute=Compute(self.world.device, channels_last=self.experiment.train.channels_last),
            epoch=self.epoch - 1,
        )
        u, v = collectives.all_gather_ragged(shard.z1, self.world), collectives.all_gather_ragged(shard.z2, self.world)
        found = retrieval(u, v, ks=(1,), similarity=self.experiment.evaluation.similarity)
        return (found["u2v/top1"] + found["v2u/top1"]) / 2

    def _u_age(self) -> float | None:
        """Epochs since the objective's state of a sample was updated, mean over the samples that have any."""
        objective, chunk = self.learner.objective, self.experiment.train.accumulation
        if not isinstance(objective, StatefulObjective):
            return None
        updates = self.experiment.train.batch_size // (chunk.chunk_size or 1) if chunk.mode == "plain" else 1
        age = objective.age()
        return None if age is None else age / (updates * self.facts.steps_per_epoch)

    # -- checkpoints --------------------------------------------------------------------------------------------

    def _save(self, row: Row, progress: EpochProgress | None = None) -> None:
        """Write a checkpoint: at the end of an epoch, or with the progress of one that is not done."""
        for observer in self.observers:
            observer.on_checkpoint()
        self.learner.share_statistics()
        cache = self.source.cache
        kept = cache.state_dict() if cache else {}  # gathered from all ranks
        plans = self.source.state_dict()
        step = progress.step if progress else 0
        self._on_rank_0(lambda: self._write(train_state.state_of(self.learner, kept, plans, progress), row, step))

    def _write(self, state: dict[str, Any], row: Row, step: int) -> None:
        meta = {
            "experiment": self.experiment.model_dump(mode="json"),
            "facts": asdict(self.facts),
            "row": dict(row),
            "run_id": self.run_id,
            "workers": self.world.size,
            "mbcl": __version__,
        }
        checkpoints.save(
            self.store,
            epoch=self.epoch,
            step=step,
            state=state,
            meta=meta,
            keep=self.experiment.train.keep_checkpoints,
            best=self.metrics.best_epoch(checkpoints.BEST_BY),
        )

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one.

        Raises:
            CheckpointError: on every rank alike, if it is another experiment's.
        """
        found = train_state.newest(self.store, self.experiment, self.facts, self.world)
        self._on_rank_0(lambda: self.metrics.go_on(found.epoch if found else 0, found.meta["row"] if found else {}))
        if found is None:
            return
        self.progress = train_state.restore(found.state, self.learner, self.source)
        self.epoch = found.epoch
        self.last_row = found.meta["row"]
        self.run_id = found.meta["run_id"] or self.run_id
        logger.info("resuming from %s", found.name)

    def _on_rank_0(self, write: Callable[[], None]) -> None:
        """Write something on rank 0; if that fails (a full disk), every rank raises, none waits for ever.

        Raises:
            TrainingError: on every rank alike; where the store lies behind a URI a StorageError.
        """

        def guarded() -> None:
            try:
                if self.world.rank == 0:
                    write()
            except OSError as error:
                where = error.filename or self.store.uri
                kind = StorageError if is_uri(self.store.uri) else TrainingError
                raise kind(f"{where}: cannot be written: {error.strerror or error}") from error

        collectives.run_and_sync_errors(guarded, self.world)


def train(
    experiment: Experiment,
    *,
    world: World,
    store: Store,
    plans: PlanService | None = None,
    observers: Sequence[Observer] = (),
    run_id: str = "",
    group: str = "",
    log: Callable[[str], None] | None = None,
    notice: Callable[[], bool] = lambda: False,
) -> TrainingOutcome:
    """Train one experiment to its end, from its last good checkpoint if it has one.

    Args:
        experiment: the configuration.
        world: this rank and the number of ranks.
        store: the trial's folder; configuration, metrics, checkpoints and tracker files go there.
        plans: who plans; in this process if None.
        observers: told about every step and epoch, besides the trackers that the experiment names.
        run_id: what trackers call this run; one that goes on keeps the name that it began with.
        group: the study that it belongs to.
        log: is told in a line what planning will cost, where it costs anything.
        notice: whether this rank's machine is about to go and no checkpoint was written since; see :class:`Trainer`.

    Raises:
        ConfigError: if configuration and data do not fit.
        CheckpointError: if the folder's checkpoint belongs to another experiment.
        TrainingError: if the loss is not finite.
    """
    trainer = Trainer(
        experiment, world=world, store=store, plans=plans, observers=observers, run_id=run_id, notice=notice
    )
    trainer.resume()
    cost = planning_cost(experiment, trainer.facts.num_train)
    if log is not None and cost:
        log(cost)
    trackers = build_trackers(experiment, store, run_id=trainer.run_id, group=group) if world.rank == 0 else []
    trainer.observers = [*observers, *trackers]
    return trainer.run()
