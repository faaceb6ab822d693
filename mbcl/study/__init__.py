"""What a study says in numbers: settings and their labels, means with intervals, paired comparisons.

Pure functions of a :class:`~mbcl.study.record.StudyRecord`; the report and the console show them.
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
