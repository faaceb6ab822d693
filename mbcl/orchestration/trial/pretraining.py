"""A pretraining as a trial: planner, training, evaluation. A restarted trial resumes from its checkpoints."""

from __future__ import annotations

import time
from typing import Any

import ray
import torch

from mbcl.config.experiment import Experiment
from mbcl.engine.checkpoint import load, name_of
from mbcl.engine.tracking import log_final
from mbcl.evaluation import evaluate
from mbcl.io.store import Store, open_store
from mbcl.orchestration.cluster.wait_for_capacity import wait_any
from mbcl.orchestration.trial.job import Job, TrialResult, merge_metrics
from mbcl.orchestration.trial.metrics_reporter import report_to_tune
from mbcl.orchestration.trial.planner_actor import PlannerActor
from mbcl.orchestration.trial.train_in_driver import train_in_driver
from mbcl.orchestration.trial.train_workers import train_in_workers

EVALUATION_RETRIES = 3
NO_PLACEMENT_GROUP = "DEFAULT"
"""Schedule outside the driver's placement group: its bundle covers only the driver."""


def pretrain(job: Job, start: float) -> TrialResult:
    """Train, then evaluate if the job says so.

    Args:
        job: the trial.
        start: when the driver started the trial, in seconds since the epoch.
    """
    assert isinstance(job.experiment, Experiment)
    planner = _planner_of(job, job.experiment)
    try:
        if job.trains_in_driver:
            training = train_in_driver(job, planner)
        else:
            with report_to_tune(open_store(job.store), job.watched_metric, job.judged_epoch):
                training = train_in_workers(job, planner)
    except Exception:
        _end_planner()
        raise
    seconds = {"startup": training.entered - start, "training": training.seconds}
    evaluation_start = time.time()
    evaluation: dict[str, float] = {}
    if not job.evaluates:
        pass
    elif job.trains_in_driver:  # which holds the trial's GPU
        evaluation = evaluate_end(job, again=False)
    else:
        evaluation = ray.get(wait_any([submit_evaluation(job)], evaluation_resources(job)))
    seconds["evaluation"] = time.time() - evaluation_start
    seconds["total"] = time.time() - start
    seconds["ray"] = seconds["total"] - seconds["training"] - seconds["evaluation"]
    return TrialResult(metrics=merge_metrics(training.row, evaluation), seconds=seconds)


_planner: Any | None = None
"""The planner of this process, kept from trial to trial: an actor that ends with this driver, its owner."""


def _planner_of(job: Job, experiment: Experiment) -> Any | None:
    """Return the planner of this process, started for its first trial that needs one; None if the trial needs none."""
    if not experiment.build_sampler().needs_embeddings or experiment.planner.where != "tasks":
        return None
    global _planner
    if _planner is None:
        options = PlannerActor.options(resources=job.placement.for_driver, scheduling_strategy=NO_PLACEMENT_GROUP)
        _planner = options.remote(job.num_tasks, job.placement)
    return _planner


def _end_planner() -> None:
    """End the planner after a failure: workers that were killed may have left it with plans to make."""
    global _planner
    if _planner is not None:
        ray.kill(_planner)
        _planner = None


def submit_evaluation(job: Job, *, again: bool = False) -> ray.ObjectRef[dict[str, float]]:
    """Submit the evaluation of a trial's last checkpoint as a Ray task, which is retried if its process dies.

    Args:
        job: the trial.
        again: whether the trial has already been evaluated; then the new file goes into :func:`reevaluation_store`.
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
    """Return the resources that an evaluation reserves."""
    return ({"GPU": 1} if job.resources.gpus_per_worker else {}) | job.placement.for_task


def evaluate_end(job: Job, again: bool) -> dict[str, float]:
    """Evaluate the last checkpoint of a trial in this process.

    Args:
        job: a trial whose training has finished.
        again: as in :func:`submit_evaluation`.

    Returns:
        The metrics by their contract names.

    Raises:
        CheckpointError: if that checkpoint is damaged or not visible on this node. No earlier checkpoint is evaluated
            instead: its metrics would not belong to the last row of training.
        DataError, ConfigError: as :func:`mbcl.evaluation.evaluate`.
    """
    assert isinstance(job.experiment, Experiment)
    torch.set_num_threads(job.experiment.train.threads or job.resources.threads)
    store = job.open(job.store)
    checkpoint = name_of(job.experiment.train.epochs)
    metrics = evaluate(
        store,
        data=job.experiment.data,  # which may have moved since the training
        settings=job.evaluation,
        device="cuda" if job.on_gpu else "cpu",
        baselines=job.open(job.baselines),
        checkpoint=checkpoint,
        out=reevaluation_store(job) if again else None,
        earlier=store if again else None,
    )
    if "wandb" in job.experiment.track and not again:
        log_final(store, run_id=load(store, checkpoint).meta["run_id"], metrics=metrics)
    return metrics


_evaluate = ray.remote(num_cpus=0)(evaluate_end)


def reevaluation_store(job: Job) -> Store:
    """Return the staging folder of a re-evaluation, whose file is committed once all of the study have succeeded."""
    return open_store(job.scratch).child(f"evaluations/{job.trial_id}")
