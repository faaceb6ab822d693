"""The tables of a results folder as CSV text. An empty cell is a missing value."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

from mbcl.study.record import StudyRecord
from mbcl.study.settings import flatten, ordered_trials, swept_columns, text_of
from mbcl.study.statistics import Comparison, SettingSummary, final_metrics, shown_status

STAGES = ("train", "embed", "plan", "wait", "eval")
"""The stages of an epoch, measured as ``time/STAGE``."""
_STAGE_ORDER = ("startup", *STAGES, "training", "evaluation", "ray", "total")
_STOPPED = ("stopped/by", "stopped/epoch", "stopped/value")
"""Columns for a stop by a scheduler; the epoch is 0 if the setting had been stopped before the trial began."""
_ESTIMATE = ("mean", "sd", "n", "ci_low", "ci_high")
_COMPARISON = (
    "metric",
    "setting",
    "label",
    "baseline",
    "baseline_label",
    "difference",
    "sd",
    "n",
    "ci_low",
    "ci_high",
    "p",
    "p_holm",
    "comparisons",
    "verdict",
)


def stage_order(stage: str) -> tuple[int, str]:
    """Return a sort key for stages: in chronological order, unknown ones last."""
    return (_STAGE_ORDER.index(stage), "") if stage in _STAGE_ORDER else (len(_STAGE_ORDER), stage)


def stages_of(study: StudyRecord) -> list[str]:
    """Return every stage for which any trial has seconds."""
    return sorted({stage for trial in study.trials.values() for stage in trial.seconds}, key=stage_order)


def single_line(text: str) -> str:
    """Replace line breaks by spaces, so that a CSV row stays one line."""
    return " ".join(text.split())


def _cell(value: Any) -> str:
    """Format a cell: numbers in full, so that they read back exactly; a float that is not finite as an empty cell."""
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    return text_of(value)


def _number(value: float | int | None) -> str:
    return "" if value is None else _cell(value)


def _csv(columns: list[str], rows: Iterable[Mapping[str, str]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def results_csv(study: StudyRecord) -> str:
    """Return ``results.csv``: one row for each trial, in the order of the study.

    A stopped trial has no final metrics. The value by which it was stopped is in separate columns.
    """
    swept, metrics, stages = swept_columns(study), final_metrics(study), stages_of(study)
    rows = []
    for key, trial in ordered_trials(study).items():
        flat = flatten(trial.parameters)
        row = {
            "trial_id": key,
            "status": shown_status(trial),
            "error": single_line(trial.error),
            "sampler": trial.sampler,
            "objective": trial.objective,
            "seed": str(trial.seed),
        }
        row |= {column: _cell(flat[column]) for column in swept if column in flat}
        row |= {metric: _number(trial.metrics.get(metric)) for metric in metrics if metric not in row}
        row |= {f"seconds/{stage}": _number(trial.seconds.get(stage)) for stage in stages}
        if trial.stopped is not None:
            stop = trial.stopped
            row |= dict(zip(_STOPPED, (stop.by, str(stop.epoch), _number(stop.value)), strict=True))
        rows.append(row)
    stopped = _STOPPED if any(trial.stopped for trial in study.trials.values()) else ()
    columns = ["trial_id", "status", "error", "sampler", "objective", "seed", *swept, *metrics, *stopped]
    return _csv(list(dict.fromkeys([*columns, *(f"seconds/{stage}" for stage in stages)])), rows)


def summary_csv(study: StudyRecord, summaries: list[SettingSummary]) -> str:
    """Return ``summary.csv``: one row for each setting, every final metric over its finished seeds."""
    swept, metrics = swept_columns(study), final_metrics(study)
    rows = []
    for summary in summaries:
        row = {
            "setting": str(summary.setting),
            "label": single_line(summary.label),
            "sampler": summary.sampler,
            "objective": summary.objective,
        }
        row |= {column: _cell(summary.parameters[column]) for column in swept if column in summary.parameters}
        for metric in metrics:
            result = summary.metrics.get(metric)
            row |= {f"{metric}/{part}": _number(getattr(result, part) if result else None) for part in _ESTIMATE}
            row[f"{metric}/n"] = str(result.n if result else 0)
        rows.append(row)
    columns = ["setting", "label", "sampler", "objective", *swept]
    return _csv([*columns, *(f"{metric}/{part}" for metric in metrics for part in _ESTIMATE)], rows)


def comparison_csv(comparisons: list[Comparison]) -> str:
    """Return ``comparison.csv``: one row for each setting and metric with the paired difference from the baseline."""
    rows = []
    for comparison in comparisons:
        values = {name: getattr(comparison, name) for name in _COMPARISON}
        rows.append({name: "" if value is None else single_line(_cell(value)) for name, value in values.items()})
    return _csv(list(_COMPARISON), rows)
