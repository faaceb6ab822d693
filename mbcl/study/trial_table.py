"""The trials of a study as a table: the columns of ``results.csv``."""

from __future__ import annotations

from typing import Any

from mbcl.study.record import StudyRecord
from mbcl.study.settings import FIXED_COLUMNS, flatten, swept_columns
from mbcl.study.statistics import final_metrics, shown_status

STAGES = ("train", "embed", "plan", "wait", "eval")
"""The stages of an epoch, measured as ``time/STAGE``."""
_STAGE_ORDER = ("startup", *STAGES, "training", "evaluation", "ray", "total")
_STOPPED = ("stopped/by", "stopped/epoch", "stopped/value")
"""Columns for a stop by a scheduler; the epoch is 0 if the setting had been stopped before the trial began."""


def stage_order(stage: str) -> tuple[int, str]:
    """Return a sort key for stages: in chronological order, unknown ones last."""
    return (_STAGE_ORDER.index(stage), "") if stage in _STAGE_ORDER else (len(_STAGE_ORDER), stage)


def single_line(text: str) -> str:
    """Replace line breaks by spaces, so that a row stays one line."""
    return " ".join(text.split())


def trial_table(study: StudyRecord) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns and one row for each trial, in the order of the study; a row lacks what it has no value of.

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
        row |= {column: flat[column] for column in swept if column in flat}
        row |= {metric: trial.metrics.get(metric) for metric in metrics if metric not in row}
        row |= {f"seconds/{stage}": trial.seconds.get(stage) for stage in stages}
        if (stop := trial.stopped) is not None:
            row |= dict(zip(_STOPPED, (stop.by, stop.epoch, stop.value), strict=True))
        rows.append(row)
    stopped = _STOPPED if any(trial.stopped for trial in study.trials.values()) else ()
    columns = [*FIXED_COLUMNS, *staged, *swept, *metrics, *stopped]
    return list(dict.fromkeys([*columns, *(f"seconds/{stage}" for stage in stages)])), rows
