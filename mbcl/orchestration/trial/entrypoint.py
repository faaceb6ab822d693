"""The trainable of Ray Tune: the function that a trial's driver process runs."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

import ray.tune

import mbcl.orchestration.trial.pretraining  # noqa: F401  # imported here: it takes seconds, which a trial's time must not include
from mbcl.errors import DivergenceError
from mbcl.orchestration.cluster.failure_policy import root_cause
from mbcl.orchestration.cluster.orphaned_groups import remove_orphaned_groups
from mbcl.orchestration.trial.failures import describe_error, full_text
from mbcl.orchestration.trial.job import Job, TrialResult
from mbcl.orchestration.trial.trial_runners import runner_of

RESULT = "result"
"""The key of the :class:`TrialResult` in what is reported to Ray Tune."""
_failed_on_gpu: list[str] = []
"""The trial of this process that failed on a GPU: after some errors no process can use CUDA any more."""


def run_trial(config: dict[str, Any]) -> None:
    """Run a trial and report its result to Ray Tune. A failure is a result, too: this function never raises.

    Args:
        config: contains the ``job``.
    """
    job: Job = config["job"]
    start = time.time()
    if _failed_on_gpu:  # Ray Tune starts a new driver for this trial
        os._exit(1)
    try:
        remove_orphaned_groups()  # of an earlier attempt whose driver was killed
        result = runner_of(type(job.experiment)).run(job, start)
    except Exception as error:  # a failed trial must not end the study
        cause = root_cause(error)
        seconds = {"total": time.time() - start}
        diverged = isinstance(cause, DivergenceError)
        result = TrialResult(describe_error(cause), full_text(error), seconds=seconds, diverged=diverged)
        if job.on_gpu and job.trains_in_driver:
            _failed_on_gpu.append(job.trial_id)
    ray.tune.report({RESULT: asdict(result)})
