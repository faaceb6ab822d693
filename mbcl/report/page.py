"""``report.html``: everything about a study on one self-contained page."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mbcl.io.store import is_uri
from mbcl.report.answer import Verdict, status_counts
from mbcl.report.batches import SettingBatches
from mbcl.report.curves import AXES, stage_seconds, wall_seconds
from mbcl.report.pictures import Picture
from mbcl.report.templates import render_page
from mbcl.study.comparisons import EQUAL_PASSES, EQUAL_STEPS, Comparison
from mbcl.study.histories import History
from mbcl.study.metric_glossary import meaning, metric_order
from mbcl.study.nuisance import choices
from mbcl.study.passes_to_quality import passes_to_quality
from mbcl.study.record import StudyRecord
from mbcl.study.settings import baselines, flatten, measured_settings, settings_of, text_of
from mbcl.study.statistics import SettingSummary, final_metrics, primary_metrics, shown_status, validation_metric
from mbcl.study.trial_table import single_line, stage_order

CLASSIFIERS = ("knn/top1", "probe/top1")
MAX_COLUMNS, MAX_ROWS = 24, 300
"""Maximum number of settings in a table of all metrics, and of rows in one of exploratory comparisons."""
MAX_REASONS, MAX_LOGS = 8, 40
"""Maximum number of reasons of failures that are listed by themselves, and of logs on the page."""


def page(
    study: StudyRecord,
    verdict: Verdict,
    summaries: list[SettingSummary],
    comparisons: list[Comparison],
    pictures: Sequence[Picture],
    histories: dict[int, History],
    space: str,
    location: str,
    draws: str = "",
    logs: Mapping[str, str] = MappingProxyType({}),
    batches: Sequence[SettingBatches] = (),
) -> str:
    """Render the page as HTML.

    The comparisons are on every primary metric and all others of the evaluation; the histories are those of the trials
    by ordinal; ``space`` is the text of ``space.yaml``, empty if there is none; ``location`` is the results folder as
    commands take it; ``draws`` says over which draws of the views the headline is a mean; ``logs`` has the ends of the
    logs of failed trials by their names; ``batches`` are shown as pictures.
    """
    measured = [summary for summary in summaries if summary.stage != "tuning"]
    metrics = primary_metrics(study)
    side_metrics = _side_metrics(study, metrics)
    first = [c for c in comparisons if metrics and c.metric == metrics[0]]
    headline = next((picture for picture in pictures if not picture.name.startswith(("curve", "time"))), None)
    others = [picture for picture in pictures if picture is not headline]
    context: dict[str, Any] = {
        "study": study,
        "answer": verdict,
        "tone": _tone(first),
        "counts": status_counts(study),
        "metrics": metrics,
        "side_metrics": side_metrics,
        "summaries": measured,
        "draws": draws,
        "all_metrics": [m for m in final_metrics(study) if any(m in s.metrics for s in measured)],
        "quality": passes_to_quality(study, histories),
        "choices": choices(study),
        "tuning_seeds": sorted({trial.seed for trial in study.trials.values() if trial.stage == "tuning"}),
        "baseline": ", ".join(f"{key}: {text_of(value)}" for key, value in flatten(study.baseline).items()),
        "baseline_ids": {s.id for s in baselines(study, settings_of(study))},
        "control_ids": {s.equal_passes for s in measured_settings(study)} - {None},
        "at_equal": {EQUAL_STEPS: "steps", EQUAL_PASSES: "passes"},
        "comparisons": comparisons,
        "tests": max((c.comparisons for c in comparisons), default=0),
        "first": headline,
        "pictures": others,
        "axes": [axis for axis in AXES if any(picture.axis == axis for picture in pictures)],
        "trials": _trial_rows(study, summaries, metrics, logs),
        "batches": batches,
        "reasons": _reasons(study),
        "MAX_COLUMNS": MAX_COLUMNS,
        "MAX_ROWS": MAX_ROWS,
        "seeds": sorted({trial.seed for trial in study.trials.values()}),
        "times": _times(study, histories),
        "efficiency": study.efficiency.describe() if study.efficiency else "",
        "glossary": _glossary(study, histories),
        "space": space,
        "commands": commands(study, location),
        "report_command": f"mbcl report {shlex.quote(location)}",
    }
    return render_page("report.html", context)


def _tone(comparisons: Sequence[Comparison]) -> str:
    """Return the verdict that colours the answer: the one of all comparisons that claim a difference."""
    claims = {c.verdict for c in comparisons if c.differs}
    if not claims:
        return "undecided" if comparisons else ""
    return claims.pop() if len(claims) == 1 else ""


def _side_metrics(study: StudyRecord, primary: list[str]) -> list[str]:
    """Return the measured side metrics of the tables: batch hardness, validation split, classifiers, work."""
    measured = {key for trial in study.trials.values() for key in trial.metrics if trial.value_of(key) is not None}
    side = (
        "plan/lift",
        "train/same_class",
        validation_metric(study),
        *CLASSIFIERS,
        "synthetic/updates",
        "synthetic/samples",
    )
    return [metric for metric in side if metric in measured and metric not in primary]


def _trial_rows(
    study: StudyRecord, summaries: list[SettingSummary], metrics: list[str], logs: Mapping[str, str]
) -> list[dict[str, Any]]:
    labels = {summary.setting: summary.label for summary in summaries}
    return [
        {
            "id": key,
            "label": labels[trial.setting],
            "seed": trial.seed,
            "status": shown_status(trial),
            "error": trial.error,
            "log": logs.get(key, ""),
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


def _reasons(study: StudyRecord) -> list[tuple[str, int]]:
    """Return why trials failed with their numbers, the most frequent first; empty if each has a reason of its own."""
    counts = Counter(single_line(trial.error) for trial in study.trials.values() if trial.status == "failed")
    return [(reason, number) for reason, number in counts.most_common(MAX_REASONS) if number > 1]


def commands(study: StudyRecord, location: str) -> list[tuple[str, str]]:
    """Return the commands that go on with a study and that repeat it, each with words about it."""
    parent, _, name = location.rpartition("/")

    def command(name: str, *options: str) -> str:
        where = [] if parent == "results" else ["--results-dir", parent or "."]
        space = ["--space", "space.yaml" if is_uri(location) else f"{location}/space.yaml"]
        return shlex.join(["python", "run_ray.py", *space, *where, "--name", name, *options])

    found = [("Run the whole study again, under a new name:", command(f"{name}-again"))]
    if study.unfinished():
        found.insert(0, ("Run what is unfinished or failed:", command(name, "--resume")))
    return found
