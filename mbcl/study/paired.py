"""Paired tests of two settings over common seeds, and the rule by which a report claims something.

Letters: R samples, N pairs of seeds, P sign patterns. A difference is setting minus baseline with the same seed.

**The rule.** It is applied to one metric of a study, the headline, and to m comparisons with the baseline:

- *better* or *worse* (*higher* or *lower*): the sign-flip p value after Holm's correction is below 0.05, and the 95 %
  t interval lies on one side of 0.
- *no difference larger than D*: the p value of two one-sided t tests against D after Holm's correction is below 0.05,
  the 95 % t interval lies within (-D, D), and there are at least :data:`MIN_PAIRS` pairs.
- *undecided*: otherwise.

The interval is required in addition so that no verdict contradicts the interval beside it. Pairing by seed, intervals
over seeds and the probability of improvement follow Agarwal et al., "Deep Reinforcement Learning at the Edge of the
Statistical Precipice" (NeurIPS 2021), and Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks"
(MLSys 2021). The two one-sided tests are those of Schuirmann (J. Pharmacokinetics and Biopharmaceutics 15, 1987).
The sign-flip test is exact where differences are symmetric about 0 under the null hypothesis, as those of two equal
settings are: with Holm's correction at most 5 % of studies without any difference claim one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mbcl.seeding import numpy_generator

ALPHA = 0.05
EXACT_PAIRS = 16
"""Maximum number of pairs for which the sign-flip test enumerates all patterns; beyond it draws ``NUM_DRAWS``."""
NUM_DRAWS = 65_535
ROUNDING = 1e-12
"""Relative difference below which two values count as equal: summation order changes the last bits."""


def fewest_pairs(comparisons: int) -> int:
    """Return the fewest pairs from which one of several comparisons can be claimed at ``ALPHA``.

    The least sign-flip p value of N pairs is 2 / 2^N, and Holm's first step multiplies it by the comparisons.

    Example:
        >>> fewest_pairs(1), fewest_pairs(2), fewest_pairs(20)
        (6, 7, 10)
    """
    return math.floor(math.log2(comparisons / ALPHA)) + 2


MIN_PAIRS = fewest_pairs(1)
"""The fewest pairs for any claim. Five pairs give no sign-flip p value below 0.0625."""


def difference(value: float, reference: float) -> float:
    """Return the difference; 0 if it is only the rounding of one number that was computed in two ways."""
    result = value - reference
    return 0.0 if abs(result) <= ROUNDING * max(abs(value), abs(reference)) else result


@lru_cache(maxsize=8)
def _signs(num_pairs: int) -> NDArray[np.float64]:
    """Return sign patterns (P, N): every pattern up to a common sign, or ``NUM_DRAWS`` random ones."""
    if num_pairs > EXACT_PAIRS:
        bits = numpy_generator(0, "sign-flip", num_pairs).integers(2, size=(NUM_DRAWS, num_pairs))
    else:
        bits = np.arange(2 ** (num_pairs - 1))[:, None] >> np.arange(num_pairs) & 1
    return (1 - 2 * bits).astype(np.float64)


def sign_flip_p(differences_RN: ArrayLike) -> NDArray[np.float64]:
    """Return the two-sided p value (R,) of the sign-flip permutation test of the mean for every sample (R, N).

    It is the share of the 2^N patterns of signs whose sum has at least the size of the sum observed. Above
    ``EXACT_PAIRS`` pairs the share is estimated from random patterns with a fixed seed, and the pattern observed counts
    as one of them. The result does not depend on the order of the pairs or on a common factor.

    Example:
        >>> sign_flip_p([[1, 2, 3, 4, 5, 6], [1, 2, 3, -4, 5, 6]]).tolist()
        [0.03125, 0.21875]
    """
    values_RN = np.asarray(differences_RN, dtype=np.float64)
    # The order of the sizes makes sums, and with them random patterns, independent of the order of the pairs.
    sizes_RN = np.sort(np.abs(values_RN), axis=1)
    scale_R = np.maximum(sizes_RN.sum(axis=1), np.finfo(np.float64).tiny)
    observed_R = np.abs(values_RN.sum(axis=1)) / scale_R - ROUNDING
    count_R = np.zeros(len(values_RN))
    signs_PN = _signs(values_RN.shape[1])
    for start in range(0, len(signs_PN), 1024):
        sums_PR = np.abs(signs_PN[start : start + 1024] @ (sizes_RN / scale_R[:, None]).T)
        count_R += (sums_PR >= observed_R).sum(axis=0)
    drawn = int(values_RN.shape[1] > EXACT_PAIRS)
    p_R: NDArray[np.float64] = (count_R + drawn) / (len(signs_PN) + drawn)
    return p_R


def equivalence_p(differences: Sequence[float], margin: float) -> float:
    """Return the p value of Schuirmann's two one-sided t tests that the mean difference lies within the margin.

    Example:
        >>> round(equivalence_p([0.001, -0.002, 0.003, 0.0, -0.001, 0.002], margin=0.01), 5)
        3e-05
    """
    spread, mean = float(np.ptp(differences)), float(np.mean(differences))
    if spread <= ROUNDING * abs(mean):  # scipy's t test refuses a sample without spread
        return 0.0 if abs(mean) < margin else 1.0
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    return float(max(above, below))


def improvement(differences: Sequence[float], better: int) -> float:
    """Return the probability of improvement: the share of pairs in which the setting is better, ties as one half.

    ``better`` is 1 if higher is better, and -1 if lower is.

    Example:
        >>> improvement([0.1, 0.2, 0.0, -0.1], better=1)
        0.625
    """
    return float(np.mean(np.sign(differences) * better + 1)) / 2


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values by Holm's step-down procedure (Scandinavian Journal of Statistics 6, 1979), in the order given.

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
