"""The tables of a results folder as CSV text. An empty cell says that there is no such value."""

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
"""What an epoch spends its time on, as ``time/STAGE``."""
_STAGE_ORDER = ("startup", *STAGES, "training", "evaluation", "ray", "total")
_STOPPED = ("stopped/by", "stopped/epoch", "stopped/value")
"""Where a scheduler stopped a trial; epoch 0 if its setting had been stopped before it began."""
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
    """Sort key of the stages: as they follow each other, unknown ones last."""
    return (_STAGE_ORDER.index(stage), "") if stage in _STAGE_ORDER else (len(_STAGE_ORDER), stage)


def stages_of(study: StudyRecord) -> list[str]:
    """Every stage that any trial has seconds for."""
    return sorted({stage for trial in study.trials.values() for stage in trial.seconds}, key=stage_order)


def single_line(text: str) -> str:
    """Text without line breaks, so that a row stays a line."""
    return " ".join(text.split())


def _cell(value: Any) -> str:
    """Numbers in full (they read back to the last bit), what is missing or not finite as an empty cell."""
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
    """``results.csv``: one row a trial, in the order of the study.

    A trial that was stopped has no final metrics: what it had measured by then stands in columns of its own.
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
            found = trial.stopped
            row |= dict(zip(_STOPPED, (found.by, str(found.epoch), _number(found.value)), strict=True))
        rows.append(row)
    stopped = _STOPPED if any(trial.stopped for trial in study.trials.values()) else ()
    columns = ["trial_id", "status", "error", "sampler", "objective", "seed", *swept, *metrics, *stopped]
    return _csv(list(dict.fromkeys([*columns, *(f"seconds/{stage}" for stage in stages)])), rows)


def summary_csv(study: StudyRecord, summaries: list[SettingSummary]) -> str:
    """``summary.csv``: one row a setting, every final metric over its finished seeds."""
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
            found = summary.metrics.get(metric)
            row |= {f"{metric}/{part}": _number(getattr(found, part) if found else None) for part in _ESTIMATE}
            row[f"{metric}/n"] = str(found.n if found else 0)
        rows.append(row)
    columns = ["setting", "label", "sampler", "objective", *swept]
    return _csv([*columns, *(f"{metric}/{part}" for metric in metrics for part in _ESTIMATE)], rows)


def comparison_csv(comparisons: list[Comparison]) -> str:
    """``comparison.csv``: one row a setting and metric, the paired difference from the baseline."""
    rows = []
    for comparison in comparisons:
        values = {name: getattr(comparison, name) for name in _COMPARISON}
        rows.append({name: "" if value is None else single_line(_cell(value)) for name, value in values.items()})
    return _csv(list(_COMPARISON), rows)
