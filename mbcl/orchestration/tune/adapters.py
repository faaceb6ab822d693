"""Ray Tune's side of a study's course: a searcher that hands out its trials, a scheduler that stops them."""

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
    """Nothing to pickle: the snapshots that Ray Tune makes of its searcher and scheduler are never read."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class TuneSearcher(NoSnapshotMixin, Searcher):
    """Hands the trials of a course to Ray Tune, one whenever it asks.

    Args:
        course: decides which comes next, and how many run at a time.
        jobs: the trials by name; those that the course adds later are found here, too.
    """

    def __init__(self, course: TrialQueue, jobs: Mapping[str, Job]) -> None:
        super().__init__()
        self._course = course
        self._jobs = jobs

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration; None if none may start now, ``FINISHED`` if none will any more."""
        key = self._course.next_trial()
        if key is not None:
            return {"trial_id": key, "job": self._jobs[key]}
        return Searcher.FINISHED if self._course.exhausted else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the course learns it with the record."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Nothing to set: what counts stands in the study."""
        return True

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """The course keeps the limit."""
        return True

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: Ray Tune's own snapshots are never read."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Ray Tune's own snapshots are never read."""

    def restore(self, checkpoint_path: str) -> None:
        """Never: ``study.json`` is what is restored."""
        raise NotImplementedError


class TuneScheduler(NoSnapshotMixin, FIFOScheduler):
    """Stops a trial where its course says so.

    Args:
        course: decides.
    """

    def __init__(self, course: TrialQueue) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._course = course

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Ask the course about what a trial has measured."""
        if EPOCH not in result:
            return str(TrialScheduler.CONTINUE)
        stop = self._course.on_result(trial.config["trial_id"], result[EPOCH], result[VALUE])
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)
