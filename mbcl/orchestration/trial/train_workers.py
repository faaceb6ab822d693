"""The training stage of a trial: Ray Train's TorchTrainer around the engine.

Ray Train stores no checkpoints: the engine writes and finds its own, so a restarted worker group resumes by itself.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, get_device

from mbcl.config.experiment import Experiment
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine import BaseObserver, Observer, Row, train
from mbcl.io.ownership import Fence, FencedStore, claim
from mbcl.io.store import is_uri, open_store
from mbcl.orchestration.cluster.elastic_policy import LargestDivisorScalingPolicy
from mbcl.orchestration.cluster.failure_policy import RetryLostWorkers
from mbcl.orchestration.cluster.ray_internals import LeanTorchTrainer
from mbcl.orchestration.cluster.wait_for_capacity import can_ever_fit
from mbcl.orchestration.trial.job import Job, mute_sampler_warnings
from mbcl.orchestration.trial.planner_actor import RayPlanService

COLLECTIVE_SECONDS = 600
"""Timeout of collectives: longer than any validation, and short enough that a hang does not cost a night."""
MAX_FAILURES = 2
"""Restarts of a worker group after the loss of a worker; the count starts again with each new checkpoint."""
START_FAILURES = 3
"""Retries after a failed start of the worker group; Ray's default is unlimited."""
FAILURES = FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=START_FAILURES)
NOTICE_SECONDS = 15.0
"""Maximum training time lost when a node is preempted after a notice."""
OWNER_SECONDS, OWNER_SECONDS_REMOTE = 1.0, 10.0
"""Interval of a worker's check that it still owns its folder: on a disk, and in an object store."""


@dataclass(frozen=True)
class TrainResult:
    """The result of training, as the workers return it.

    Args:
        entered: when the training function started, in seconds since the epoch.
        seconds: wall time of training alone.
        row: the last row of metrics.
    """

    entered: float
    seconds: float
    row: Row


class PreemptionNotice(BaseObserver):
    """Requests a checkpoint when a node of the worker group is about to be preempted, and then every 15 s.

    Every rank calls it at every synchronisation of the losses: Ray Train broadcasts the notice from rank 0.
    """

    def __init__(self) -> None:
        self._saved_at = float("-inf")
        self._noticed = False

    def __call__(self) -> bool:
        """Whether a checkpoint is due."""
        if ray.train.get_preemption_info() is None:
            return False
        if not self._noticed:  # an earlier checkpoint must not delay the first one after the notice
            self._noticed, self._saved_at = True, float("-inf")
        return time.monotonic() - self._saved_at > NOTICE_SECONDS

    def on_checkpoint(self) -> None:
        """Restart the interval."""
        self._saved_at = time.monotonic()


class RayReporter(BaseObserver):
    """Reports every epoch to Ray Train. Every rank reports, because ``ray.train.report`` is a barrier.

    Steps are not reported: each report costs up to one health-check interval. No checkpoint is attached, because the
    engine writes its own.
    """

    def on_epoch(self, row: Row) -> None:
        """Report the row's values as floats, without those that are None."""
        ray.train.report({key: float(value) for key, value in row.items() if value is not None})


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


def run_training(job: Job, planner: Any | None) -> TrainResult:
    """Train a trial's experiment to its last epoch.

    Args:
        job: the trial.
        planner: the trial's planner, or None if the workers plan themselves.

    Raises:
        Exception: Ray's error if training failed, or if workers could not be started or were lost too often.
    """
    use_gpu = bool(job.resources.gpus_per_worker)
    per_worker = {"CPU": job.resources.cpus_per_worker} | ({"GPU": job.resources.gpus_per_worker} if use_gpu else {})
    sizes = job.sizes or (job.resources.workers,)
    scaling = ScalingConfig(num_workers=max(sizes), use_gpu=use_gpu, resources_per_worker=dict(per_worker))
    trainer = LeanTorchTrainer(
        _train_on_worker,
        train_loop_config={"job": job, "planner": planner},
        torch_config=TorchConfig(backend=None if job.on_gpu else "gloo", timeout_s=COLLECTIVE_SECONDS),
        scaling_config=scaling,
        run_config=RunConfig(
            # Unique for every attempt: Ray Train would resume a run whose name it finds.
            name=f"{job.trial_id}-{uuid.uuid4().hex[:8]}",
            storage_path=job.scratch,
            failure_config=FAILURES,
            logging_config=LoggingConfig(log_level="INFO" if job.verbose else "ERROR"),
        ),
    )
    # A local Ray is used by this sweep only and does not grow: missing capacity will never become free.
    capacity_may_come = partial(can_ever_fit, per_worker, min(sizes)) if job.joined else lambda: False
    trainer.policies = {"failure_policy": RetryLostWorkers(FAILURES, job.store, capacity_may_come)}
    if len(sizes) > 1:
        trainer.policies["scaling_policy"] = LargestDivisorScalingPolicy(scaling, sizes)
    result: Any = trainer.fit()
    train_result: TrainResult = result.return_value
    return train_result


def _train_on_worker(config: dict[str, Any]) -> TrainResult:
    """Train in a worker process; the training function of Ray Train."""
    entered, start = time.time(), time.perf_counter()
    job: Job = config["job"]
    context = ray.train.get_context()
    device = get_device() if job.on_gpu else torch.device("cpu")
    world = World(rank=context.get_world_rank(), size=context.get_world_size(), device=device)
    torch.set_num_threads(job.resources.threads)
    mute_sampler_warnings()
    assert isinstance(job.experiment, Experiment)
    plans = None
    if config["planner"] is not None:
        plans = RayPlanService(config["planner"], world=world)
    # An exception here ends the attempt or the trial (failure_policy.py). Ray then kills the other ranks, which may be
    # waiting for this one in a collective.
    fences = _claim(job, world)
    observers: list[Observer] = [OwnershipGuard(fences), RayReporter()]
    notice = None
    if job.joined:  # a local machine is not preempted, and get_preemption_info is a barrier
        notice = PreemptionNotice()
        observers.append(notice)
    outcome = train(
        job.experiment,
        world=world,
        store=FencedStore(open_store(job.store), fences),
        plans=plans,
        observers=observers,
        run_id=job.trial_id,
        group=job.group,
        notice=notice or (lambda: False),
    )
    return TrainResult(entered, time.perf_counter() - start, outcome.row)
