"""``report.html``: everything about a study on one self-contained page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from mbcl.errors import pluralize
from mbcl.report import wording
from mbcl.report.answer import answer, status_counts
from mbcl.report.curves import AXES, History, stage_seconds, wall_seconds
from mbcl.report.pictures import Picture
from mbcl.report.tables import stage_order
from mbcl.study.comparisons import EQUAL_PASSES, EQUAL_STEPS, Comparison
from mbcl.study.metric_glossary import meaning, metric_order
from mbcl.study.nuisance import choices
from mbcl.study.record import StudyRecord
from mbcl.study.settings import baselines, flatten, measured_settings, settings_of, text_of
from mbcl.study.statistics import SettingSummary, final_metrics, primary_metrics, shown_status, validation_metric

CLASSIFIERS = ("knn/top1", "probe/top1")


def page(
    study: StudyRecord,
    summaries: list[SettingSummary],
    comparisons: list[Comparison],
    pictures: Sequence[Picture],
    histories: dict[int, History],
    space: str,
    folder: str,
    draws: str = "",
) -> str:
    """Render the page as HTML.

    The comparisons are on every primary metric and all others of the evaluation; the histories are those of the trials
    by ordinal; ``space`` is the text of ``space.yaml``, empty if there is none; ``folder`` is the name of the results
    folder, as ``--name`` takes it; ``draws`` says over which draws of the views the headline is a mean.
    """
    measured = [summary for summary in summaries if summary.stage != "tuning"]
    metrics = primary_metrics(study)
    side_metrics = _side_metrics(study, metrics)
    first = [c for c in comparisons if metrics and c.metric == metrics[0]]
    context: dict[str, Any] = {
        "study": study,
        "answer": answer(study, measured, first, metrics[0] if metrics else None),
        "counts": status_counts(study),
        "metrics": metrics,
        "side_metrics": side_metrics,
        "summaries": measured,
        "draws": draws,
        "all_metrics": [m for m in final_metrics(study) if any(m in s.metrics for s in measured)],
        "choices": choices(study),
        "tuning_seeds": sorted({trial.seed for trial in study.trials.values() if trial.stage == "tuning"}),
        "baseline": ", ".join(f"{key}: {text_of(value)}" for key, value in flatten(study.baseline).items()),
        "baseline_ids": {s.id for s in baselines(study, settings_of(study))},
        "control_ids": {s.equal_passes for s in measured_settings(study)} - {None},
        "at_equal": {EQUAL_STEPS: "steps", EQUAL_PASSES: "passes"},
        "comparisons": comparisons,
        "tests": max((c.comparisons for c in comparisons), default=0),
        "pictures": pictures,
        "axes": [axis for axis in AXES if any(picture.axis == axis for picture in pictures)],
        "trials": _trial_rows(study, summaries, metrics),
        "seeds": sorted({trial.seed for trial in study.trials.values()}),
        "times": _times(study, histories),
        "efficiency": study.efficiency.describe() if study.efficiency else "",
        "glossary": _glossary(study, histories),
        "space": space,
        "commands": _commands(study, folder),
        "report_command": f"mbcl report --results DIR/{shlex.quote(folder)}",
    }
    return environment().get_template("report.html").render(context, css=Markup(resource("report.css")))


def resource(name: str) -> str:
    """Read a template or style sheet of this package."""
    return resources.files("mbcl.report").joinpath(name).read_text(encoding="utf-8")


def environment() -> Environment:
    """Create the Jinja environment: autoescape for text from users, and filters that format numbers."""
    environment = Environment(
        loader=FunctionLoader(resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: wording.printable(value) if type(value) is str else value,
    )
    environment.filters |= {
        "number": wording.number,
        "interval": wording.interval,
        "p_value": wording.p_value,
        "seconds": wording.seconds,
    }
    environment.globals |= {"pluralize": pluralize, "NOTHING": wording.NOTHING}
    return environment


def _side_metrics(study: StudyRecord, primary: list[str]) -> list[str]:
    """Return the measured side metrics of the tables: batch hardness, validation split, classifiers, work."""
    measured = {key for trial in study.trials.values() for key in trial.metrics if trial.value_of(key) is not None}
    side = ("plan/lift", validation_metric(study), *CLASSIFIERS, "synthetic/updates", "synthetic/samples")
    return [metric for metric in side if metric in measured and metric not in primary]


def _trial_rows(study: StudyRecord, summaries: list[SettingSummary], metrics: list[str]) -> list[dict[str, Any]]:
    labels = {summary.setting: summary.label for summary in summaries}
    return [
        {
            "id": key,
            "label": labels[trial.setting],
            "seed": trial.seed,
            "status": shown_status(trial),
            "error": trial.error,
            "stopped": trial.stopped.describe() if trial.stopped else "",
            "attempts": trial.attempts,
            "values": [trial.value_of(metric) for metric in metrics],
            "seconds": trial.seconds.get("total"),
        }
        for key, trial in study.ordered().items()
    ]


def _times(study: StudyRecord, histories: dict[int, History]) -> list[dict[str, Any]]:
    """Return tables of the mean seconds by setting label and stage; a table without rows is left out."""
    tables = []
    for title, wall in (("From start to end", True), ("Inside the epochs", False)):
        seconds = {s.label: wall_seconds(s) if wall else stage_seconds(s, histories) for s in measured_settings(study)}
        if rows := {label: by_stage for label, by_stage in seconds.items() if by_stage}:
            stages = sorted({stage for row in rows.values() for stage in row}, key=stage_order)
            tables.append({"title": title, "wall": wall, "stages": stages, "rows": rows})
    return tables


def _glossary(study: StudyRecord, histories: dict[int, History]) -> dict[str, str]:
    """Return the metrics of this study that the glossary explains, with their explanations."""
    names = set(final_metrics(study)) | {key for rows in histories.values() for row in rows for key in row}
    return {name: text for name in sorted(names, key=metric_order) if (text := meaning(name))}


def _commands(study: StudyRecord, folder: str) -> list[tuple[str, str]]:
    run = "python run_ray.py --space SPACE.yaml --name"
    commands = [("Run the whole study again, under a new name:", f"{run} {shlex.quote(f'{folder}-again')}")]
    if study.unfinished():
        resume = f"{run} {shlex.quote(folder)} --resume"
        commands.insert(0, ("Run what is unfinished or failed:", resume))
    return commands
