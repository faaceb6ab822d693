"""Time to quality in forward passes: how much work a setting needs to reach what its baseline reaches at the end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from mbcl.study.comparisons import EQUAL_STEPS, Comparison, compare, raced_seeds
from mbcl.study.histories import History
from mbcl.study.metric_glossary import direction
from mbcl.study.record import StudyRecord, TrialRecord
from mbcl.study.settings import measured_settings
from mbcl.study.statistics import Estimate, estimate, primary_metrics

MIN_EPOCHS = 10
"""Minimum number of validated epochs of a trial: passes are counted to an epoch."""
PASSES = "work/passes"


@dataclass(frozen=True)
class PassesToQuality:
    """The forward passes until ``metric`` is at least the last value of the baseline's trial of the same seed.

    ``ratio`` is the geometric mean over the seeds of the setting's passes over those of the baseline, with the interval
    of the paired t interval of its logarithm; None if a seed did not get there, or has no baseline because that
    diverged. ``ratios`` has those of the ``reached`` of ``n`` seeds that did, and ``passes`` is the mean of the
    baseline's own passes until then.
    """

    metric: str
    setting: int
    label: str
    baseline_label: str
    passes: float
    ratios: tuple[float, ...]
    n: int
    ratio: Estimate | None

    @property
    def reached(self) -> int:
        """Number of seeds that got there."""
        return len(self.ratios)


def passes_to_quality(study: StudyRecord, histories: Mapping[int, History]) -> list[PassesToQuality]:
    """Return the passes of every setting that is compared with a baseline at equal epochs, in the order of the study.

    Only finished trials count, and those that diverged, which do not get there. A setting is left out if one of its
    trials or of its baseline's has fewer than :data:`MIN_EPOCHS` validated epochs.
    """
    headline = next(iter(primary_metrics(study)), "")
    metric = f"val/{headline}"
    if not direction(metric):
        return []
    raced = raced_seeds(study)
    trials = {s.id: {t.seed: t for t in s.trials if t.seed not in raced} for s in measured_settings(study)}
    compared = [c for c in compare(study, headline) if c.control == EQUAL_STEPS and not c.chosen_by]
    rows = [_row(c, trials[c.setting], trials[c.baseline], histories, metric) for c in compared]
    return [row for row in rows if row is not None]


def _row(
    comparison: Comparison,
    ours: Mapping[int, TrialRecord],
    theirs: Mapping[int, TrialRecord],
    histories: Mapping[int, History],
    metric: str,
) -> PassesToQuality | None:
    counts = _passes_by_seed(ours, theirs, histories, metric)
    if not counts:
        return None
    ratios = tuple(own / reference for own, reference in counts if own is not None)
    complete = len(ratios) == len(counts) and not any(trial.has_diverged for trial in theirs.values())
    return PassesToQuality(
        metric,
        comparison.setting,
        comparison.label,
        comparison.baseline_label,
        passes=statistics.fmean(reference for _, reference in counts),
        ratios=ratios,
        n=len(counts),
        ratio=_geometric(ratios) if complete else None,
    )


def _passes_by_seed(
    ours: Mapping[int, TrialRecord], theirs: Mapping[int, TrialRecord], histories: Mapping[int, History], metric: str
) -> list[tuple[float | None, float]]:
    """Return the passes of a setting, None where it did not get there, and of its baseline for every shared seed."""
    counts: list[tuple[float | None, float]] = []
    for seed in sorted(ours.keys() & theirs.keys()):
        own, reference = ours[seed], theirs[seed]
        if reference.status != "finished" or not (own.status == "finished" or own.has_diverged):
            continue
        curve, reference_curve = (_curve(histories.get(trial.ordinal, []), metric) for trial in (own, reference))
        if min(len(reference_curve), len(curve) if own.status == "finished" else MIN_EPOCHS) < MIN_EPOCHS:
            return []
        target = reference_curve[-1][1]
        first = _first(reference_curve, target, metric)
        assert first is not None
        counts.append((_first(curve, target, metric) if own.status == "finished" else None, first))
    return counts


def _curve(history: History, metric: str) -> list[tuple[float, float]]:
    return [(row[PASSES], row[metric]) for row in history if metric in row and PASSES in row]


def _first(curve: list[tuple[float, float]], target: float, metric: str) -> float | None:
    """Return the fewest passes at which a curve is at least as good as a value."""
    sign = direction(metric)
    return next((passes for passes, value in curve if sign * value >= sign * target), None)


def _geometric(ratios: tuple[float, ...]) -> Estimate | None:
    result = estimate([math.log(ratio) for ratio in ratios])
    if result is None:
        return None
    ends = (None if end is None else math.exp(end) for end in (result.ci_low, result.ci_high))
    return Estimate(math.exp(result.mean), result.sd, result.n, *ends)
