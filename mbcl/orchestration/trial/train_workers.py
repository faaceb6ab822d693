"""Training in a worker group of its own: Ray Train's TorchTrainer around the engine.

Ray Train stores no checkpoints: the engine writes and finds its own, so a restarted worker group resumes by itself.
"""

from __future__ import annotations

import time
import uuid
from functools import partial
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, get_device

from mbcl.distributed.collectives import World
from mbcl.engine import BaseObserver, Observer, Row
from mbcl.orchestration.cluster.elastic_policy import LargestDivisorScalingPolicy
from mbcl.orchestration.cluster.failure_policy import RetryLostWorkers
from mbcl.orchestration.cluster.ray_internals import LeanTorchTrainer
from mbcl.orchestration.cluster.wait_for_capacity import can_ever_fit
from mbcl.orchestration.trial.job import Job
from mbcl.orchestration.trial.training import TrainResult, train_rank

COLLECTIVE_SECONDS = 600
"""Timeout of collectives: longer than any validation, and short enough that a hang does not cost a night."""
MAX_FAILURES = 2
"""Restarts of a worker group after the loss of a worker; the count starts again with each new checkpoint."""
START_FAILURES = 3
"""Retries after a failed start of the worker group; Ray's default is unlimited."""
FAILURES = FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=START_FAILURES)
NOTICE_SECONDS = 15.0
"""Maximum training time lost when a node is preempted after a notice."""


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


def train_in_workers(job: Job, planner: Any | None) -> TrainResult:
    """Train a trial's experiment to its last epoch in worker processes.

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
    job: Job = config["job"]
    context = ray.train.get_context()
    device = get_device() if job.on_gpu else torch.device("cpu")
    world = World(rank=context.get_world_rank(), size=context.get_world_size(), device=device)
    observers: list[Observer] = [RayReporter()]
    notice = None
    if job.joined:  # a local machine is not preempted, and get_preemption_info is a barrier
        notice = PreemptionNotice()
        observers.append(notice)
    # An exception here ends the attempt or the trial (failure_policy.py). Ray then kills the other ranks, which may be
    # waiting for this one in a collective.
    return train_rank(job, world, planner=config["planner"], observers=observers, notice=notice)
