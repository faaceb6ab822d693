"""What the trials of a study measured epoch by epoch, read from their ``metrics.jsonl``."""

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
"""One mapping an epoch, holding only what was measured."""


@dataclass(frozen=True)
class MetricCurve:
    """A metric over the epochs: mean, smallest and largest over the seeds."""

    label: str
    epochs: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int


def parse_history(text: str) -> History:
    """The lines of a ``metrics.jsonl``; a line cut off by a kill is skipped, of an epoch run twice the last counts."""
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
    """The histories by the ordinals of their trials; a trial that has not begun has none."""
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
    """One setting's curve over its finished seeds, or over whatever has begun if none is finished."""
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
    """Where the epochs of a trial spend their time: mean over the finished seeds of the sums of ``time/STAGE``.

    A trial whose history is gone counts with the seconds that the study has for the same stages.
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
    """The seconds that the study has for the stages of a trial, from start to end: mean over the finished seeds."""
    return _means([trial.seconds for trial in setting.trials if trial.status == "finished"])


def _has(history: History, name: str) -> bool:
    return any(name in row for row in history)


def _means(trials: Sequence[dict[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for seconds in trials:
        for stage, value in seconds.items():
            if math.isfinite(value):
                values.setdefault(stage, []).append(value)
    return {stage: statistics.fmean(found) for stage, found in values.items()}
