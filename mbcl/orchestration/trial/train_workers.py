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
from ray.train.torch import TorchConfig, get_device
from ray.train.v2._internal.execution.context import get_train_context as get_internal_train_context  # noqa: TID251
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from mbcl.config.experiment import Experiment
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine import Row, train
from mbcl.io.ownership import Fence, FencedStore, claim
from mbcl.io.store import is_uri, open_store
from mbcl.orchestration.cluster.elastic_policy import LargestDivisorScalingPolicy
from mbcl.orchestration.cluster.failure_policy import RetryLostWorkers
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
UNUSED_CALLBACKS = ("PlacementGroupCleanerCallback", "DatasetsCallback")


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


class LeanTorchTrainer(TorchTrainer):
    """A TorchTrainer without two helper processes of 2 CPU-seconds each, that repeats only what a repeat can mend.

    No Ray Data set is used. The placement group of a trial whose driver was killed is removed by
    :func:`~mbcl.orchestration.cluster.orphaned_groups.remove_orphaned_groups`, which the sweep's process calls every
    second.
    """

    policies: dict[str, Any]
    """What takes the place of Ray Train's own policies, by the names that it gives them."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        names = {type(callback).__name__ for callback in callbacks}
        missing = [name for name in UNUSED_CALLBACKS if name not in names]
        assert not missing, f"this version of Ray Train has no {missing}; mbcl is made for ray 2.60"
        return [callback for callback in callbacks if type(callback).__name__ not in UNUSED_CALLBACKS]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        for name, policy in self.policies.items():
            assert name in options, f"this version of Ray Train has no {name}; mbcl is made for ray 2.60"
            options[name] = policy
        return super()._initialize_and_run_controller(**options)


class PreemptionNotice:
    """Tells the engine that a node of this worker group will be taken away: as an observer, it knows of checkpoints.

    One is due at once and, as long as the node stays, every so many seconds again.
    """

    def __init__(self) -> None:
        self._saved = float("-inf")
        self._heard = False
        self._told = get_internal_train_context().preemption_context

    def __call__(self) -> bool:
        """Whether a checkpoint is due."""
        if self._told.preemption_info is None:
            return False
        if not self._heard:  # what was saved before, however lately, does not count
            self._heard, self._saved = True, float("-inf")
        return time.monotonic() - self._saved > NOTICE_SECONDS

    def on_step(self, step: int, loss: float, lr: float) -> None:
        """Nothing."""

    def on_checkpoint(self) -> None:
        """Remember when."""
        self._saved = time.monotonic()

    def on_epoch(self, row: Row) -> None:
        """Nothing: its checkpoint was told."""

    def close(self) -> None:
        """Nothing is held."""


class RayReporter:
    """Tells Ray Train about every epoch. Every rank reports: Ray waits for all of them."""

    def on_step(self, step: int, loss: float, lr: float) -> None:
        """Nothing: a report costs Ray up to a health-check interval."""

    def on_checkpoint(self) -> None:
        """Nothing: Ray keeps no checkpoints here."""

    def on_epoch(self, row: Row) -> None:
        """Report what was measured, as plain floats."""
        ray.train.report({key: float(value) for key, value in row.items() if value is not None})

    def close(self) -> None:
        """Nothing is held."""


class OwnershipGuard:
    """Ends a training whose folder another run has taken over, as soon as that is seen.

    Args:
        fences: the claims that must stand.
    """

    def __init__(self, fences: Sequence[Fence]) -> None:
        self._fences = fences
        self._every = OWNER_SECONDS_REMOTE if any(is_uri(fence.location) for fence in fences) else OWNER_SECONDS
        self._looked = time.monotonic()

    def on_step(self, step: int, loss: float, lr: float) -> None:
        """Look, if the last time is long ago."""
        if time.monotonic() - self._looked > self._every:
            self.on_checkpoint()

    def on_checkpoint(self) -> None:
        """Look."""
        self._looked = time.monotonic()
        for fence in self._fences:
            fence.check()

    def on_epoch(self, row: Row) -> None:
        """Look."""
        self.on_checkpoint()

    def close(self) -> None:
        """Nothing is held."""


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
    need = job.need
    asked = {"CPU": need.cpus_per_worker} | ({"GPU": need.gpus_per_worker} if need.gpus_per_worker else {})
    sizes = job.sizes or (need.workers,)
    scaling = ScalingConfig(
        num_workers=max(sizes), use_gpu=bool(need.gpus_per_worker), resources_per_worker=dict(asked)
    )
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
    # What a local Ray has is this sweep's alone: there, no room is a fault.
    room = partial(can_ever_fit, asked, min(sizes)) if job.joined else lambda: False
    trainer.policies = {"failure_policy": RetryLostWorkers(FAILURES, job.store, room)}
    if len(sizes) > 1:
        trainer.policies["scaling_policy"] = LargestDivisorScalingPolicy(scaling, sizes)
    result: Any = trainer.fit()
    trained: TrainResult = result.return_value
    return trained


def _train_on_worker(config: dict[str, Any]) -> TrainResult:
    """What every training worker runs."""
    entered, start = time.time(), time.perf_counter()
    job: Job = config["job"]
    context = ray.train.get_context()
    device = get_device() if job.on_gpu else torch.device("cpu")
    world = World(rank=context.get_world_rank(), size=context.get_world_size(), device=device)
    torch.set_num_threads(job.need.threads)
    mute_sampler_warnings()
    experiment = Experiment.model_validate(job.experiment)
    plans = None
    if config["planner"] is not None:
        plans = RayPlanService(config["planner"], world=world)
    # What is raised ends the trial or the attempt (failure_policy.py). It is raised even if it would come again: Ray
    # ends the other ranks, which might wait in a collective for one that has returned.
    fences, notice = _claim(job, world), PreemptionNotice()
    outcome = train(
        experiment,
        world=world,
        store=FencedStore(open_store(job.store), fences),
        plans=plans,
        observers=[OwnershipGuard(fences), notice, RayReporter()],
        run_id=job.trial_id,
        group=job.group,
        notice=notice,
    )
    return TrainResult(entered, time.perf_counter() - start, outcome.row)
