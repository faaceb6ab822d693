"""Statistics of a study: settings and their labels, means with intervals, paired comparisons.

All are pure functions of a :class:`~mbcl.study.record.StudyRecord`; the report and the console show the results.
"""

from mbcl.study.settings import labels
from mbcl.study.statistics import (
    Comparison,
    Estimate,
    SettingSummary,
    compare,
    compared_metrics,
    estimate,
    primary_metrics,
    summarise,
)

__all__ = [
    "Comparison",
    "Estimate",
    "SettingSummary",
    "compare",
    "compared_metrics",
    "estimate",
    "labels",
    "primary_metrics",
    "summarise",
]
