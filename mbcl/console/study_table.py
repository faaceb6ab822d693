"""The table of a study in a terminal: a row a setting, with means and intervals over its finished seeds."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from mbcl.study.nuisance import describe_choices
from mbcl.study.record import ERROR_FILE, StudyRecord, TrialRecord
from mbcl.study.statistics import Estimate, primary_metrics, summarise

TABLE_METRICS = ("retrieval/top1", "knn/top1", "probe/top1", "plan/lift", "synthetic/excess")
"""Further columns of the table if measured, after the metric of the search and the first primary metric."""
PLAIN_WIDTH = 160
"""Width of output that is not a terminal, where a table need not fit a screen."""


def study_table(study: StudyRecord) -> Table:
    """Return the table of a study's settings."""
    settings = [setting for setting in summarise(study) if setting.stage != "tuning"]
    measured = {metric for setting in settings for metric in setting.metrics}
    further = (name for name in TABLE_METRICS if name in measured)
    metrics = list(dict.fromkeys([study.metric, *primary_metrics(study)[:1], *further]))
    table = Table("setting", "seeds", *metrics, title=f"{study.name}: mean [95 % interval]")
    for setting in settings:
        cells = [_interval(setting.metrics.get(metric)) for metric in metrics]
        stopped = " stopped" if setting.statuses.get("stopped") else ""
        seeds = f"{setting.n}/{sum(setting.statuses.values())}{stopped}"
        table.add_row(escape(setting.label), seeds, *map(escape, cells))
    return table


def below_table(study: StudyRecord) -> Iterator[str]:
    """Yield the lines below the table: the choices of nuisance values, and the failed trials."""
    yield from describe_choices(study)
    for trial_id, record in study.trials.items():
        if record.status == "failed":
            yield f"{ending_of(study, record)}  {trial_id}  {record.error} (trials/{trial_id}/{ERROR_FILE})"


def ending_of(study: StudyRecord, trial: TrialRecord) -> str:
    """Return the word for a trial that failed, or for a candidate that diverged."""
    return "diverged" if study.is_result(trial) else "FAILED  "


def _interval(estimate: Estimate | None) -> str:
    """Format a mean with its 95 % interval as ``0.5984 [0.506, 0.691]``; one seed has no interval."""
    if estimate is None:
        return "-"
    small = abs(estimate.mean) < 0.001
    mean = f"{estimate.mean:.2e}" if small and estimate.mean else f"{estimate.mean:.4f}"
    if estimate.ci_low is None or estimate.ci_high is None:
        return mean
    ends = (
        f"{estimate.ci_low:.1e}, {estimate.ci_high:.1e}" if small else f"{estimate.ci_low:.3f}, {estimate.ci_high:.3f}"
    )
    return f"{mean} [{ends}]"
