"""Training in the driver of a trial, for one worker on a local Ray.

Ray Tune reuses the driver's process for the next trial, which then starts nothing and imports nothing. The engine needs
no Ray Train there: a single rank has no process group, and Ray Tune refuses the functions of a Ray Train session.
"""

from __future__ import annotations

import gc
import logging
import time
from functools import cache
from typing import Any

import torch

from mbcl.config.experiment import Experiment
from mbcl.distributed.collectives import World
from mbcl.engine import BaseObserver, Row
from mbcl.io.store import open_store
from mbcl.orchestration.cluster.failure_policy import CheckpointProgress, is_deterministic
from mbcl.orchestration.trial.job import Job
from mbcl.orchestration.trial.metrics_reporter import RowReporter
from mbcl.orchestration.trial.train_workers import MAX_FAILURES
from mbcl.orchestration.trial.training import TrainResult, train_rank

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""Pause before a training is resumed after a failure of the storage or the planner."""


class EpochReporter(BaseObserver):
    """Reports to Ray Tune after every epoch. If Ray Tune stops the trial, it ends the training by a SystemExit."""

    def __init__(self, report: RowReporter) -> None:
        self._report = report

    def on_epoch(self, row: Row) -> None:
        """Report the row."""
        self._report()


def train_in_driver(job: Job, planner: Any | None) -> TrainResult:
    """Train a trial's experiment to its last epoch in this process.

    A failure of the storage or the planner is retried as often as in a worker group. If this process dies, Ray Tune
    starts another driver, which resumes from the last checkpoint.

    Args:
        job: the trial.
        planner: the trial's planner, or None if this process plans.

    Raises:
        SystemExit: if Ray Tune stops the trial.
        Exception: the error of training.
    """
    world = World(device=torch.device("cuda" if job.on_gpu else "cpu"))
    report = RowReporter(open_store(job.store), job.watched_metric, job.judged_epoch)
    report()  # rows of an earlier attempt that Ray Tune has not seen
    observers = [EpochReporter(report)]
    progress, num_failures = CheckpointProgress(job.store), 0
    while True:
        clear_process(job)
        try:
            result = train_rank(job, world, planner=planner, observers=observers)
        except Exception as error:
            num_failures = 1 if progress.has_advanced() else num_failures + 1
            if is_deterministic(error) or num_failures > MAX_FAILURES:
                raise
            logger.warning("training is resumed after a failure: %s", error)
            time.sleep(RETRY_SECONDS)  # a worker group's restart takes as long
        else:
            report()  # a row that could not be read when it was written
            return result


@cache
def _freeze_modules() -> None:
    """Take the modules that were imported, once in a process, out of garbage collection.

    Ray collects garbage every few seconds while trials wait for resources, and a collection walks through all objects.
    """
    gc.freeze()


def clear_process(job: Job) -> None:
    """Free what an earlier training of this process has left; it may have been stopped in the middle."""
    gc.collect()
    _freeze_modules()
    if job.on_gpu:
        torch.cuda.empty_cache()
    assert isinstance(job.experiment, Experiment)
    if job.experiment.train.compile:  # torch counts recompilations over all models, and then no longer compiles
        torch.compiler.reset()
