"""Running trials with Ray Tune. The sweep's process is the only writer of ``study.json``."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.tune
from ray.tune.experiment import Trial

from mbcl.io.store import Store, write_text
from mbcl.orchestration import signals
from mbcl.orchestration.cluster.failure_policy import root_cause
from mbcl.orchestration.cluster.orphaned_groups import (
    num_waiting_groups,
    remove_orphaned_groups,
    remove_own_groups,
)
from mbcl.orchestration.cluster.wait_for_capacity import wait_any
from mbcl.orchestration.results_folder.layout import trial_folder
from mbcl.orchestration.scheduling.trial_queue import TrialQueue
from mbcl.orchestration.trial.entrypoint import RESULT, run_trial
from mbcl.orchestration.trial.failures import describe_error, describe_text, full_text
from mbcl.orchestration.trial.job import Job, Metrics, TrialResult
from mbcl.orchestration.trial.pretraining import evaluation_resources, submit_evaluation
from mbcl.orchestration.trial.trial_runners import Driver, runner_of
from mbcl.orchestration.tune.adapters import TuneScheduler, TuneSearcher
from mbcl.study.record import ERROR_FILE, StudyRecord, write_study

DRIVER_RESTARTS = 10
"""How often a trial is restarted after its driver process died; the count is over all its epochs."""
POLL_SECONDS = 1.0
"""Polling interval for orphaned groups and the progress of running trials."""
WAITING_SECONDS = 60.0
"""How long workers wait for resources before the observer is notified."""
NOTIFY_SECONDS = 600.0
"""Interval between notifications."""


class TrialObserver(Protocol):
    """A listener for the progress of trials."""

    def on_trial_start(self, trial_id: str) -> None:
        """Handle the start of a trial or of its re-evaluation."""

    def poll(self, trial_ids: Sequence[str]) -> None:
        """Handle the tick of about a second while these trials run."""

    def on_waiting(self, number: int) -> None:
        """Handle that this number of trials has waited for resources for :data:`WAITING_SECONDS`."""

    def on_trial_end(self, trial_id: str) -> None:
        """Handle the end of a trial, whose record has the new status."""

    def on_evaluation_end(self, trial_id: str, error: str) -> None:
        """Handle the end of a re-evaluation; ``error`` is empty if it succeeded."""


class _Recorder(ray.tune.Callback):
    """Writes ``study.json`` when a trial starts or ends, and notifies the queue and the observer."""

    def __init__(self, store: Store, study: StudyRecord, queue: TrialQueue, observer: TrialObserver) -> None:
        self._store = store
        self._study = study
        self._queue = queue
        self._observer = observer
        self._started_at: dict[str, float] = {}  # of running trials
        self._last_poll_at = time.monotonic()
        self._last_notified_at = float("-inf")
        self._failure: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: Ray Tune pickles its callbacks into snapshots, which are never read."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Recorder:
        return self

    @contextmanager
    def _update(self) -> Iterator[None]:
        """Change a record: defer interrupts to the end of the block, and failures to the end of Ray Tune's step.

        Ray Tune would take an exception from a callback for a failure of the trial, and run a finished trial again.
        """
        with signals.defer():
            try:
                yield
            except Exception as error:
                self._failure = self._failure or error

    def raise_failure(self) -> None:
        """Raise the first failure of updating a record, if there is one.

        Raises:
            Exception: if the storage rejects the record, or another sweep has taken over the results folder.
        """
        if self._failure is not None:
            raise self._failure

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with self._update():
            key = trial.config["trial_id"]
            record = self._study.trials[key]
            record.status, record.error = "running", ""
            record.attempts += 1
            self._started_at.setdefault(key, time.monotonic())
            write_study(self._store, self._study)
            self._observer.on_trial_start(key)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with self._update():
            remove_orphaned_groups()
            key = trial.config["trial_id"]
            result = (trial.last_result or {}).get(RESULT)
            if result is None and self._queue.where_stopped(key):
                self._record_stop(key)
            else:
                self._record_result(
                    key, TrialResult(**result) if result else TrialResult("the trial's driver ended without an answer")
                )

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with self._update():
            remove_orphaned_groups()
            if trial.status == Trial.ERROR:
                self._record_result(trial.config["trial_id"], _loss_of_driver(trial))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self.raise_failure()
        signals.raise_pending()
        if time.monotonic() - self._last_poll_at > POLL_SECONDS:
            self._last_poll_at = time.monotonic()
            remove_orphaned_groups()
            self._observer.poll(list(self._started_at))
            notify = time.monotonic() - self._last_notified_at > NOTIFY_SECONDS
            if notify and (number := num_waiting_groups(WAITING_SECONDS)):
                self._last_notified_at = time.monotonic()
                self._observer.on_waiting(number)

    def _record_result(self, trial_id: str, result: TrialResult) -> None:
        """Record the result of a trial."""
        record = self._study.trials[trial_id]
        record.status = "failed" if result.error else "finished"
        record.error, record.diverged = result.error, result.diverged
        record.seconds = {key: round(value, 3) for key, value in result.seconds.items()}
        if not result.error:
            record.metrics = result.metrics
        _write_log(self._store, trial_id, result.error, result.log)
        self._finish(trial_id)

    def _record_stop(self, trial_id: str) -> None:
        """Record that a trial was stopped early; its last row does not become its final metrics."""
        record = self._study.trials[trial_id]
        record.status, record.error = "stopped", ""
        record.stopped = self._queue.where_stopped(trial_id)
        record.seconds = {"total": round(time.monotonic() - self._started_at[trial_id], 3)}
        self._finish(trial_id)

    def _finish(self, trial_id: str) -> None:
        self._started_at.pop(trial_id, None)
        self._queue.on_trial_end(trial_id)  # before writing: it may mark further trials as stopped
        write_study(self._store, self._study)
        self._observer.on_trial_end(trial_id)


def _write_log(store: Store, trial_id: str, error: str, text: str) -> None:
    """Write a failure into the trial's folder, or remove that of an earlier attempt. A full disk is passed over."""
    name = f"{trial_folder(trial_id)}/{ERROR_FILE}"
    with suppress(OSError):
        if error:
            write_text(store, name, f"{error}\n\n{text}")
        else:
            store.delete(name)


def _loss_of_driver(trial: Trial) -> TrialResult:
    """Return the result of a trial whose driver was lost too often; Ray Tune wrote all its losses into a file."""
    file = Path(trial.error_file) if trial.error_file else None
    text = file.read_text(errors="replace") if file and file.is_file() else ""
    *_, last = re.split(r"^Failure # .*$", text, flags=re.MULTILINE)
    reason = describe_text(last)
    return TrialResult(f"the process of the trial's driver was lost{f': {reason}' if reason else ''}", text)


def run_trials(
    jobs: Mapping[str, Job],
    *,
    store: Store,
    scratch: str,
    study: StudyRecord,
    concurrency: int,
    observer: TrialObserver,
    queue: TrialQueue | None = None,
    driver: Driver | None = None,
) -> None:
    """Run trials with Ray Tune until each has ended.

    Args:
        jobs: the jobs by trial, in order, including trials that the queue adds later.
        store: the results folder.
        scratch: a folder for Ray Tune's own files.
        study: the record, changed in place and written after every trial.
        concurrency: maximum number of trials that run at a time.
        observer: is notified of progress.
        queue: selects the next trial; by default all of ``jobs`` in order.
        driver: the driver of every trial; by default that of the first of ``jobs``.
    """
    queue = queue or TrialQueue(study, jobs, concurrency=concurrency)
    if driver is None:
        first = next(iter(jobs.values()))
        runner = runner_of(type(first.experiment))
        driver = runner.driver(first.resources, first.placement, joined=first.joined)
    trainable = ray.tune.with_resources(
        run_trial,
        ray.tune.PlacementGroupFactory([driver.resources]),
    )
    recorder = _Recorder(store, study, queue, observer)
    tuner = ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            search_alg=TuneSearcher(queue, jobs),
            scheduler=TuneScheduler(queue),
            num_samples=-1,
            max_concurrent_trials=concurrency,
            # Imports of a driver process take 5 s, so the next trial reuses the last one's process. A driver that waits
            # for workers while Ray Tune stops its trial cannot be reused: Ray Tune would wait for its thread in vain.
            reuse_actors=driver.trains or not queue.early_stopping,
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
    try:
        tuner.fit()
        recorder.raise_failure()
    except BaseException as error:
        if not isinstance(error, ray.exceptions.RayError | ray.tune.TuneError):  # Ray itself may be lost
            remove_own_groups()  # an interrupt leaves drivers, which would train on
        raise


def run_evaluations(
    jobs: Mapping[str, Job], *, store: Store, concurrency: int, observer: TrialObserver
) -> tuple[dict[str, Metrics], dict[str, str]]:
    """Evaluate finished trials again. Nothing is recorded but the logs of failures.

    Args:
        jobs: the jobs by trial, with the evaluation to run.
        store: the results folder.
        concurrency: maximum number of evaluations that run at a time.
        observer: is notified of progress.

    Returns:
        By trial, the metrics; and by trial, the errors of failed evaluations.
    """
    measured: dict[str, Metrics] = {}
    failures: dict[str, str] = {}
    todo = list(jobs)
    running: dict[ray.ObjectRef[dict[str, float]], str] = {}
    while todo or running:
        while todo and len(running) < concurrency:
            key = todo.pop(0)
            running[submit_evaluation(jobs[key], again=True)] = key
            observer.on_trial_start(key)
        done = wait_any(list(running), evaluation_resources(jobs[next(iter(running.values()))]))
        key = running.pop(done)
        try:
            metrics: dict[str, float] = ray.get(done)
            measured[key] = {**metrics}
        except Exception as error:  # a failed evaluation must not end the others
            failures[key] = describe_error(root_cause(error))
            _write_log(store, key, failures[key], full_text(error))
        observer.on_evaluation_end(key, failures.get(key, ""))
    return measured, failures
