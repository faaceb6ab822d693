"""Formatting of numbers and counts for readers. The CSV files hold the numbers in full."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from mbcl.study.comparisons import Comparison
from mbcl.study.statistics import Estimate

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Replace control characters and bidirectional overrides: names and errors come from users."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def number(value: float | int | None, *, signed: bool = False, beside: Sequence[float] = ()) -> str:
    """Format a number with about four significant digits; None becomes a dash.

    Numbers ``beside`` it, as the ends of its interval, set the decimals together with it, so that all have as many.

    Example:
        >>> number(0.87654), number(12.3456), number(-0.5, signed=True), number(None)
        ('0.8765', '12.35', '−0.5000', '–')
        >>> number(0.000562, beside=[-0.0154])
        '0.0006'
    """
    if value is None:
        return NOTHING
    if isinstance(value, int) and not beside:
        text = f"{abs(value):,d}"
    else:
        text = f"{abs(value):{_format_of([value, *beside])}}".replace("-", MINUS)  # a hyphen would allow a line break
    zero = not text.strip("0.,")
    return ("" if zero else MINUS if value < 0 else "+" if signed else "") + text


def _format_of(values: Sequence[float]) -> str:
    """Return the format of numbers that stand side by side, by the largest of them."""
    size = max(map(abs, values))
    if size >= 1e6 or 0 < size < (1e-6 if len(values) > 1 else 1e-3):
        return ".2e"
    if size == 0 or (size >= 1000 and all(value == round(value) for value in values)):  # an integral mean of counts
        return ",.0f"
    if size < 0.001:
        return f".{2 - math.floor(math.log10(size))}f"
    return f",.{1 if size >= 100 else 2 if size >= 10 else 3 if size >= 1 else 4}f"


def _ends(result: Estimate | Comparison) -> list[float]:
    return [end for end in (result.ci_low, result.ci_high) if end is not None]


def interval(result: Estimate | Comparison | None, *, signed: bool = False) -> str:
    """Format an interval as ``0.8421 to 0.9013``; a dash if there is none, as with fewer than two seeds."""
    if result is None or result.ci_low is None or result.ci_high is None:
        return NOTHING
    beside = [*_ends(result), _centre_of(result)]
    return " to ".join(number(float(end), signed=signed, beside=beside) for end in (result.ci_low, result.ci_high))


def centre(result: Estimate | Comparison | None, *, signed: bool = False, size_only: bool = False) -> str:
    """Format a mean or a difference with the decimals of its interval; a dash if there is none."""
    if result is None or (isinstance(result, Comparison) and result.difference is None):
        return NOTHING
    value = _centre_of(result)
    return number(abs(value) if size_only else value, signed=signed, beside=_ends(result))


def _centre_of(result: Estimate | Comparison) -> float:
    return (result.difference or 0.0) if isinstance(result, Comparison) else result.mean


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
