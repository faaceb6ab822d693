"""The training stage of a trial: Ray Train's TorchTrainer around the engine, without its dispensable helpers.

Ray keeps no checkpoints here: the engine writes and finds its own, so a restarted worker group goes on by itself.
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
"""How long a rank waits for another: longer than any validation, shorter than a night."""
MAX_FAILURES = 2
"""How often a trial's workers are started again after one was lost and before a new checkpoint was written."""
START_FAILURES = 3
"""How often starting the workers is tried; Ray's own default is for ever."""
FAILURES = FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=START_FAILURES)
NOTICE_SECONDS = 15.0
"""How much training at most is lost with a node that was announced to go."""
OWNER_SECONDS, OWNER_SECONDS_REMOTE = 1.0, 10.0
"""How often a worker looks whether its folder is still its own: on a disk, and where that takes a request."""


@dataclass(frozen=True)
class TrainResult:
    """What the workers answer.

    Args:
        entered: when the training function began, in seconds since the epoch.
        seconds: wall time of training alone.
        row: the last row of metrics.
    """

    entered: float
    seconds: float
    row: Row


class PreemptionNotice(BaseObserver):
    """Asks the engine for a checkpoint when a node of the worker group will be taken away, and then every 15 s.

    Called by every rank at every synchronisation of the losses: Ray Train broadcasts the news from rank 0.
    """

    def __init__(self) -> None:
        self._saved_at = float("-inf")
        self._noticed = False

    def __call__(self) -> bool:
        """Whether a checkpoint is due."""
        if ray.train.get_preemption_info() is None:
            return False
        if not self._noticed:  # a checkpoint from before the notice does not count
            self._noticed, self._saved_at = True, float("-inf")
        return time.monotonic() - self._saved_at > NOTICE_SECONDS

    def on_checkpoint(self) -> None:
        """Restart the interval."""
        self._saved_at = time.monotonic()


class RayReporter(BaseObserver):
    """Reports every epoch to Ray Train. Every rank reports: Ray waits for all of them.

    Steps are not reported, which would cost up to a health-check interval each, and checkpoints are the engine's own.
    """

    def on_epoch(self, row: Row) -> None:
        """Report what was measured, as plain floats."""
        ray.train.report({key: float(value) for key, value in row.items() if value is not None})


class OwnershipGuard(BaseObserver):
    """Ends a training whose folder another run has taken over.

    Args:
        fences: the claims that must stand, checked at checkpoints and every second (in object stores every ten).
    """

    def __init__(self, fences: Sequence[Fence]) -> None:
        self._fences = fences
        self._interval = OWNER_SECONDS_REMOTE if any(is_uri(fence.location) for fence in fences) else OWNER_SECONDS
        self._checked_at = time.monotonic()

    def on_step(self, step: int, loss: float, lr: float) -> None:
        """Check, if the interval has passed."""
        if time.monotonic() - self._checked_at > self._interval:
            self._check()

    def on_checkpoint(self) -> None:
        """Check."""
        self._check()

    def on_epoch(self, row: Row) -> None:
        """Check."""
        self._check()

    def _check(self) -> None:
        self._checked_at = time.monotonic()
        for fence in self._fences:
            fence.check()


def _claim(job: Job, world: World) -> tuple[Fence, ...]:
    """The claims to write under: the sweep's, and on rank 0, which writes, this worker group's on the trial.

    Raises:
        OwnershipError: on every rank alike, if another sweep has the results folder since.
    """
    if world.rank == 0 and job.fence is not None:
        own = collectives.run_and_sync_errors(lambda: claim(open_store(job.store), under=job.fences), world)
        return (*job.fences, own)
    collectives.run_and_sync_errors(lambda: None, world)
    return job.fences


def run_training(job: Job, planner: Any | None) -> TrainResult:
    """Train a trial's experiment to its end.

    Args:
        job: the trial.
        planner: its planner, or None if the workers plan themselves.

    Raises:
        Exception: what Ray raises when training failed for good, or workers cannot be started or were lost too often.
    """
    use_gpu = bool(job.need.gpus_per_worker)
    resources = {"CPU": job.need.cpus_per_worker} | ({"GPU": job.need.gpus_per_worker} if use_gpu else {})
    sizes = job.sizes or (job.need.workers,)
    scaling = ScalingConfig(num_workers=max(sizes), use_gpu=use_gpu, resources_per_worker=dict(resources))
    trainer = LeanTorchTrainer(
        _train_on_worker,
        train_loop_config={"job": job, "planner": planner},
        torch_config=TorchConfig(backend=None if job.on_gpu else "gloo", timeout_s=COLLECTIVE_SECONDS),
        scaling_config=scaling,
        run_config=RunConfig(
            # A name of its own for every attempt: Ray takes an old name for a run to go on with.
            name=f"{job.trial_id}-{uuid.uuid4().hex[:8]}",
            storage_path=job.scratch,
            failure_config=FAILURES,
            logging_config=LoggingConfig(log_level="INFO" if job.verbose else "ERROR"),
        ),
    )
    # A local Ray serves this sweep alone: capacity that it lacks will not come.
    capacity_may_come = partial(can_ever_fit, resources, min(sizes)) if job.joined else lambda: False
    trainer.policies = {"failure_policy": RetryLostWorkers(FAILURES, job.store, capacity_may_come)}
    if len(sizes) > 1:
        trainer.policies["scaling_policy"] = LargestDivisorScalingPolicy(scaling, sizes)
    result: Any = trainer.fit()
    train_result: TrainResult = result.return_value
    return train_result


def _train_on_worker(config: dict[str, Any]) -> TrainResult:
    """What every training worker runs."""
    entered, start = time.time(), time.perf_counter()
    job: Job = config["job"]
    context = ray.train.get_context()
    device = get_device() if job.on_gpu else torch.device("cpu")
    world = World(rank=context.get_world_rank(), size=context.get_world_size(), device=device)
    torch.set_num_threads(job.need.threads)
    mute_sampler_warnings()
    assert isinstance(job.experiment, Experiment)
    plans = None
    if config["planner"] is not None:
        plans = RayPlanService(config["planner"], world=world)
    # An exception ends the trial or the attempt (failure_policy.py), and Ray then ends the other ranks, which may wait
    # in a collective for this one.
    fences = _claim(job, world)
    observers: list[Observer] = [OwnershipGuard(fences), RayReporter()]
    notice = None
    if job.joined:  # a local machine is not preempted, and asking is a barrier
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
