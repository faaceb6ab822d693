"""The training stage of a trial: Ray Train's TorchTrainer around the engine, without its dispensable helpers.

Ray keeps no checkpoints here: the engine writes and finds its own, so a restarted worker group goes on by itself.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, get_device
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from mbcl.dist import World
from mbcl.engine import Row, train
from mbcl.errors import MbclError
from mbcl.experiment import Experiment
from mbcl.orchestration.failures import LostOnly
from mbcl.orchestration.jobs import Job, mute_sampler_warnings, one_line
from mbcl.orchestration.planner import RayPlanService
from mbcl.storage import open_store

COLLECTIVE_SECONDS = 600
"""How long a rank waits for another: longer than any validation, shorter than a night."""
MAX_FAILURES = 2
"""How often a trial's workers are started again after one was lost."""
START_FAILURES = 3
"""How often starting the workers is tried; Ray's own default is for ever."""
FAILURES = FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=START_FAILURES)
DISPENSABLE = ("PlacementGroupCleanerCallback", "DatasetsCallback")


@dataclass(frozen=True)
class Trained:
    """What the workers answer.

    Args:
        entered: when the training function began, in seconds since the epoch.
        seconds: wall time of training alone.
        row: the last row of metrics.
        error: why training failed for good; empty if it did not.
    """

    entered: float
    seconds: float
    row: Row
    error: str = ""


class LeanTorchTrainer(TorchTrainer):
    """A TorchTrainer without two helper processes of 2 CPU-seconds each, that repeats only what a repeat can mend.

    No Ray Data set is used. The placement group of a trial whose driver was killed is removed by
    :func:`~mbcl.orchestration.janitor.remove_orphans`, for which the sweep's process looks every second.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        names = {type(callback).__name__ for callback in callbacks}
        missing = [name for name in DISPENSABLE if name not in names]
        assert not missing, f"this version of Ray Train has no {missing}; mbcl is made for ray 2.60"
        return [callback for callback in callbacks if type(callback).__name__ not in DISPENSABLE]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        assert "failure_policy" in options, "this version of Ray Train has no failure policy; mbcl is made for ray 2.60"
        options["failure_policy"] = LostOnly(FAILURES)
        return super()._initialize_and_run_controller(**options)


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


def run_training(job: Job, planner: Any | None) -> Trained:
    """Train a trial's experiment to its end.

    Args:
        job: the trial.
        planner: its planner, or None if the workers plan themselves.

    Raises:
        Exception: what Ray raises when workers cannot be started, or were lost too often.
    """
    need = job.need
    trainer = LeanTorchTrainer(
        _train_on_worker,
        train_loop_config={"job": job, "planner": planner},
        torch_config=TorchConfig(backend=None if job.on_gpu else "gloo", timeout_s=COLLECTIVE_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=need.workers,
            use_gpu=bool(need.gpus_per_worker),
            resources_per_worker={"CPU": need.cpus_per_worker}
            | ({"GPU": need.gpus_per_worker} if need.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            # A name of its own for every attempt: Ray takes an old name for a run to go on with.
            name=f"{job.trial_id}-{uuid.uuid4().hex[:8]}",
            storage_path=job.scratch,
            failure_config=FAILURES,
            logging_config=LoggingConfig(log_level="INFO" if job.verbose else "ERROR"),
        ),
    )
    result: Any = trainer.fit()
    trained: Trained = result.return_value
    return trained


def _train_on_worker(config: dict[str, Any]) -> Trained:
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
    try:
        outcome = train(
            experiment,
            world=world,
            store=open_store(job.store),
            plans=plans,
            observers=[RayReporter()],
            run_id=job.trial_id,
            group=job.group,
        )
    except MbclError as error:
        # It would fail the same way again. The engine raises these on all ranks alike, so all of them answer.
        return Trained(entered, time.perf_counter() - start, {}, one_line(error))
    return Trained(entered, time.perf_counter() - start, outcome.row)
