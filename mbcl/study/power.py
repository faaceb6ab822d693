"""What a number of seeds can show: the power of the rule in :mod:`mbcl.study.paired`.

Differences are assumed normal. Effects are in units of their standard deviation. The level is that of Holm's first
step, ``ALPHA / comparisons``, which a setting meets that alone differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from mbcl.errors import pluralize
from mbcl.seeding import numpy_generator
from mbcl.study.paired import ALPHA, MIN_PAIRS, fewest_pairs, sign_flip_p

POWER = 0.8
TYPICAL_SPREADS = {
    "digits": (0.0098, "for MRR on the digits, averaged over 20 draws of the views"),
    "code_docs": (0.0017, "for MRR on functions and their docstrings"),
}
"""Standard deviation of paired differences of ``retrieval/mrr`` before a study has measured its own, and of what it is.

By data set: that of ``tune_spaces/digits.yaml`` at temperature 0.1 and learning rate 0.075, pooled over its two
comparisons of eight pairs, and that of ``tune_spaces/samplers.yaml``, as their reports state them.
"""
MAX_PAIRS = 1000
_SIMULATED_PAIRS = 13
_NUM_SAMPLES = 4000


@lru_cache(maxsize=64)
def detectable(pairs: int, comparisons: int) -> float | None:
    """Return the least difference that is claimed with a probability of ``POWER``; None if none can be claimed.

    With few pairs the sign-flip test has few p values and is weaker than a t test, so the rule is simulated with a
    fixed seed. With more it has the power of the t test at the greatest of its levels.

    Example:
        >>> detectable(5, 1) is None, detectable(6, 2) is None
        (True, True)
        >>> round(detectable(6, 1), 1), round(detectable(20, 1), 2)
        (1.8, 0.66)
    """
    if pairs < fewest_pairs(comparisons):
        return None
    return float(optimize.brentq(lambda effect: _power(effect, pairs, comparisons) - POWER, 0.0, 10.0, xtol=1e-3))


def _power(effect: float, pairs: int, comparisons: int) -> float:
    """Return the probability that a difference is claimed."""
    return (_simulated_power if pairs <= _SIMULATED_PAIRS else _t_power)(effect, pairs, comparisons)


def _simulated_power(effect: float, pairs: int, comparisons: int) -> float:
    samples_RN = numpy_generator(0, "power", pairs).standard_normal((_NUM_SAMPLES, pairs)) + effect
    half_R = stats.t.ppf(1 - ALPHA / 2, pairs - 1) * samples_RN.std(axis=1, ddof=1) / math.sqrt(pairs)
    claimed_R = samples_RN.mean(axis=1) > half_R
    claimed_R[claimed_R] = sign_flip_p(samples_RN[claimed_R]) * comparisons < ALPHA
    return float(claimed_R.mean())


def _spreads(pairs: int) -> NDArray[np.float64]:
    """Return quantiles of the standard deviation of normal samples, over which a mean is an expectation."""
    quantiles = (np.arange(1000) + 0.5) / 1000
    spreads: NDArray[np.float64] = np.sqrt(stats.chi2.ppf(quantiles, pairs - 1) / (pairs - 1))
    return spreads


def _t_power(effect: float, pairs: int, comparisons: int) -> float:
    patterns = 2.0 ** min(pairs - 1, 52)
    level = math.floor(ALPHA / comparisons * patterns) / patterns
    critical = stats.t.ppf(1 - level / 2, pairs - 1)
    return float(stats.norm.cdf(effect * math.sqrt(pairs) - critical * _spreads(pairs)).mean())


def _equivalence_power(margin: float, pairs: int, comparisons: int) -> float:
    """Return the probability that two equal settings are called equivalent."""
    level = min(ALPHA / comparisons, ALPHA / 2)  # of the tests, and of the 95 % interval
    critical = stats.t.ppf(1 - level, pairs - 1)
    inside = 2 * stats.norm.cdf(margin * math.sqrt(pairs) - critical * _spreads(pairs)) - 1
    return float(np.clip(inside, 0, 1).mean())


def pairs_to_decide(margin: float, comparisons: int) -> int | None:
    """Return the pairs that decide, with a probability of ``POWER``, between no difference and one of the margin.

    Equal settings are then called equivalent, and settings that differ by the margin different.

    Returns:
        None if it takes more than ``MAX_PAIRS``.

    Example:
        >>> pairs_to_decide(1.0, comparisons=1)
        13
    """

    def decides(pairs: int) -> bool:
        if pairs < fewest_pairs(comparisons) or _equivalence_power(margin, pairs, comparisons) < POWER:
            return False
        return _power(margin, pairs, comparisons) >= POWER

    low, high = MIN_PAIRS - 1, MAX_PAIRS
    if not decides(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def describe(pairs: int, comparisons: int, margin: float, spread: float | None, origin: str) -> Iterator[str]:
    """Yield sentences: the least difference that the pairs can show, and the pairs that decide about the margin.

    Args:
        pairs: number of seeds that finished, or will run, in both settings.
        comparisons: number of comparisons for which p values are corrected.
        margin: the difference that does not matter.
        spread: the standard deviation of paired differences; None if nothing is known about it.
        origin: where the spread comes from.
    """
    seeds = f"{pluralize(pairs, 'pair')} of seeds"
    corrected = f", corrected for {comparisons} comparisons," if comparisons > 1 else ""
    effect = detectable(pairs, comparisons)
    if effect is None:
        least = min(1.0, comparisons * 2.0 ** (1 - pairs))
        yield (
            f"{seeds} cannot show any difference at {ALPHA}: the sign-flip p value{corrected} is at least {least:.3g}; "
            f"{fewest_pairs(comparisons)} pairs are the fewest."
        )
    else:
        size = f"{effect * spread:.2g}" if spread else f"{effect:.2g} standard deviations of the paired differences"
        yield f"{seeds} show a difference of {size} with {100 * POWER:.0f} % power at {ALPHA}{corrected.rstrip(',')}."
    if spread:
        needed = pairs_to_decide(margin / spread, comparisons)
        about = f"about {needed}" if needed else f"more than {MAX_PAIRS:,}"
        yield (
            f"To tell a difference of {margin:g} from none takes {about} pairs, where the standard deviation of paired "
            f"differences is {spread:.2g} {origin}."
        )
