"""Learning curves and stage times of a study, read from the ``metrics.jsonl`` of its trials."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mbcl.io.store import Store
from mbcl.report.tables import STAGES
from mbcl.study.record import StudyRecord
from mbcl.study.settings import Setting, ordered_trials

History = list[dict[str, float]]
"""One mapping for each epoch, with the measured metrics only."""


@dataclass(frozen=True)
class MetricCurve:
    """A metric over the epochs: mean, minimum and maximum over the seeds."""

    label: str
    epochs: list[float]
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
    for key, trial in ordered_trials(study).items():
        try:
            text = store.read_bytes(f"trials/{key}/metrics.jsonl").decode("utf-8", errors="replace")
        except FileNotFoundError:
            continue
        if history := parse_history(text):
            histories[trial.ordinal] = history
    return histories


def curve(setting: Setting, histories: dict[int, History], metric: str) -> MetricCurve | None:
    """Compute a setting's curve over its finished seeds, or over all started ones if none has finished."""
    finished = [trial for trial in setting.trials if trial.status == "finished"]
    chosen = [histories[trial.ordinal] for trial in finished or setting.trials if trial.ordinal in histories]
    values: dict[float, list[float]] = {}
    measured = 0
    for history in chosen:
        points = {row["epoch"]: row[metric] for row in history if metric in row}
        measured += bool(points)
        for epoch, value in points.items():
            values.setdefault(epoch, []).append(value)
    if not values:
        return None
    epochs = sorted(values)
    return MetricCurve(
        label=setting.label,
        epochs=epochs,
        mean=[statistics.fmean(values[epoch]) for epoch in epochs],
        low=[min(values[epoch]) for epoch in epochs],
        high=[max(values[epoch]) for epoch in epochs],
        seeds=measured,
    )


def stage_seconds(setting: Setting, histories: dict[int, History]) -> dict[str, float]:
    """Sum ``time/STAGE`` over the epochs of each trial and average the sums over the finished seeds.

    For a trial without a history, the study record's seconds of the same stages count.
    """
    trials = []
    for trial in setting.trials:
        history = histories.get(trial.ordinal, [])
        names = [f"time/{stage}" for stage in STAGES]
        sums = {name[5:]: math.fsum(row.get(name, 0.0) for row in history) for name in names if _has(history, name)}
        if trial.status == "finished":
            trials.append(sums or {stage: value for stage, value in trial.seconds.items() if stage in STAGES})
    return _means(trials)


def wall_seconds(setting: Setting) -> dict[str, float]:
    """Average the study record's seconds of each stage of a trial, from start to end, over the finished seeds."""
    return _means([trial.seconds for trial in setting.trials if trial.status == "finished"])


def _has(history: History, name: str) -> bool:
    return any(name in row for row in history)


def _means(trials: Sequence[dict[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for seconds in trials:
        for stage, value in seconds.items():
            if math.isfinite(value):
                values.setdefault(stage, []).append(value)
    return {stage: statistics.fmean(durations) for stage, durations in values.items()}
