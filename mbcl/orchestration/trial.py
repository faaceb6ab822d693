"""One trial as Ray Tune runs it: planner, training, evaluation, answer. What is done already is not done again."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import ray
import ray.tune
import torch

from mbcl.evaluation import evaluate
from mbcl.experiment import Evaluation, Experiment
from mbcl.orchestration.janitor import remove_orphans
from mbcl.orchestration.jobs import Answer, Job, final_metrics, one_line
from mbcl.orchestration.planner import PlannerActor
from mbcl.orchestration.training import run_training
from mbcl.orchestration.watch import reporting
from mbcl.storage import Store, open_store

ANSWER = "answer"
"""The key of Ray Tune's result that holds the answer."""
EVALUATION_RETRIES = 3


def run_trial(config: dict[str, Any]) -> None:
    """The function that Ray Tune calls for every trial. It never raises: a failure is an answer, too.

    Args:
        config: holds the ``job``.
    """
    job: Job = config["job"]
    start = time.time()
    remove_orphans()  # what an attempt before this one, whose driver was killed, had reserved
    try:
        answer = _run(job, start)
    except Exception as error:  # whatever went wrong belongs to this trial alone
        answer = Answer(one_line(root(error)), seconds={"total": time.time() - start})
    ray.tune.report({ANSWER: asdict(answer)})


def _run(job: Job, start: float) -> Answer:
    experiment = Experiment.model_validate(job.experiment)
    planner = _start_planner(job, experiment)
    try:
        with reporting(open_store(job.store), job.watched):
            trained = run_training(job, planner)
    finally:
        if planner is not None:
            ray.kill(planner)
    seconds = {"startup": trained.entered - start, "training": trained.seconds}
    if trained.error:
        return Answer(trained.error, seconds=seconds | {"total": time.time() - start})
    evaluation_start = time.time()
    evaluated = ray.get(submit_evaluation(job))
    seconds["evaluation"] = time.time() - evaluation_start
    seconds["total"] = time.time() - start
    seconds["ray"] = seconds["total"] - seconds["training"] - seconds["evaluation"]
    return Answer(metrics=final_metrics(trained.row, evaluated), seconds=seconds)


def _start_planner(job: Job, experiment: Experiment) -> Any | None:
    """The trial's planner, owned by this driver so that it ends with it; None where no planner is needed."""
    if not experiment.build_sampler().needs_embeddings or experiment.planner.where != "tasks":
        return None
    planner = PlannerActor.options(resources=job.placement.for_driver)
    return planner.remote(experiment.seed, job.need.workers, job.num_tasks, job.placement)


def submit_evaluation(job: Job, settings: dict[str, Any] | None = None) -> ray.ObjectRef:
    """Evaluate a trial's last checkpoint in a Ray task of its own. A task whose process dies is started again.

    Args:
        job: the trial.
        settings: the evaluation block as plain data, for an evaluation even where there is one already, whose file
            goes into :func:`evaluated_again`; the experiment's own by default.
    """
    options = _evaluate.options(
        num_gpus=min(1, job.need.gpus_per_worker), max_retries=EVALUATION_RETRIES, resources=job.placement.for_task
    )
    return options.remote(job, settings)


@ray.remote(num_cpus=0)
def _evaluate(job: Job, settings: dict[str, Any] | None) -> dict[str, float]:
    torch.set_num_threads(job.need.threads)
    chosen = None if settings is None else Evaluation.model_validate(settings)
    device = "cuda" if job.need.gpus_per_worker else "cpu"
    store, baselines = open_store(job.store), open_store(job.baselines)
    if chosen is None:
        return evaluate(store, device=device, baselines=baselines)
    out = evaluated_again(job)
    return evaluate(store, settings=chosen, device=device, baselines=baselines, out=out, force=True)


def evaluated_again(job: Job) -> Store:
    """Where the file of another evaluation waits until all of the study's are done."""
    return open_store(job.scratch).child(f"evaluations/{job.trial_id}")


def root(error: BaseException) -> BaseException:
    """The error of the process where it happened, out of what Ray wrapped around it."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        return root(failures[min(failures)])
    inner = getattr(error, "cause", None)
    if isinstance(inner, BaseException):
        return root(inner)
    return error
