"""The draws of the views behind a study's metrics, read from the ``evaluation.json`` of its trials."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mbcl.io.store import Store
from mbcl.report.tables import csv_text
from mbcl.study.metric_glossary import metric_order
from mbcl.study.record import StudyRecord, TrialRecord

Draws = dict[str, dict[str, list[float]]]
"""By trial and metric, the value of every draw."""


def read_draws(store: Store, study: StudyRecord) -> Draws:
    """Read the draws of the finished trials, whose means are the metrics in the study's record.

    Left out are those of a file that does not belong to the record, as after an ``--eval-only`` that was cut off.
    """
    draws = {}
    for key, trial in study.ordered().items():
        if trial.status != "finished":
            continue
        try:
            content = json.loads(store.read_bytes(f"trials/{key}/evaluation.json"))
        except (FileNotFoundError, ValueError):
            continue
        if found := _draws_of(content, trial):
            draws[key] = found
    return draws


def _draws_of(content: Any, trial: TrialRecord) -> dict[str, list[float]]:
    try:
        draws: dict[str, list[float]] = content["draws"]
        belong = len({len(values) for values in draws.values()}) == 1 and all(
            trial.metrics[metric] == statistics.fmean(values) for metric, values in draws.items()
        )
    except (KeyError, TypeError, AttributeError, statistics.StatisticsError):
        return {}
    return draws if belong else {}


def draws_csv(draws: Draws) -> str:
    """Return ``draws.csv``: a row for each trial and draw, counted from 0; a trial's means are in results.csv."""
    metrics = sorted({metric for by_metric in draws.values() for metric in by_metric}, key=metric_order)
    rows = [
        {"trial_id": key, "draw": number} | {metric: values[number] for metric, values in by_metric.items()}
        for key, by_metric in draws.items()
        for number in range(len(next(iter(by_metric.values()))))
    ]
    return csv_text(["trial_id", "draw", *metrics], rows)


def describe_draws(draws: Draws, metric: str) -> str:
    """Describe how a metric scatters over the draws of a trial; empty if there is one draw only.

    Two draws do not tell the standard deviation of a draw: they share a view.

    Example:
        >>> describe_draws({"000-aa": {"mrr": [0.5, 0.6, 0.7]}, "001-aa": {"mrr": [0.5, 0.5, 0.5]}}, "mrr")
        'mean over 3 draws of the two views, whose standard deviation in a trial is 0.1'
    """
    samples = [by_metric[metric] for by_metric in draws.values() if len(by_metric.get(metric, ())) > 1]
    if not samples:
        return ""
    numbers = "-".join(map(str, sorted({len(values) for values in samples})))
    text, variances = f"mean over {numbers} draws of the two views", [variance(x) for x in samples if len(x) > 2]
    if not variances:
        return text
    return f"{text}, whose standard deviation in a trial is {math.sqrt(statistics.fmean(variances)):.2g}"


def variance(values: Sequence[float]) -> float:
    """Return the variance of a single draw, from three or more of which consecutive ones share a view.

    The sample variance would be too small, because those are correlated. Draws that share no view are independent, so
    half the mean square of their differences is unbiased. It is that of all differences without those of neighbours.

    Example:
        >>> round(variance([0.5, 0.6, 0.7]), 9)
        0.02
    """
    num, neighbours = len(values), sum((x - y) ** 2 for x, y in pairwise(values))
    squares = num * (num - 1) * statistics.variance(values) - neighbours
    return max(0.0, squares / ((num - 1) * (num - 2)))
