"""Learning curves and stage times of a study."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from mbcl.study.histories import History
from mbcl.study.settings import Setting
from mbcl.study.trial_table import STAGES

AXES = {
    "epochs": "epoch",
    "images": "images trained on",
    "passes": "forward passes",
    "seconds": "seconds of steps, embedding and waiting for plans",
}
"""What curves are drawn against, with the text of the axis: different measures of the work until an epoch's end."""
_TRAINING_STAGES = ("train", "embed", "wait")


@dataclass(frozen=True)
class MetricCurve:
    """A metric over the epochs: mean, minimum and maximum over the seeds.

    ``work`` has, by the name of an axis, the mean work of the seeds until the end of each epoch. An axis that the rows
    do not have is left out, as in those of earlier versions and of synthetic studies.
    """

    epochs: list[float]
    work: dict[str, list[float]]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int

    def thinned(self, number: int) -> MetricCurve:
        """Return the curve with about so many of its points, its first and last among them; itself if it has fewer."""
        stride = math.ceil((len(self.epochs) - 1) / max(1, number - 1))
        if stride <= 1:
            return self

        def some(values: list[float]) -> list[float]:
            return [*values[:-1:stride], values[-1]]

        work = {axis: some(values) for axis, values in self.work.items()}
        return MetricCurve(some(self.epochs), work, some(self.mean), some(self.low), some(self.high), self.seeds)


def curve(setting: Setting, histories: dict[int, History], metric: str) -> MetricCurve | None:
    """Compute a setting's curve over its finished seeds, or over all started ones if none has finished."""
    chosen = [histories[t.ordinal] for t in setting.finished or setting.trials if t.ordinal in histories]
    points = [{row["epoch"]: row[metric] for row in history if metric in row} for history in chosen]
    epochs = sorted({epoch for seed in points for epoch in seed})
    if not epochs:
        return None
    values = [[seed[epoch] for seed in points if epoch in seed] for epoch in epochs]
    mean, low, high = list(map(statistics.fmean, values)), list(map(min, values)), list(map(max, values))
    done = [_work(history) for history in chosen]
    work = {
        axis: [
            statistics.fmean(each[axis][epoch] for each, seed in zip(done, points, strict=True) if epoch in seed)
            for epoch in epochs
        ]
        for axis in AXES
        if all(axis in each and seed.keys() <= each[axis].keys() for each, seed in zip(done, points, strict=True))
    }
    return MetricCurve(epochs, work, mean, low, high, seeds=sum(map(bool, points)))


def _work(history: History) -> dict[str, dict[float, float]]:
    """Return the work of a trial until the end of each epoch, by axis and epoch."""
    work: dict[str, dict[float, float]] = {axis: {} for axis in AXES}
    seconds = 0.0
    for row in history:
        epoch = work["epochs"][row["epoch"]] = row["epoch"]
        for axis in ("images", "passes"):
            if f"work/{axis}" in row:
                work[axis][epoch] = row[f"work/{axis}"]
        if "time/train" in row:
            seconds += sum(row.get(f"time/{stage}", 0.0) for stage in _TRAINING_STAGES)
            work["seconds"][epoch] = seconds
    return work


def stage_seconds(setting: Setting, histories: dict[int, History]) -> dict[str, float]:
    """Sum ``time/STAGE`` over the epochs of each trial and average the sums over the finished seeds.

    For a trial without a history, the study record's seconds of the same stages count.
    """
    trials = []
    for trial in setting.finished:
        seconds: dict[str, list[float]] = {}
        for stage, row in product(STAGES, histories.get(trial.ordinal, [])):
            if f"time/{stage}" in row:
                seconds.setdefault(stage, []).append(row[f"time/{stage}"])
        sums = {stage: math.fsum(values) for stage, values in seconds.items()}
        trials.append(sums or {stage: value for stage, value in trial.seconds.items() if stage in STAGES})
    return _means(trials)


def wall_seconds(setting: Setting) -> dict[str, float]:
    """Average the study record's seconds of each stage of a trial, from start to end, over the finished seeds."""
    return _means([trial.seconds for trial in setting.finished])


def _means(trials: Sequence[dict[str, float]]) -> dict[str, float]:
    finite = [{stage: value for stage, value in seconds.items() if math.isfinite(value)} for seconds in trials]
    stages = dict.fromkeys(stage for seconds in finite for stage in seconds)
    return {stage: statistics.fmean(seconds[stage] for seconds in finite if stage in seconds) for stage in stages}
