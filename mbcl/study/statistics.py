"""Means, t intervals and paired comparisons over seeds: pure functions of a study."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy import stats

from mbcl.study.best_settings import champions
from mbcl.study.metric_glossary import direction, metric_order
from mbcl.study.record import StudyRecord, TrialRecord
from mbcl.study.settings import Setting, baseline_for, baselines, settings_of

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
# Patterns of metrics, by precedence: those of the report, summaries of other evaluations, all evaluation metrics.
PRIMARY = ("retrieval/u2v/top1", "retrieval/v2u/top1", "synthetic/distance", "synthetic/excess")
SUMMARY_METRICS = (r"(knn|probe)/top1", r"corrupted/clean/mean/\d/top1", r"corrupted/within/\d/u2v/top1")
_EVALUATED = r"(retrieval|knn|probe|corrupted|repr)/.*"
_ROUNDING = 1e-12
"""Relative difference below which two values count as equal: summation order changes the last bits."""


@dataclass(frozen=True)
class Estimate:
    """The mean over ``n`` seeds with its 95 % t interval. ``sd`` and the interval are None for one seed."""

    mean: float
    sd: float | None
    n: int
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class SettingSummary:
    """A setting with the number of trials by status and its final metrics over the finished seeds."""

    setting: int
    label: str
    sampler: str
    objective: str
    parameters: dict[str, Any]
    """The :attr:`Setting.columns`."""
    statuses: dict[str, int]
    metrics: dict[str, Estimate]

    @property
    def n(self) -> int:
        """Number of finished seeds."""
        return self.statuses.get("finished", 0)


@dataclass(frozen=True)
class Comparison:
    """The difference between a setting and the baseline on one metric, paired by seed.

    The interval is not adjusted for the number of comparisons. ``p_holm`` is ``p`` after Holm's correction for all
    comparisons on this metric.
    """

    metric: str
    setting: int
    label: str
    baseline: int
    baseline_label: str
    difference: float | None = None
    sd: float | None = None
    n: int = 0
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    comparisons: int = 0
    verdict: str = "not comparable (no seed finished in both)"
    chosen_by: str = ""
    """The search metric by which both settings were chosen as the best of their kind; empty if all are compared."""

    @property
    def circular(self) -> bool:
        """Whether both were chosen by the metric on which they are compared: selection bias flatters such values."""
        return self.chosen_by == self.metric

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0: the minimum requirement for a claim."""
        return self.ci_low is not None and self.ci_high is not None and (self.ci_low > 0 or self.ci_high < 0)

    @property
    def constant(self) -> bool:
        """Whether all seeds show the same non-zero difference, so that the interval has practically no width."""
        return bool(self.difference and self.sd is not None and self.sd <= _ROUNDING * abs(self.difference))


def shown_status(trial: TrialRecord) -> str:
    """Return the status that tables and reports show: a running trial is pending until it is finished."""
    return "pending" if trial.status == "running" else trial.status


def estimate(values: Sequence[float]) -> Estimate | None:
    """Estimate mean, standard deviation and 95 % t interval: ``mean ± t(0.975, n - 1) · sd / sqrt(n)``.

    Sums are exact: the order of the values does not change the last bit.

    Example:
        >>> found = estimate([1.0, 2.0, 3.0])
        >>> found.mean, found.sd, found.n, round(found.ci_low, 3), round(found.ci_high, 3)
        (2.0, 1.0, 3, -0.484, 4.484)
    """
    n = len(values)
    if n == 0:
        return None
    mean = statistics.mean(map(float, values))
    if n == 1:
        return Estimate(mean, None, 1, None, None)
    sd = statistics.stdev(map(float, values))
    half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * sd / math.sqrt(n)
    return Estimate(mean, sd, n, mean - half, mean + half)


def final_metrics(study: StudyRecord) -> list[str]:
    """Return every final metric of any trial, in the order of the tables."""
    return sorted({key for trial in study.trials.values() for key in trial.metrics}, key=metric_order)


def _measured(study: StudyRecord) -> list[str]:
    finished = [trial for trial in study.trials.values() if trial.status == "finished"]
    return [metric for metric in final_metrics(study) if any(t.value_of(metric) is not None for t in finished)]


def primary_metrics(study: StudyRecord) -> list[str]:
    """Return the metrics that the report is about, the headline's metric first.

    These are top-1 retrieval or the distance to the optimum, otherwise the summary metrics of other evaluations,
    otherwise the first evaluation metric. Without an evaluation it is the search metric, otherwise the first measured
    metric.
    """
    measured = _measured(study)
    for patterns in (PRIMARY, SUMMARY_METRICS, (_EVALUATED,)):
        matches = [metric for metric in measured if any(re.fullmatch(pattern, metric) for pattern in patterns)]
        if matches:
            matches.sort(key=lambda metric: metric != study.metric)
            return matches[:1] if patterns == (_EVALUATED,) else matches
    fallback = [metric for metric in (study.metric, *measured) if metric in measured]
    return fallback[:1]


def compared_metrics(study: StudyRecord) -> list[str]:
    """Return the metrics on which settings are compared: the primary ones, then all others of the evaluation."""
    primary = primary_metrics(study)
    others = [metric for metric in _measured(study) if re.fullmatch(_EVALUATED, metric)]
    return [*primary, *(metric for metric in others if metric not in primary)]


def summarise(study: StudyRecord) -> list[SettingSummary]:
    """Summarise every setting's final metrics over the finished seeds, in the order of the study."""
    metrics = final_metrics(study)
    return [
        SettingSummary(
            setting=setting.id,
            label=setting.label,
            sampler=setting.trials[0].sampler,
            objective=setting.trials[0].objective,
            parameters=setting.columns,
            statuses=dict(Counter(map(shown_status, setting.trials))),
            metrics={metric: result for metric in metrics if (result := estimate(setting.values_of(metric)))},
        )
        for setting in settings_of(study)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values by Holm's step-down procedure (Scandinavian Journal of Statistics 6, 1979), in the order given.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _difference(value: float, reference: float) -> float:
    # The same number computed in two ways may differ in its last bits; that is not an effect.
    difference = value - reference
    return 0.0 if abs(difference) <= _ROUNDING * max(abs(value), abs(reference)) else difference


def _p_value(difference: Estimate) -> float:
    """Return the p value of a two-sided paired t test against 0."""
    assert difference.sd is not None
    if difference.mean == 0:
        return 1.0
    if difference.sd == 0:
        return 0.0
    return float(2 * stats.t.sf(abs(difference.mean) / (difference.sd / math.sqrt(difference.n)), difference.n - 1))


def _verdict(metric: str, difference: Estimate) -> str:
    if difference.ci_low is None or difference.ci_high is None:
        return f"no interval (n={difference.n})"
    if difference.ci_low <= 0 <= difference.ci_high:
        return f"no difference shown (n={difference.n})"
    higher = difference.mean > 0
    if direction(metric) == 0:
        return "higher" if higher else "lower"
    return "better" if higher == (direction(metric) > 0) else "worse"


def compare(study: StudyRecord, metric: str) -> list[Comparison]:
    """Compare every other setting with the study's baseline on one final metric, paired by seed.

    Returns:
        One comparison for each setting that has a baseline, in the order of the study; empty without a baseline. If
        several settings match the baseline and no setting has a counterpart among them, or an adaptive search drew
        different values for each, the best setting of each sampler and objective by the search metric is compared with
        the best baseline.
    """
    settings = settings_of(study)
    candidates = baselines(study, settings)
    # Draws of an adaptive search agree only by chance, so agreement must not decide which settings are paired.
    drawn = len(candidates) > 1 and any(trial.drawn for trial in study.trials.values())
    comparisons = [
        _pair(metric, setting, reference)
        for setting in settings
        if not drawn and (reference := baseline_for(study, setting, candidates)) is not None
    ]
    if not comparisons and len(candidates) > 1:
        pairs = champions(study, settings, candidates)
        comparisons = [replace(_pair(metric, *pair), chosen_by=study.metric) for pair in pairs]
    tested = [i for i, comparison in enumerate(comparisons) if comparison.p is not None]
    # A constant difference has p = 0 without evidence. It counts as 1 here: as a rejection, it would relax Holm's
    # bound for the comparisons after it.
    p_values = [1.0 if comparisons[i].constant else comparisons[i].p or 0.0 for i in tested]
    adjusted = dict(zip(tested, holm(p_values), strict=True))
    return [replace(c, p_holm=adjusted.get(i), comparisons=len(tested)) for i, c in enumerate(comparisons)]


def _pair(metric: str, setting: Setting, reference: Setting) -> Comparison:
    ours, theirs = (
        {trial.seed: value for trial in s.finished if (value := trial.value_of(metric)) is not None}
        for s in (setting, reference)
    )
    result = estimate([_difference(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())])
    names = (metric, setting.id, setting.label, reference.id, reference.label)
    if result is None:
        return Comparison(*names)
    p = None if result.sd is None else _p_value(result)
    estimated = (result.mean, result.sd, result.n, result.ci_low, result.ci_high)
    return Comparison(*names, *estimated, p, verdict=_verdict(metric, result))
