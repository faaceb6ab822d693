"""An estimate of the time until a study's last trial ends, from the trials that have ended and the epochs so far."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from mbcl.study.record import StudyRecord


@dataclass(frozen=True)
class Running:
    """A running trial: its setting, the seconds since it started, and the share of its epochs that is done."""

    setting: int
    elapsed: float
    share: float

    @property
    def total(self) -> float | None:
        """The seconds that it takes at the pace so far; None before its first epoch has ended."""
        return self.elapsed / self.share if self.share > 0 else None


def seconds_left(study: StudyRecord, running: Iterable[Running], pending: Iterable[int], slots: int) -> float | None:
    """Return the seconds until the last trial ends; None if nothing known so far tells it.

    A trial takes as long as finished ones of its setting did, or else as all trials that are known of.

    Args:
        study: the record, with the seconds of finished trials.
        running: the running trials.
        pending: the settings of trials that have not started, in their order; -1 for one that is not drawn yet.
        slots: number of trials that run at a time.

    Example:
        >>> study = StudyRecord(name="s", space_digest="", metric="m", mode="max", created="", trials={})
        >>> seconds_left(study, [Running(0, 10.0, 0.5)], [0, 1], slots=1)
        50.0
    """
    running = list(running)
    known = _means(study, running)
    if not known:
        return None
    overall = fmean(known.values())
    ends = [0.0] * max(0, slots - len(running))
    for trial in running:
        total = max(trial.total or 0.0, known.get(trial.setting, overall if trial.total is None else 0.0))
        if total <= trial.elapsed:
            return None  # it takes longer than anything known so far
        ends.append(total - trial.elapsed)
    heapq.heapify(ends)
    last = max(ends, default=0.0)
    for setting in pending:
        end = heapq.heappop(ends) + known.get(setting, overall)
        heapq.heappush(ends, end)
        last = max(last, end)
    return last


def _means(study: StudyRecord, running: Iterable[Running]) -> Mapping[int, float]:
    """Return the mean seconds of a trial by setting: of finished ones, or of those that run."""
    seconds: dict[int, list[float]] = {}
    for record in study.trials.values():
        if record.status == "finished" and record.seconds.get("total"):
            seconds.setdefault(record.setting, []).append(record.seconds["total"])
    found = {setting: fmean(values) for setting, values in seconds.items()}
    for trial in running:
        if trial.total is not None:
            found.setdefault(trial.setting, trial.total)
    return found
