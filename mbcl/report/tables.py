"""The tables of a results folder as CSV text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from mbcl.study.comparisons import Comparison
from mbcl.study.record import StudyRecord
from mbcl.study.settings import FIXED_COLUMNS, flatten, swept_columns, text_of
from mbcl.study.statistics import Estimate, SettingSummary, final_metrics, shown_status

STAGES = ("train", "embed", "plan", "wait", "eval")
"""The stages of an epoch, measured as ``time/STAGE``."""
_STAGE_ORDER = ("startup", *STAGES, "training", "evaluation", "ray", "total")
_STOPPED = ("stopped/by", "stopped/epoch", "stopped/value")
"""Columns for a stop by a scheduler; the epoch is 0 if the setting had been stopped before the trial began."""
_ESTIMATE = [field.name for field in fields(Estimate)]
_COMPARISON = [field.name for field in fields(Comparison) if field.name not in ("chosen_by", "differences")]


def stage_order(stage: str) -> tuple[int, str]:
    """Return a sort key for stages: in chronological order, unknown ones last."""
    return (_STAGE_ORDER.index(stage), "") if stage in _STAGE_ORDER else (len(_STAGE_ORDER), stage)


def single_line(text: str) -> str:
    """Replace line breaks by spaces, so that a CSV row stays one line."""
    return " ".join(text.split())


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Format a table as CSV: numbers in full, so that they read back exactly.

    A missing value, None and a float that is not finite become empty cells.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return stream.getvalue()


def _cell(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else text_of(value)


def results_csv(study: StudyRecord) -> str:
    """Return ``results.csv``: one row for each trial, in the order of the study.

    A stopped trial has no final metrics. The value by which it was stopped is in separate columns.
    """
    swept, metrics = swept_columns(study), final_metrics(study)
    staged = ("stage",) if study.nuisance else ()
    stages = sorted({stage for trial in study.trials.values() for stage in trial.seconds}, key=stage_order)
    rows: list[dict[str, Any]] = []
    for key, trial in study.ordered().items():
        flat = flatten(trial.parameters | trial.nuisance)
        row = {
            "trial_id": key,
            "status": shown_status(trial),
            "error": single_line(trial.error),
            "sampler": trial.sampler,
            "objective": trial.objective,
            "seed": trial.seed,
            **dict.fromkeys(staged, trial.stage),
        }
        row |= {column: text_of(flat[column]) for column in swept if column in flat}
        row |= {metric: trial.metrics.get(metric) for metric in metrics if metric not in row}
        row |= {f"seconds/{stage}": trial.seconds.get(stage) for stage in stages}
        if (stop := trial.stopped) is not None:
            row |= dict(zip(_STOPPED, (stop.by, stop.epoch, stop.value), strict=True))
        rows.append(row)
    stopped = _STOPPED if any(trial.stopped for trial in study.trials.values()) else ()
    columns = [*FIXED_COLUMNS, *staged, *swept, *metrics, *stopped]
    return csv_text(list(dict.fromkeys([*columns, *(f"seconds/{stage}" for stage in stages)])), rows)


def summary_csv(study: StudyRecord, summaries: list[SettingSummary]) -> str:
    """Return ``summary.csv``: one row for each setting, every final metric over its finished seeds."""
    swept, metrics = swept_columns(study), final_metrics(study)
    staged = ("stage",) if study.nuisance else ()
    nuisance = {setting: trials[0].nuisance for setting, trials in study.settings().items()}
    rows: list[dict[str, Any]] = []
    for summary in summaries:
        row: dict[str, Any] = {
            "setting": summary.setting,
            "label": single_line(summary.label),
            "sampler": summary.sampler,
            "objective": summary.objective,
            **dict.fromkeys(staged, summary.stage),
        }
        flat = summary.parameters | flatten(nuisance[summary.setting])
        row |= {column: text_of(flat[column]) for column in swept if column in flat}
        for metric in metrics:
            result = summary.metrics.get(metric)
            row |= {f"{metric}/{part}": getattr(result, part, None) for part in _ESTIMATE}
            row[f"{metric}/n"] = result.n if result else 0
        rows.append(row)
    columns = ["setting", "label", "sampler", "objective", *staged, *swept]
    return csv_text([*columns, *(f"{metric}/{part}" for metric in metrics for part in _ESTIMATE)], rows)


def comparison_csv(comparisons: list[Comparison]) -> str:
    """Return ``comparison.csv``: one row for each setting and metric with the paired difference from the baseline."""
    rows = [{name: getattr(comparison, name) for name in _COMPARISON} for comparison in comparisons]
    lines = [{k: single_line(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
    return csv_text(_COMPARISON, lines)
