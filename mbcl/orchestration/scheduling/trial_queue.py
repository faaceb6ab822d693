"""The queue of a study's trials: which one starts next, which one stops early, and when none is left. Imports no Ray.

Seeds are replicates of a setting, so two seeds are never compared with each other. Early stopping compares settings on
their first seed only, which is the same for all. A setting that survives then runs the other seeds to their end; a
setting that is stopped does not run them. The baseline takes part but is never stopped by the rule, because the report
compares the other settings with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from mbcl.study.record import Stopped, StudyRecord


class Stopper(Protocol):
    """A rule of early stopping; see :mod:`.early_stopping`."""

    def observe(self, trial_id: str, epoch: int, value: float) -> bool:
        """Record a value; return whether the trial should stop."""


class SettingSource(Protocol):
    """A source of further settings; see :mod:`.optuna_search` and :mod:`.confirmation_source`."""

    @property
    def left(self) -> int:
        """Number of trials that it may still add."""

    def propose(self) -> list[str]:
        """Add the trials of a new setting to the study and return their names; empty if there is none now.

        There may be one after the end of a running trial; none will follow if no trial runs.
        """

    def tell(self, setting: int) -> None:
        """Take the results of a setting, all trials of which have ended."""


@dataclass(frozen=True)
class EarlyStopping:
    """The early stopping of a study.

    Args:
        stopper: the rule.
        scheduler_name: name of the scheduler.
        num_epochs: returns the number of epochs of a trial, by the trial's name.
        end_epoch: returns the last epoch that a trial of that many epochs runs.
        protected_settings: settings that the rule never stops.
    """

    stopper: Stopper
    scheduler_name: str
    num_epochs: Callable[[str], int]
    end_epoch: Callable[[int], int] = lambda num_epochs: num_epochs
    protected_settings: frozenset[int] = field(default_factory=frozenset)


class TrialQueue:
    """Hands out the trials of a study.

    Args:
        study: the study's record. The caller, which runs the trials, updates their status there.
        todo: the trials to run, in order.
        concurrency: number of trials that run at a time.
        rule: early stopping; None if all trials run to their end.
        source: proposes settings when all trials so far have started; None if all settings are known from the start.
    """

    def __init__(
        self,
        study: StudyRecord,
        todo: Iterable[str],
        *,
        concurrency: int,
        rule: EarlyStopping | None = None,
        source: SettingSource | None = None,
    ) -> None:
        self._study = study
        self._waiting = dict.fromkeys(todo)
        self._running: set[str] = set()
        self._stopped: dict[str, Stopped] = {}
        self._concurrency = concurrency
        self._rule = rule
        self._source = source
        self._drained = source is None
        self._first_trials: dict[int, str] = {}
        for key, record in sorted(study.trials.items(), key=lambda item: item[1].ordinal):
            self._first_trials.setdefault(record.setting, key)

    @property
    def early_stopping(self) -> bool:
        """Whether trials may be stopped early."""
        return self._rule is not None

    @property
    def exhausted(self) -> bool:
        """Whether no further trial will start."""
        return not self._waiting and self._drained

    def next_trial(self) -> str | None:
        """Return a trial to start now; None if no trial may start now."""
        if len(self._running) >= self._concurrency:
            return None
        while True:
            for key in list(self._waiting):
                if self._waits_for_first_seed(key):
                    continue
                del self._waiting[key]
                if self._stop_with_first_seed(key):
                    self._end_setting(self._study.trials[key].setting)
                    continue
                self._running.add(key)
                return key
            if not self._propose():
                return None

    def _propose(self) -> bool:
        """Ask the source for another setting and queue its trials; return whether there is one."""
        keys = [] if self._drained or self._source is None else self._source.propose()
        if not keys:
            self._drained = self._source is None or not self._source.left or not self._running
            return False
        self._first_trials[self._study.trials[keys[0]].setting] = keys[0]
        self._waiting.update(dict.fromkeys(keys))
        return True

    def _first_trial_of(self, key: str) -> str:
        return self._first_trials[self._study.trials[key].setting]

    def _waits_for_first_seed(self, key: str) -> bool:
        first = self._first_trial_of(key)
        return self.early_stopping and key != first and (first in self._waiting or first in self._running)

    def _stop_with_first_seed(self, key: str) -> bool:
        """Mark a trial as stopped if its setting was stopped on its first seed; return whether it was."""
        first, record = self._study.trials[self._first_trial_of(key)], self._study.trials[key]
        if first is record or first.status != "stopped" or first.stopped is None:
            return False
        record.status, record.error = "stopped", ""
        record.stopped = first.stopped.model_copy(update={"epoch": 0, "value": None, "first_seed": first.seed})
        return True

    def on_result(self, key: str, epoch: int, value: float) -> bool:
        """Take the metric of a running trial after an epoch; return whether the trial should stop.

        Idempotent: a driver that restarts may report a row again, and a row that was judged before decides nothing.
        """
        rule, record = self._rule, self._study.trials[key]
        if rule is None or epoch <= record.judged:
            return False
        if key in self._stopped:
            return True
        num_epochs = rule.num_epochs(key)
        stop = epoch >= rule.end_epoch(num_epochs) < num_epochs
        if key == self._first_trial_of(key):
            worse = rule.stopper.observe(key, epoch, value)
            # A first seed that failed may run again after other seeds have finished, which the study's means contain.
            exempt = record.setting in rule.protected_settings or self._finished(record.setting)
            stop = stop or (worse and epoch < num_epochs and not exempt)
        if stop:
            self._stopped[key] = Stopped(
                by=rule.scheduler_name,
                epoch=epoch,
                of=num_epochs,
                metric=self._study.metric,
                value=value,
                first_seed=record.seed,
            )
        else:
            record.judged = epoch
        return stop

    def _finished(self, setting: int) -> bool:
        """Return whether any trial of a setting has finished."""
        return any(r.status == "finished" for r in self._study.trials.values() if r.setting == setting)

    def where_stopped(self, key: str) -> Stopped | None:
        """Return where a trial of this queue was stopped; None if it was not."""
        return self._stopped.get(key)

    def on_trial_end(self, key: str) -> None:
        """Take the end of a trial, whose record has the new status."""
        self._running.discard(key)
        setting = self._study.trials[key].setting
        # Now rather than when their turn comes: the caller writes the record next, and it must have their status.
        for other in [other for other in self._waiting if self._study.trials[other].setting == setting]:
            if self._stop_with_first_seed(other):
                del self._waiting[other]
        self._end_setting(setting)

    def _end_setting(self, setting: int) -> None:
        unfinished = (self._study.trials[key].setting == setting for key in (*self._waiting, *self._running))
        if self._source is not None and not any(unfinished):
            self._source.tell(setting)
