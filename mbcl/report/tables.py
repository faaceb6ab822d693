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
from mbcl.study.settings import flatten, swept_columns, text_of
from mbcl.study.statistics import Estimate, SettingSummary, final_metrics
from mbcl.study.trial_table import single_line, trial_table

_ESTIMATE = [field.name for field in fields(Estimate)]
_COMPARISON = [field.name for field in fields(Comparison) if field.name not in ("chosen_by", "differences", "seeds")]


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
    """Return ``results.csv``: one row for each trial, in the order of the study."""
    columns, rows = trial_table(study)
    swept = set(swept_columns(study))
    return csv_text(columns, [{k: text_of(v) if k in swept else v for k, v in row.items()} for row in rows])


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
