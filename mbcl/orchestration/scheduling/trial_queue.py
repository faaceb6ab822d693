"""The course of a study: which trial starts next, which is stopped early, and when there is nothing more. No Ray here.

Seeds are replicates of a setting, so nothing is ever decided by comparing two of them. Where a scheduler stops trials,
the settings race on their first seed alone, all on the same one; a setting that survives is then run to its end with
all others, and one that is stopped is not run with them at all. The baseline takes part but is never stopped: what
others are compared with must be there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from mbcl.study.record import Stopped, StudyRecord


class Stopper(Protocol):
    """A rule of early stopping; see :mod:`.early_stopping`."""

    def observe(self, trial_id: str, epoch: int, value: float) -> bool:
        """Take a value in; whether the trial shall stop here."""


class SettingSource(Protocol):
    """Where further settings come from; see :mod:`.optuna_search`."""

    def propose(self) -> list[str]:
        """The trials of a new setting, which the study now has; empty if there will be none."""

    def tell(self, setting: int) -> None:
        """All trials of a setting have ended."""


@dataclass(frozen=True)
class EarlyStopping:
    """How settings race.

    Args:
        stopper: who decides.
        by: its name.
        epochs: how many epochs a trial has.
        end: after how many of so many epochs a trial ends at the latest.
        protected: settings that are never stopped.
    """

    stopper: Stopper
    by: str
    epochs: Callable[[str], int]
    end: Callable[[int], int] = lambda epochs: epochs
    protected: frozenset[int] = field(default_factory=frozenset)


class TrialQueue:
    """Hands out the trials of a study.

    Args:
        study: its record; whoever runs the trials keeps their status there.
        todo: the trials to run, in order.
        concurrency: how many run at a time.
        race: how settings race; None if all run to their end.
        source: proposes settings when those at hand have started; None if all are known.
    """

    def __init__(
        self,
        study: StudyRecord,
        todo: Iterable[str],
        *,
        concurrency: int,
        race: EarlyStopping | None = None,
        source: SettingSource | None = None,
    ) -> None:
        self._study = study
        self._waiting = dict.fromkeys(todo)
        self._running: set[str] = set()
        self._stopped: dict[str, Stopped] = {}
        self._concurrency = concurrency
        self._race = race
        self._source = source
        self._drained = source is None
        self._first: dict[int, str] = {}
        for key, record in sorted(study.trials.items(), key=lambda item: item[1].ordinal):
            self._first.setdefault(record.setting, key)

    @property
    def early_stopping(self) -> bool:
        """Whether trials may be stopped early."""
        return self._race is not None

    @property
    def exhausted(self) -> bool:
        """Whether no trial will start any more."""
        return not self._waiting and self._drained

    def next_trial(self) -> str | None:
        """A trial to start now; None if there is none now."""
        if len(self._running) >= self._concurrency:
            return None
        while True:
            for key in list(self._waiting):
                if self._waits_for_race(key):
                    continue
                del self._waiting[key]
                if self._lost_race(key):
                    self._end_setting(self._study.trials[key].setting)
                    continue
                self._running.add(key)
                return key
            if not self._more():
                return None

    def _more(self) -> bool:
        """Ask for another setting; whether there is one."""
        keys = [] if self._drained or self._source is None else self._source.propose()
        if not keys:
            self._drained = True
            return False
        self._first[self._study.trials[keys[0]].setting] = keys[0]
        self._waiting.update(dict.fromkeys(keys))
        return True

    def _first_of(self, key: str) -> str:
        return self._first[self._study.trials[key].setting]

    def _waits_for_race(self, key: str) -> bool:
        first = self._first_of(key)
        return self.early_stopping and key != first and (first in self._waiting or first in self._running)

    def _lost_race(self, key: str) -> bool:
        """Whether the trial's setting was stopped on its first seed; the trial is then stopped before it begins."""
        first, record = self._study.trials[self._first_of(key)], self._study.trials[key]
        if first is record or first.status != "stopped" or first.stopped is None:
            return False
        record.status, record.error = "stopped", ""
        record.stopped = first.stopped.model_copy(update={"epoch": 0, "value": None, "first_seed": first.seed})
        return True

    def on_result(self, key: str, epoch: int, value: float) -> bool:
        """Take in what a running trial measured after so many epochs; whether it shall stop here.

        A row that was taken in before decides nothing: a driver that was started again may tell it once more.
        """
        race, record = self._race, self._study.trials[key]
        if race is None or epoch <= record.judged:
            return False
        if key in self._stopped:
            return True
        epochs = race.epochs(key)
        stop = epoch >= race.end(epochs) < epochs
        if key == self._first_of(key):
            lost = race.stopper.observe(key, epoch, value)
            # A first seed that failed and runs again: its setting is in the study's means by then.
            spared = record.setting in race.protected or self._finished(record.setting)
            stop = stop or (lost and epoch < epochs and not spared)
        if stop:
            self._stopped[key] = Stopped(
                by=race.by, epoch=epoch, of=epochs, metric=self._study.metric, value=value, first_seed=record.seed
            )
        else:
            record.judged = epoch
        return stop

    def _finished(self, setting: int) -> bool:
        """Whether any trial of a setting has finished."""
        return any(r.status == "finished" for r in self._study.trials.values() if r.setting == setting)

    def where_stopped(self, key: str) -> Stopped | None:
        """Where a trial was stopped; None if it was not."""
        return self._stopped.get(key)

    def on_trial_end(self, key: str) -> None:
        """A trial has ended; its record says how."""
        self._running.discard(key)
        setting = self._study.trials[key].setting
        # At once, so that the record that is written now says what became of them.
        for other in [other for other in self._waiting if self._study.trials[other].setting == setting]:
            if self._lost_race(other):
                del self._waiting[other]
        self._end_setting(setting)

    def _end_setting(self, setting: int) -> None:
        left = (self._study.trials[key].setting == setting for key in (*self._waiting, *self._running))
        if self._source is not None and not any(left):
            self._source.tell(setting)
