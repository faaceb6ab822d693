"""Means, t intervals and paired comparisons over seeds: pure functions of a study."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy import stats

from mbcl.study.best_settings import champions
from mbcl.study.metric_glossary import direction, metric_order
from mbcl.study.record import StudyRecord, TrialRecord
from mbcl.study.settings import Setting, baseline_for, baselines, settings_of

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
PRIMARY = ("retrieval/u2v/top1", "retrieval/v2u/top1", "synthetic/distance", "synthetic/excess")
SUMMING_UP = (r"(knn|probe)/top1", r"corrupted/clean/mean/\d/top1", r"corrupted/within/\d/u2v/top1")
_EVALUATED = r"(retrieval|knn|probe|corrupted|repr)/.*"
"""Patterns of metrics: of the report, of what sums other evaluations up, and of all that an evaluation measures."""
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """Mean over ``n`` seeds with its 95 % t interval; one seed has neither spread nor interval."""

    mean: float
    sd: float | None
    n: int
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class SettingSummary:
    """One setting: what it is, how its trials ended, and its final metrics over the finished seeds."""

    setting: int
    label: str
    sampler: str
    objective: str
    parameters: dict[str, Any]
    """The swept keys, flat: ``{"sampler": "spectral", "sampler.k": 4}``."""
    statuses: dict[str, int]
    metrics: dict[str, Estimate]

    @property
    def n(self) -> int:
        """How many seeds have finished."""
        return self.statuses.get("finished", 0)


@dataclass(frozen=True)
class Comparison:
    """A setting minus the baseline on one metric, paired by seed.

    The interval is not adjusted for the number of comparisons; ``p_holm`` is ``p`` after Holm's correction for all
    comparisons on this metric.
    """

    metric: str
    setting: int
    label: str
    baseline: int
    baseline_label: str
    n: int
    difference: float | None
    sd: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    p_holm: float | None
    comparisons: int
    verdict: str
    chosen_by: str = ""
    """The metric of the search by which both were chosen, each as the best of its kind; empty if all are compared."""

    @property
    def chosen(self) -> bool:
        """Whether both were chosen, each as the best of its kind."""
        return bool(self.chosen_by)

    @property
    def circular(self) -> bool:
        """Whether both were chosen by the very metric on which they are compared, so that it flatters them."""
        return self.chosen_by == self.metric

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0: the least that a claim needs."""
        return self.ci_low is not None and self.ci_high is not None and (self.ci_low > 0 or self.ci_high < 0)

    @property
    def constant(self) -> bool:
        """Whether all seeds show the same difference, so that the interval has no width to speak of."""
        return bool(self.difference and self.sd is not None and self.sd <= _ROUNDING * abs(self.difference))


def shown_status(trial: TrialRecord) -> str:
    """The status in the contract's words: what runs is pending until it is finished."""
    return "pending" if trial.status == "running" else trial.status


def value_of(trial: TrialRecord, metric: str) -> float | None:
    """A final metric; None where it was not measured or is not finite."""
    value = trial.metrics.get(metric)
    return None if value is None or not math.isfinite(value) else value


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean, standard deviation and 95 % t interval: ``mean ± t(0.975, n - 1) · sd / sqrt(n)``.

    Sums are exact, so that the order of the values does not matter to the last bit.

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
    """Every final metric that any trial has, in the order of the tables."""
    return sorted({key for trial in study.trials.values() for key in trial.metrics}, key=metric_order)


def _measured(study: StudyRecord) -> list[str]:
    finished = [trial for trial in study.trials.values() if trial.status == "finished"]
    return [metric for metric in final_metrics(study) if any(value_of(t, metric) is not None for t in finished)]


def primary_metrics(study: StudyRecord) -> list[str]:
    """What the report is about, the headline's metric first.

    Top-1 retrieval, or the distance to the optimum; otherwise what else sums an evaluation up. Without an evaluation it
    is the metric of the search, otherwise the first there is.
    """
    measured = _measured(study)
    for patterns in (PRIMARY, SUMMING_UP, (_EVALUATED,)):
        found = [metric for metric in measured if any(re.fullmatch(pattern, metric) for pattern in patterns)]
        if found:
            found.sort(key=lambda metric: metric != study.metric)
            return found[:1] if patterns == (_EVALUATED,) else found
    fallback = [metric for metric in (study.metric, *measured) if metric in measured]
    return fallback[:1]


def compared_metrics(study: StudyRecord) -> list[str]:
    """The metrics on which settings are compared: the primary ones, then all others of the evaluation."""
    primary = primary_metrics(study)
    others = [metric for metric in _measured(study) if re.fullmatch(_EVALUATED, metric)]
    return [*primary, *(metric for metric in others if metric not in primary)]


def _summary(setting: Setting, metrics: Sequence[str]) -> SettingSummary:
    statuses: dict[str, int] = {}
    for trial in setting.trials:
        statuses[shown_status(trial)] = statuses.get(shown_status(trial), 0) + 1
    finished = [trial for trial in setting.trials if trial.status == "finished"]
    estimates = {}
    for metric in metrics:
        values = [value for trial in finished if (value := value_of(trial, metric)) is not None]
        if found := estimate(values):
            estimates[metric] = found
    return SettingSummary(
        setting=setting.id,
        label=setting.label,
        sampler=setting.trials[0].sampler,
        objective=setting.trials[0].objective,
        parameters=setting.columns,
        statuses=statuses,
        metrics=estimates,
    )


def summarise(study: StudyRecord) -> list[SettingSummary]:
    """Every setting with its final metrics over finished seeds, in the order of the study."""
    metrics = final_metrics(study)
    return [_summary(setting, metrics) for setting in settings_of(study)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979), in the order given.

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


def _by_seed(setting: Setting, metric: str) -> dict[int, float]:
    finished = (trial for trial in setting.trials if trial.status == "finished")
    return {trial.seed: value for trial in finished if (value := value_of(trial, metric)) is not None}


def _difference(value: float, reference: float) -> float:
    # The same number computed twice may differ in its last bits, which must not look like an effect.
    difference = value - reference
    return 0.0 if abs(difference) <= _ROUNDING * max(abs(value), abs(reference)) else difference


def _p_value(found: Estimate) -> float:
    """Two-sided paired t test against 0."""
    assert found.sd is not None
    if found.mean == 0:
        return 1.0
    if found.sd == 0:
        return 0.0
    return float(2 * stats.t.sf(abs(found.mean) / (found.sd / math.sqrt(found.n)), found.n - 1))


def _verdict(metric: str, found: Estimate | None) -> str:
    if found is None:
        return "not comparable (no seed finished in both)"
    if found.ci_low is None or found.ci_high is None:
        return f"no interval (n={found.n})"
    if found.ci_low <= 0 <= found.ci_high:
        return f"no difference shown (n={found.n})"
    sign = 1 if found.mean > 0 else -1
    words: Mapping[int, str] = {1: "better", -1: "worse"}
    return words[sign * direction(metric)] if direction(metric) else ("higher" if sign > 0 else "lower")


def compare(study: StudyRecord, metric: str) -> list[Comparison]:
    """Every other setting against the study's baseline on one metric, paired by seed.

    Args:
        study: the study; its ``baseline`` says what to compare with.
        metric: a final metric.

    Returns:
        One comparison for each setting that has a baseline, in the order of the study; empty without a baseline. Where
        several settings are baselines and none has a counterpart among them, or an adaptive search drew other values
        for each, the best of every kind by the metric of the search is compared with the best baseline.
    """
    settings = settings_of(study)
    candidates = baselines(study, settings)
    # Two draws of an adaptive search that agree do so by chance, which must not decide what is compared.
    drawn = len(candidates) > 1 and any(trial.drawn for trial in study.trials.values())
    found = []
    for setting in settings if not drawn else ():
        reference = baseline_for(study, setting, candidates)
        if reference is not None:
            found.append(_pair(metric, setting, reference))
    if not found and len(candidates) > 1:
        pairs = champions(study, settings, candidates)
        found = [replace(_pair(metric, *pair), chosen_by=study.metric) for pair in pairs]
    tested = [i for i, comparison in enumerate(found) if comparison.p is not None]
    # A difference without spread has a p of 0 and is no rejection that lets the next ones off more lightly.
    p_values = [1.0 if found[i].constant else found[i].p or 0.0 for i in tested]
    adjusted = dict(zip(tested, holm(p_values), strict=True))
    return [replace(c, p_holm=adjusted.get(i), comparisons=len(tested)) for i, c in enumerate(found)]


def _pair(metric: str, setting: Setting, reference: Setting) -> Comparison:
    ours, theirs = _by_seed(setting, metric), _by_seed(reference, metric)
    found = estimate([_difference(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())])
    return Comparison(
        metric=metric,
        setting=setting.id,
        label=setting.label,
        baseline=reference.id,
        baseline_label=reference.label,
        n=found.n if found else 0,
        difference=found.mean if found else None,
        sd=found.sd if found else None,
        ci_low=found.ci_low if found else None,
        ci_high=found.ci_high if found else None,
        p=_p_value(found) if found and found.sd is not None else None,
        p_holm=None,
        comparisons=0,
        verdict=_verdict(metric, found),
    )
