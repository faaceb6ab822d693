"""What a study says in numbers: settings and their labels, means with intervals, paired comparisons.

Pure functions of a :class:`~mbcl.study.StudyRecord`; the report and the console show them.
"""

from mbcl.summary.settings import labels
from mbcl.summary.statistics import (
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
