"""Learning curves and stage times of a study, read from the ``metrics.jsonl`` of its trials."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from mbcl.io.store import Store
from mbcl.report.tables import STAGES
from mbcl.study.record import StudyRecord
from mbcl.study.settings import Setting

History = list[dict[str, float]]
"""One mapping for each epoch, with the measured metrics only."""


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


def parse_history(text: str) -> History:
    """Parse a ``metrics.jsonl`` into one row for each epoch, in ascending order.

    A line that a kill cut off is skipped. If an epoch ran twice, as after a restart, its last row counts.
    """
    by_epoch: dict[float, dict[str, float]] = {}
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict) or not _is_number(row.get("epoch")):
            continue
        by_epoch[row["epoch"]] = {key: value for key, value in row.items() if _is_number(value)}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_histories(store: Store, study: StudyRecord) -> dict[int, History]:
    """Read the histories by the ordinals of their trials; a trial that has not begun has none."""
    histories = {}
    for key, trial in study.ordered().items():
        try:
            text = store.read_bytes(f"trials/{key}/metrics.jsonl").decode("utf-8", errors="replace")
        except FileNotFoundError:
            continue
        if history := parse_history(text):
            histories[trial.ordinal] = history
    return histories


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
