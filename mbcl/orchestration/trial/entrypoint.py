"""One trial as Ray Tune runs it: the function that a trial's driver process calls."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import ray.tune

import mbcl.orchestration.trial.pretraining  # noqa: F401  # takes seconds, which come before a trial's clock starts
from mbcl.orchestration.cluster.failure_policy import root_cause
from mbcl.orchestration.cluster.orphaned_groups import remove_orphaned_groups
from mbcl.orchestration.trial.job import Job, TrialResult, describe_error
from mbcl.orchestration.trial.trial_runners import runner_of

RESULT = "answer"
"""The key of Ray Tune's result that holds the answer."""


def run_trial(config: dict[str, Any]) -> None:
    """The function that Ray Tune calls for every trial. It never raises: a failure is an answer, too.

    Args:
        config: holds the ``job``.
    """
    job: Job = config["job"]
    start = time.time()
    try:
        remove_orphaned_groups()  # what an attempt before this one, whose driver was killed, had reserved
        answer = runner_of(type(job.experiment)).run(job, start)
    except Exception as error:  # whatever went wrong belongs to this trial alone
        answer = TrialResult(describe_error(root_cause(error)), seconds={"total": time.time() - start})
    ray.tune.report({RESULT: asdict(answer)})
