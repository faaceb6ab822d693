"""Adapters of a trial queue to Ray Tune: a searcher that suggests its trials, and a scheduler that stops them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mbcl.orchestration.scheduling.trial_queue import TrialQueue
from mbcl.orchestration.trial.job import Job
from mbcl.orchestration.trial.metrics_reporter import EPOCH, VALUE


class NoSnapshotMixin:
    """Excludes the state from Ray Tune's snapshots of its searcher and scheduler, which are never read."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class TuneSearcher(NoSnapshotMixin, Searcher):
    """Suggests the trials of a queue to Ray Tune.

    Args:
        queue: selects the next trial and limits how many run at a time.
        jobs: the jobs by trial, including trials that the queue adds later.
    """

    def __init__(self, queue: TrialQueue, jobs: Mapping[str, Job]) -> None:
        super().__init__()
        self._queue = queue
        self._jobs = jobs

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's configuration; None if none may start now, ``FINISHED`` if no further one will."""
        key = self._queue.next_trial()
        if key is not None:
            return {"trial_id": key, "job": self._jobs[key]}
        return Searcher.FINISHED if self._queue.exhausted else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Ignore the end of a trial: the recorder passes it to the queue once the record is up to date."""

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Accept the limit, which the queue enforces."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Write no snapshot: Ray Tune's snapshots are never read, and a study resumes from ``study.json``."""


class TuneScheduler(NoSnapshotMixin, FIFOScheduler):
    """Stops trials early as the queue decides."""

    def __init__(self, queue: TrialQueue) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._queue = queue

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Pass a trial's metric to the queue and return the queue's decision."""
        if EPOCH not in result:
            return str(TrialScheduler.CONTINUE)
        stop = self._queue.on_result(trial.config["trial_id"], result[EPOCH], result[VALUE])
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)
