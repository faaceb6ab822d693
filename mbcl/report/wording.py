"""Formatting of numbers and counts for readers. The CSV files hold the numbers in full."""

from __future__ import annotations

import re

from mbcl.study.comparisons import Comparison
from mbcl.study.statistics import Estimate

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Replace control characters and bidirectional overrides: names and errors come from users."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def number(value: float | int | None, *, signed: bool = False) -> str:
    """Format a number with about four significant digits; None becomes a dash.

    Example:
        >>> number(0.87654), number(12.3456), number(-0.5, signed=True), number(None)
        ('0.8765', '12.35', '−0.5000', '–')
    """
    if value is None:
        return NOTHING
    size = abs(value)
    if isinstance(value, int):
        text = f"{size:,d}"
    elif size == 0:
        text = "0"
    elif size < 0.001 or size >= 1e6:
        text = f"{size:.2e}".replace("-", MINUS)  # a hyphen would allow a line break
    else:
        whole = size >= 1000 and size == round(size)  # an integral mean of counts
        digits = 0 if whole else 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 1 else 4
        text = f"{size:,.{digits}f}"
    return (MINUS if value < 0 else "+" if signed and value > 0 else "") + text


def interval(result: Estimate | Comparison | None, *, signed: bool = False) -> str:
    """Format an interval as ``0.8421 to 0.9013``; a dash if there is none, as with fewer than two seeds."""
    if result is None or result.ci_low is None or result.ci_high is None:
        return NOTHING
    return f"{number(result.ci_low, signed=signed)} to {number(result.ci_high, signed=signed)}"


def p_value(value: float | None) -> str:
    """Format a p value with three decimals; with few seeds, more would be spurious precision."""
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def seconds(value: float | None) -> str:
    """Format a duration with one decimal, in seconds below 2 min, in minutes below 2 h, otherwise in hours."""
    if value is None:
        return NOTHING
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def listed(items: list[str]) -> str:
    """Join items to a phrase: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)
