"""Numbers and counts as a reader sees them. Files for machines have them in full."""

from __future__ import annotations

import re

from mbcl.study.statistics import Comparison, Estimate

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text without what breaks a page or turns its reading direction round; names and errors come from users."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def number(value: float | int | None, *, signed: bool = False) -> str:
    """About four digits; a dash where there is no value.

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
        text = f"{size:.2e}".replace("-", MINUS)  # where a line never breaks
    else:
        whole = size >= 1000 and size == round(size)  # a mean of counts
        digits = 0 if whole else 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 1 else 4
        text = f"{size:,.{digits}f}"
    return (MINUS if value < 0 else "+" if signed and value > 0 else "") + text


def interval(found: Estimate | Comparison | None, *, signed: bool = False) -> str:
    """``0.8421 to 0.9013``; a dash where one seed, or none, gives no interval."""
    if found is None or found.ci_low is None or found.ci_high is None:
        return NOTHING
    return f"{number(found.ci_low, signed=signed)} to {number(found.ci_high, signed=signed)}"


def p_value(value: float | None) -> str:
    """Three decimals, as no p value of a few seeds deserves more."""
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def seconds(value: float | None) -> str:
    """Seconds with one decimal, and minutes or hours beside them where that reads better."""
    if value is None:
        return NOTHING
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def pluralize(count: int, noun: str) -> str:
    """``1 trial``, ``3 trials``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(words: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)
