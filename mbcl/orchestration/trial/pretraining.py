"""A pretraining as a trial: planner, training, evaluation; what is done is not done again."""

from __future__ import annotations

import time
from typing import Any

import ray
import torch

from mbcl.config.experiment import Experiment
from mbcl.engine.checkpoint import name_of
from mbcl.evaluation import evaluate
from mbcl.io.store import Store, open_store
from mbcl.orchestration.cluster.wait_for_capacity import wait_any
from mbcl.orchestration.trial.job import Job, TrialResult, merge_metrics
from mbcl.orchestration.trial.metrics_reporter import reporting
from mbcl.orchestration.trial.planner_actor import PlannerActor
from mbcl.orchestration.trial.train_workers import run_training

EVALUATION_RETRIES = 3
NO_PLACEMENT_GROUP = "DEFAULT"
"""Not within the placement group of the trial's driver, which holds just what that driver has for itself."""


def pretrain(job: Job, start: float) -> TrialResult:
    """Train, then evaluate.

    Args:
        job: the trial.
        start: when its driver entered, in seconds since the epoch.
    """
    assert isinstance(job.experiment, Experiment)
    planner = _start_planner(job, job.experiment)
    try:
        with reporting(open_store(job.store), job.watched, job.judged):
            trained = run_training(job, planner)
    finally:
        if planner is not None:
            ray.kill(planner)
    seconds = {"startup": trained.entered - start, "training": trained.seconds}
    evaluation_start = time.time()
    evaluated = ray.get(wait_any([submit_evaluation(job)], evaluation_resources(job)))
    seconds["evaluation"] = time.time() - evaluation_start
    seconds["total"] = time.time() - start
    seconds["ray"] = seconds["total"] - seconds["training"] - seconds["evaluation"]
    return TrialResult(metrics=merge_metrics(trained.row, evaluated), seconds=seconds)


def _start_planner(job: Job, experiment: Experiment) -> Any | None:
    """The trial's planner, owned by this driver so that it ends with it; None where no planner is needed."""
    if not experiment.build_sampler().needs_embeddings or experiment.planner.where != "tasks":
        return None
    planner = PlannerActor.options(resources=job.placement.for_driver, scheduling_strategy=NO_PLACEMENT_GROUP)
    return planner.remote(experiment.seed, job.num_tasks, job.placement)


def submit_evaluation(job: Job, *, again: bool = False) -> ray.ObjectRef[dict[str, float]]:
    """Evaluate a trial's last checkpoint in a Ray task of its own. A task whose process dies is started again.

    Args:
        job: the trial.
        again: whether it is another evaluation beside the one that is there, with a file that goes into
            :func:`reevaluation_store`.
    """
    resources = evaluation_resources(job)
    options = _evaluate.options(
        num_gpus=resources.pop("GPU", 0),
        max_retries=EVALUATION_RETRIES,
        resources=resources,
        scheduling_strategy=NO_PLACEMENT_GROUP,
    )
    return options.remote(job, again)


def evaluation_resources(job: Job) -> dict[str, float]:
    """What an evaluation reserves, by resource."""
    return ({"GPU": 1} if job.need.gpus_per_worker else {}) | job.placement.for_task


def evaluate_end(job: Job, again: bool) -> dict[str, float]:
    """Evaluate the checkpoint that a trial's training ended with, in this process.

    Args:
        job: a trial that has trained to its end.
        again: as in :func:`submit_evaluation`.

    Returns:
        The metrics by their contract names.

    Raises:
        CheckpointError: if that checkpoint is damaged or cannot be seen here; never is another one evaluated in its
            place, whose metrics would stand beside the last row of training.
        DataError, ConfigError: as :func:`mbcl.evaluation.evaluate`.
    """
    assert isinstance(job.experiment, Experiment)
    torch.set_num_threads(job.need.threads)
    store = job.open(job.store)
    return evaluate(
        store,
        settings=job.evaluation,
        device="cuda" if job.on_gpu else "cpu",
        baselines=job.open(job.baselines),
        checkpoint=name_of(job.experiment.train.epochs),
        out=reevaluation_store(job) if again else None,
        earlier=store if again else None,
    )


_evaluate = ray.remote(num_cpus=0)(evaluate_end)


def reevaluation_store(job: Job) -> Store:
    """Where the file of another evaluation waits until all of the study's are done."""
    return open_store(job.scratch).child(f"evaluations/{job.trial_id}")
