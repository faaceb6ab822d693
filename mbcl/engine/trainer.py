"""The training loop: epochs of planned batches, with one row of metrics and one checkpoint per epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
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
from mbcl.engine.epoch_state import EpochProgress
from mbcl.engine.freed_memory import keep_freed_memory
from mbcl.engine.metrics_log import MetricsLog, write_config
from mbcl.engine.plan_source import PlanSource
from mbcl.engine.planning_costs import planning_cost
from mbcl.engine.protocols import Observer, Row
from mbcl.engine.shown_batches import BATCHES_FILE, shown_batches
from mbcl.engine.tracking import build_trackers, check_trackers
from mbcl.engine.validation import validate
from mbcl.errors import DivergenceError, StorageError, TrainingError
from mbcl.io.store import Store, is_uri
from mbcl.objectives import StatefulObjective
from mbcl.optim import cosine_lr, scale_lr
from mbcl.planner.plan_service import LocalPlanService
from mbcl.planner.plans import PlanService

logger = logging.getLogger(__name__)

MAX_SYNC_INTERVAL = 25
"""Maximum steps between two synchronisations; each blocks on the device and all-reduces the losses."""
SYNC_SECONDS = 10.0
"""Seconds between two synchronisations where steps are slow: preemption notices come 30 to 120 s ahead."""


@dataclass(frozen=True)
class TrainingOutcome:
    """The result of a training: the number of completed epochs, the last row of metrics, the last checkpoint's name."""

    epochs: int
    row: Row
    checkpoint: str


class Trainer:
    """The training of one experiment on this rank. Every rank of the world runs the same code.

    The arguments are those of :func:`train`; trackers are observers like others.
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
        self._preemption_noticed = False
        self._sync_interval, self._seconds_per_step = 1, 0.0
        experiment.train.check_workers(world.size)
        if world.device.type == "cpu":
            keep_freed_memory()
        # One machine may still copy or decode data that another already has, for hours if the data are large.
        data, self.sizes, model = collectives.run_and_sync_errors(
            collectives.run_while_ranks_wait, world, load_parts, world, experiment
        )
        self.validation = data.validation.to(world.device)
        self.content = data.content()
        self._checkpoint = train_state.newest(store, experiment, self.sizes, self.content, world)
        self.learner = collectives.run_and_sync_errors(
            partial(build_learner, begins=self._checkpoint is None), world, experiment, data, model, world
        )
        self.plans = plans or LocalPlanService(num_samples=self.sizes.num_train, seed=experiment.seed, world=world)
        self.samples = data.samples
        self.labels = self.learner.images.labels if self.learner.images.labelled else None
        self.source = PlanSource(experiment, self.learner, self.plans, self.samples)
        self.base_lr = scale_lr(
            experiment.optimizer["lr"], batch_size=experiment.train.batch_size, rule=experiment.schedule.scale_lr
        )
        self.metrics = MetricsLog(store)
        self.epoch = 0
        self.progress: EpochProgress | None = None
        self.last_row: Row = {}

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> TrainingOutcome:
        """Train to the end, starting from the state that :meth:`resume` restored.

        Raises:
            TrainingError: if the loss is not finite, on every rank alike.
        """
        try:
            self._on_rank_0(lambda: write_config(self.store, self._as_run(), self.sizes))
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
        """Run one epoch, or the rest of a resumed one; returns its row of metrics."""
        progress = self.progress or EpochProgress(self.epoch, torch.zeros(self.sizes.num_train, dtype=torch.bool))
        self.progress = None
        steps, every = self.sizes.steps_per_epoch, self.experiment.train.checkpoint_steps or self.sizes.steps_per_epoch
        while progress.step < steps:
            if (due := progress.next_round) is not None:
                progress.begin(*self.source.next(due, progress))
            # Up to the next synchronisation, the end of the epoch, or the next checkpoint.
            batches = progress.batches(min(self._sync_interval, steps - progress.step, every - progress.step % every))
            with progress.clock("train"):
                losses = self._run_steps(batches, progress)
            progress.trained(batches, losses, self.labels)
            if (self._preemption_noticed or progress.step % every == 0) and progress.step < steps:
                self.source.settle(progress)
                self._save(self.last_row, progress)
        return self._finish_epoch(progress)

    def _run_steps(self, batches: Tensor, progress: EpochProgress) -> Tensor:
        """Run some steps, then synchronise their losses over the ranks; returns them, (n,) float64."""
        start = time.perf_counter()
        rates = []
        losses = []
        for step, batch in enumerate(batches, progress.step):
            rates.append(self._lr(step))
            output = self.learner.step(batch, epoch=self.epoch, lr=rates[-1])
            self.source.keep(output, epoch=self.epoch, step=step)
            losses.append(output.loss)
            progress.skipped += output.skipped
        if self.learner.scaler.get_scale() < 1:
            raise DivergenceError(
                f"the gradients are not finite in fp16 at any scale of the loss (epoch {self.epoch + 1}, learning rate "
                f"{rates[-1]:.4g})"
            )
        global_losses = self._sync_losses(torch.stack(losses))
        self._seconds_per_step = (time.perf_counter() - start) / len(losses)
        first_step = self.epoch * self.sizes.steps_per_epoch + progress.step
        for offset, (loss, lr) in enumerate(zip(global_losses.tolist(), rates, strict=True)):
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"the loss is {loss} at step {first_step + offset} (epoch {self.epoch + 1}, learning rate {lr:.4g})"
                )
            for observer in self.observers:
                observer.on_step(first_step + offset, loss, lr)
        return global_losses

    def _sync_losses(self, losses: Tensor) -> Tensor:
        """Sum the losses over all ranks, (n,) float64 on the CPU; piggybacks preemption notice and step time."""
        extra = torch.tensor([self.notice(), self._seconds_per_step], dtype=losses.dtype, device=losses.device)
        sums = collectives.all_reduce_sum(torch.cat([losses, extra]), self.world).double().cpu()
        *_, noticed, seconds = sums.tolist()
        self._preemption_noticed = noticed > 0
        if seconds > 0:
            self._sync_interval = int(min(max(1.0, SYNC_SECONDS * self.world.size / seconds), MAX_SYNC_INTERVAL))
        return sums[:-2]

    def _lr(self, step: int) -> float:
        """Return the learning rate of a step of the current epoch."""
        epoch, epochs = self.epoch + step / self.sizes.steps_per_epoch, self.experiment.train.epochs
        warmup_epochs = self.experiment.schedule.warmup_epochs
        return cosine_lr(epoch=epoch, base_lr=self.base_lr, warmup_epochs=warmup_epochs, epochs=epochs)

    # -- the end of an epoch ------------------------------------------------------------------------------------

    def _finish_epoch(self, progress: EpochProgress) -> Row:
        """Validate if due, write row and checkpoint, and return the row."""
        last_lr = self._lr(progress.step - 1)
        self.epoch += 1
        last = self.epoch == self.experiment.train.epochs
        if last or self.epoch % self.experiment.train.eval_every == 0:
            with progress.clock("eval"):
                progress.validation = self._validate()
        self.source.settle(progress)  # after validation, to give concurrent planning more time
        progress.u_age = self._u_age()
        self.last_row = progress.row(lr=last_lr, last=self.last_row)
        self.metrics.add(self.last_row)
        if last:
            self._on_rank_0(lambda: self._show_batches(progress))
        self._save(self.last_row)
        self.last_row = {**self.last_row, "time/total": progress.elapsed()}  # includes the checkpoint's time
        self._on_rank_0(lambda: self.metrics.write(self.last_row))
        return self.last_row

    def _show_batches(self, progress: EpochProgress) -> None:
        """Write some batches of the last plan, before the checkpoint, which a resumed training does not repeat."""
        assert progress.plan is not None
        batches, losses = progress.plan.batches[: progress.cursor], progress.losses[-progress.cursor :]
        content = shown_batches(batches, losses, self.learner.images, seed=self.experiment.seed)
        self.store.write_bytes(BATCHES_FILE, content)

    def _validate(self) -> dict[str, float]:
        settings, seed = self.experiment.evaluation, self.experiment.seed
        return validate(self.learner, self.validation, settings, seed=seed, epoch=self.epoch - 1)

    def _u_age(self) -> float | None:
        """Return the mean age of the objective's per-sample state in epochs, over samples that have any."""
        objective, accumulation = self.learner.objective, self.experiment.train.accumulation
        if not isinstance(objective, StatefulObjective):
            return None
        chunks = self.experiment.train.batch_size // (accumulation.chunk_size or 1)
        updates_per_step = chunks if accumulation.mode == "plain" else 1
        age = objective.age()
        return None if age is None else age / (updates_per_step * self.sizes.steps_per_epoch)

    # -- checkpoints --------------------------------------------------------------------------------------------

    def _save(self, row: Row, progress: EpochProgress | None = None) -> None:
        """Write a checkpoint: at the end of an epoch, or within an epoch with its progress."""
        for observer in self.observers:
            observer.on_checkpoint()
        self.learner.share_statistics()
        cached = self.source.cache.state_dict() if self.source.cache else {}  # collective: gathered from all ranks
        plans = self.source.state_dict()
        meta = {
            "experiment": self._as_run(),
            "facts": asdict(self.sizes),
            "data": self.content,
            "row": dict(row),
            "run_id": self.run_id,
            "workers": self.world.size,
            "mbcl": __version__,
        }
        self._on_rank_0(
            lambda: checkpoints.save(
                self.store,
                epoch=self.epoch,
                step=progress.step if progress else 0,
                state=train_state.state_of(self.learner, cached, plans, progress),
                meta=meta,
                keep=self.experiment.train.keep_checkpoints,
                best=self.metrics.best_epoch(checkpoints.BEST_BY),
            )
        )

    def resume(self) -> None:
        """Resume from the checkpoint that was the newest valid one at the construction, if there was one."""
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            self._on_rank_0(lambda: self.metrics.go_on(0, {}))
            return
        threads = checkpoint.meta["experiment"]["train"].get("threads")
        if threads is not None and self.experiment.train.threads is None:
            torch.set_num_threads(threads)
        self._on_rank_0(lambda: self.metrics.go_on(checkpoint.epoch, checkpoint.meta["row"]))
        self.progress = train_state.restore(checkpoint.state, self.learner, self.source)
        self.epoch = checkpoint.epoch
        self.last_row = checkpoint.meta["row"]
        self.run_id = checkpoint.meta["run_id"] or self.run_id
        logger.info("resuming from %s", checkpoint.name)

    def _as_run(self) -> dict[str, Any]:
        """Return the resolved experiment with the number of threads that it runs on."""
        content = self.experiment.resolved()
        content["train"]["threads"] = torch.get_num_threads()
        return content

    def _on_rank_0(self, write: Callable[[], object]) -> None:
        """Call ``write`` on rank 0; if it fails (e.g. the disk is full), every rank raises, so that none hangs.

        Raises:
            TrainingError: on every rank alike; a StorageError instead if the store is a URI.
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
    """Train one experiment to its end, resuming from its newest valid checkpoint if there is one.

    Args:
        experiment: the configuration.
        world: this rank and the number of ranks; with several ranks the process group is already initialised.
        store: the trial's folder; configuration, metrics, checkpoints and tracker files go there.
        plans: the plan service for samplers that need embeddings; a local one if None.
        observers: notified of every step and epoch, in addition to the trackers that the experiment names.
        run_id: the trackers' id of this run; a resumed training keeps its original id.
        group: the study that the run belongs to.
        log: receives lines on where trackers log to and on the cost of planning, if there are any.
        notice: returns whether this rank's machine is about to be preempted and no checkpoint was written since; polled
            at every synchronisation. If it is true on any rank, all ranks write a checkpoint.

    Raises:
        ConfigError: if the configuration does not fit the data.
        CheckpointError: if the folder's checkpoint belongs to another experiment.
        TrainingError: if the loss is not finite.
    """
    threads = torch.get_num_threads()
    try:
        if experiment.train.threads is not None:
            torch.set_num_threads(experiment.train.threads)
        trainer = Trainer(
            experiment, world=world, store=store, plans=plans, observers=observers, run_id=run_id, notice=notice
        )
        trainer.resume()
        notes = [f"note: {note}" for note in check_trackers(experiment)]
        for line in filter(None, (*notes, planning_cost(experiment, trainer.samples))):
            if log is not None:
                log(line)
        trackers = build_trackers(experiment, store, run_id=trainer.run_id, group=group) if world.rank == 0 else []
        # An observer may end the training, after the trackers have its last row.
        trainer.observers = [*trackers, *observers]
        return trainer.run()
    finally:
        torch.set_num_threads(threads)
