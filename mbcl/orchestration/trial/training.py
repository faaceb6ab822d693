"""The training of a trial on one rank, wherever the rank runs: its claims, its plans, and the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mbcl.config.experiment import Experiment
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine import BaseObserver, Observer, Row, train
from mbcl.io.ownership import Fence, FencedStore, claim
from mbcl.io.store import is_uri, open_store
from mbcl.orchestration.trial.job import Job, mute_sampler_warnings
from mbcl.orchestration.trial.planner_actor import RayPlanService

OWNER_SECONDS, OWNER_SECONDS_REMOTE = 1.0, 10.0
"""Interval of a rank's check that it still owns its folder: on a disk, and in an object store."""


@dataclass(frozen=True)
class TrainResult:
    """The result of training, as every rank returns it.

    Args:
        entered: when the training function started, in seconds since the epoch.
        seconds: wall time of training alone.
        row: the last row of metrics.
    """

    entered: float
    seconds: float
    row: Row


class OwnershipGuard(BaseObserver):
    """Ends a training whose folder another run has taken over.

    Args:
        fences: the claims that must be valid, checked at checkpoints and every second (in object stores every ten).
    """

    def __init__(self, fences: Sequence[Fence]) -> None:
        self._fences = fences
        self._interval = OWNER_SECONDS_REMOTE if any(is_uri(fence.location) for fence in fences) else OWNER_SECONDS
        self._checked_at = time.monotonic()

    def on_step(self, step: int, loss: float, lr: float) -> None:
        """Check the claims if the interval has passed."""
        if time.monotonic() - self._checked_at > self._interval:
            self._check()

    def on_checkpoint(self) -> None:
        """Check the claims."""
        self._check()

    def on_epoch(self, row: Row) -> None:
        """Check the claims."""
        self._check()

    def _check(self) -> None:
        self._checked_at = time.monotonic()
        for fence in self._fences:
            fence.check()


def _claim(job: Job, world: World) -> tuple[Fence, ...]:
    """Return the claims for this rank's writes: the sweep's, and on rank 0, which writes, a new one on the trial.

    The new claim invalidates that of an earlier worker group, which may still be running on an unreachable node.

    Raises:
        OwnershipError: on all ranks, if another sweep has taken over the results folder.
    """
    if world.rank == 0 and job.fence is not None:
        trial_fence = collectives.run_and_sync_errors(lambda: claim(open_store(job.store), under=job.fences), world)
        return (*job.fences, trial_fence)
    collectives.run_and_sync_errors(lambda: None, world)
    return job.fences


def _on_threads(job: Job) -> Experiment:
    """Return the experiment of a trial with the threads of its resources, unless it names its own number."""
    assert isinstance(job.experiment, Experiment)
    train_block = job.experiment.train
    threads = {"threads": train_block.threads or job.resources.threads}
    return job.experiment.model_copy(update={"train": train_block.model_copy(update=threads)})


def train_rank(
    job: Job,
    world: World,
    *,
    planner: Any | None,
    observers: Sequence[Observer] = (),
    notice: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train a trial's experiment to its last epoch on one rank; every rank makes the same call.

    Args:
        job: the trial.
        world: this rank and the number of ranks.
        planner: the trial's planner, or None if the ranks plan themselves.
        observers: notified of steps, checkpoints and epochs.
        notice: as for :func:`mbcl.engine.train`.
    """
    entered, start = time.time(), time.perf_counter()
    mute_sampler_warnings()
    experiment = _on_threads(job)
    plans = None
    if planner is not None:
        plans = RayPlanService(planner, world=world, seed=experiment.seed, num_tasks=job.num_tasks)
    fences = _claim(job, world)
    outcome = train(
        experiment,
        world=world,
        store=FencedStore(open_store(job.store), fences),
        plans=plans,
        observers=[OwnershipGuard(fences), *observers],
        run_id=job.run_id or job.trial_id,
        group=job.group,
        notice=notice or (lambda: False),
    )
    return TrainResult(entered, time.perf_counter() - start, outcome.row)
