"""Trials through Ray Tune. The sweep's process is the only writer of ``study.json``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import ray
import ray.tune
from ray.tune.experiment import Trial

from mbcl.io.store import Store
from mbcl.orchestration import signals
from mbcl.orchestration.cluster.failure_policy import root_cause
from mbcl.orchestration.cluster.orphaned_groups import num_waiting_groups, remove_orphaned_groups
from mbcl.orchestration.cluster.wait_for_capacity import wait_any
from mbcl.orchestration.scheduling.trial_queue import TrialQueue
from mbcl.orchestration.trial.entrypoint import RESULT, run_trial
from mbcl.orchestration.trial.job import Job, Metrics, TrialResult, describe_error
from mbcl.orchestration.trial.pretraining import evaluation_resources, submit_evaluation
from mbcl.orchestration.trial.trial_runners import runner_of
from mbcl.orchestration.tune.adapters import TuneScheduler, TuneSearcher
from mbcl.study.record import StudyRecord, write_study

DRIVER_RESTARTS = 2
"""How often a trial whose driver process died is started again."""
POLL_SECONDS = 1.0
"""How often the progress of running trials is looked up."""
WAITING_SECONDS = 60.0
"""How long workers may wait for room before a person is told."""
NOTIFY_SECONDS = 600.0
"""How often it is told again."""


class TrialObserver(Protocol):
    """Is told how trials go."""

    def on_trial_start(self, trial_id: str) -> None:
        """A trial begins."""

    def poll(self, trial_ids: Sequence[str]) -> None:
        """These trials are running; about once a second."""

    def on_waiting(self, number: int) -> None:
        """So many trials have waited for room for a while."""

    def on_trial_end(self, trial_id: str) -> None:
        """A trial has ended; its record says how."""

    def on_evaluation_end(self, trial_id: str, error: str) -> None:
        """A trial was evaluated again; why not, if there is an error."""


class _Recorder(ray.tune.Callback):
    """Writes ``study.json`` when a trial starts or ends, and tells the watcher."""

    def __init__(self, store: Store, study: StudyRecord, course: TrialQueue, watcher: TrialObserver) -> None:
        self._store = store
        self._study = study
        self._course = course
        self._watcher = watcher
        self._running: dict[str, float] = {}
        self._looked = time.monotonic()
        self._told = float("-inf")
        self._failed: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its callbacks into snapshots of its own, which nobody reads."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Recorder:
        return self

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """For a record that changes: an interrupt waits for its end, and a failure for the end of Ray Tune's step.

        Raised at once, Tune would take it for the trial's own and run a finished trial again.
        """
        with signals.defer():
            try:
                yield
            except Exception as error:
                self._failed = self._failed or error

    def raise_failure(self) -> None:
        """Raise what went wrong with a record.

        Raises:
            Exception: storage that does not take it, a results folder that another sweep has taken over.
        """
        if self._failed is not None:
            raise self._failed

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with self._whole():
            key = trial.config["trial_id"]
            record = self._study.trials[key]
            record.status, record.error = "running", ""
            record.attempts += 1
            self._running.setdefault(key, time.monotonic())
            write_study(self._store, self._study)
            self._watcher.on_trial_start(key)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with self._whole():
            remove_orphaned_groups()
            key = trial.config["trial_id"]
            found = (trial.last_result or {}).get(RESULT)
            if found is None and self._course.where_stopped(key):
                self._stop(key)
            else:
                self._end(
                    key, TrialResult(**found) if found else TrialResult("the trial's driver ended without an answer")
                )

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with self._whole():
            remove_orphaned_groups()
            if trial.status == Trial.ERROR:
                self._end(trial.config["trial_id"], TrialResult("the process of the trial's driver was lost"))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self.raise_failure()
        signals.raise_pending()
        if time.monotonic() - self._looked > POLL_SECONDS:
            self._looked = time.monotonic()
            remove_orphaned_groups()
            self._watcher.poll(list(self._running))
            if time.monotonic() - self._told > NOTIFY_SECONDS and (number := num_waiting_groups(WAITING_SECONDS)):
                self._told = time.monotonic()
                self._watcher.on_waiting(number)

    def _end(self, trial_id: str, answer: TrialResult) -> None:
        """Record a trial's end."""
        record = self._study.trials[trial_id]
        record.status = "failed" if answer.error else "finished"
        record.error = answer.error
        record.seconds = {key: round(value, 3) for key, value in answer.seconds.items()}
        if not answer.error:
            record.metrics = answer.metrics
        self._ended(trial_id)

    def _stop(self, trial_id: str) -> None:
        """Record that a trial was stopped. What it measured last is no final metric."""
        record = self._study.trials[trial_id]
        record.status, record.error = "stopped", ""
        record.stopped = self._course.where_stopped(trial_id)
        record.seconds = {"total": round(time.monotonic() - self._running[trial_id], 3)}
        self._ended(trial_id)

    def _ended(self, trial_id: str) -> None:
        self._running.pop(trial_id, None)
        self._course.on_trial_end(trial_id)
        write_study(self._store, self._study)
        self._watcher.on_trial_end(trial_id)


def run_trials(
    jobs: Mapping[str, Job],
    *,
    store: Store,
    scratch: str,
    study: StudyRecord,
    concurrency: int,
    watcher: TrialObserver,
    course: TrialQueue | None = None,
    driver: dict[str, float] | None = None,
) -> None:
    """Run trials through Ray Tune until each has ended.

    Args:
        jobs: the trials to run, in order, by name; those that the course adds later are found here, too.
        store: the results folder.
        scratch: where Ray Tune may keep files of its own.
        study: the record, changed in place and written after every trial.
        concurrency: how many run at a time.
        watcher: is told how they go.
        course: decides which trial comes next; by default all of ``jobs`` in order.
        driver: what Ray reserves for a trial's driver; by default what the first of ``jobs`` needs.
    """
    course = course or TrialQueue(study, jobs, concurrency=concurrency)
    if driver is None:
        first = next(iter(jobs.values()))
        driver = runner_of(type(first.experiment)).driver_resources(first.need, first.placement)
    trainable = ray.tune.with_resources(
        run_trial,
        ray.tune.PlacementGroupFactory([driver]),
    )
    recorder = _Recorder(store, study, course, watcher)
    tuner = ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            search_alg=TuneSearcher(course, jobs),
            scheduler=TuneScheduler(course),
            num_samples=-1,
            max_concurrent_trials=concurrency,
            # A driver process imports for 5 s; the next trial takes over the last one's. A trial that is stopped early
            # takes its driver along.
            reuse_actors=not course.early_stopping,
            trial_name_creator=lambda trial: trial.config["trial_id"],
            trial_dirname_creator=lambda trial: trial.config["trial_id"],
        ),
        run_config=ray.tune.RunConfig(
            name=f"tune-{uuid.uuid4().hex[:8]}",
            storage_path=scratch,
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=DRIVER_RESTARTS),
            callbacks=[recorder],
        ),
    )
    tuner.fit()
    recorder.raise_failure()


def run_evaluations(
    jobs: Mapping[str, Job], *, concurrency: int, watcher: TrialObserver
) -> tuple[dict[str, Metrics], dict[str, str]]:
    """Evaluate finished trials again, so many at a time. Nothing is recorded.

    Args:
        jobs: the trials, with the evaluation to make.
        concurrency: how many run at a time.
        watcher: is told how they go.

    Returns:
        By trial, what was measured; and why evaluations failed.
    """
    measured: dict[str, Metrics] = {}
    failures: dict[str, str] = {}
    todo = list(jobs)
    running: dict[ray.ObjectRef[dict[str, float]], str] = {}
    while todo or running:
        while todo and len(running) < concurrency:
            key = todo.pop(0)
            running[submit_evaluation(jobs[key], again=True)] = key
            watcher.on_trial_start(key)
        done = wait_any(list(running), evaluation_resources(jobs[next(iter(running.values()))]))
        key = running.pop(done)
        try:
            metrics: dict[str, float] = ray.get(done)
            measured[key] = {**metrics}
        except Exception as error:  # one trial's failure leaves the others alone
            failures[key] = describe_error(root_cause(error))
        watcher.on_evaluation_end(key, failures.get(key, ""))
    return measured, failures
