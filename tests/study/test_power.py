import numpy as np
import pytest
from scipy import stats

from mbcl.study.paired import equivalence_p, sign_flip_p
from mbcl.study.power import describe, detectable, pairs_to_decide


@pytest.mark.parametrize(("pairs", "comparisons"), [(6, 1), (7, 2), (8, 1), (8, 3), (11, 20), (15, 2)])
def test_the_stated_power_is_reached(pairs: int, comparisons: int) -> None:
    effect = detectable(pairs, comparisons)
    assert effect is not None
    samples_RN = np.random.default_rng(3).standard_normal((2000, pairs)) + effect
    low = stats.ttest_1samp(samples_RN, 0.0, axis=1).confidence_interval(0.95).low
    power = np.mean((sign_flip_p(samples_RN) * comparisons < 0.05) & (low > 0))
    # Both this share and the simulation behind the statement, of 4,000 samples, have an error.
    assert abs(power - 0.8) < 4 * np.sqrt(0.16 / 2000 + 0.16 / 4000)


def test_detectable_falls_with_pairs_and_rises_with_comparisons() -> None:
    effects = [detectable(pairs, 1) or np.inf for pairs in (5, 6, 8, 10, 20, 50, 2000)]
    assert effects == sorted(effects, reverse=True)
    effects = [detectable(20, comparisons) or np.inf for comparisons in (1, 2, 10, 100)]
    assert effects == sorted(effects)


@pytest.mark.parametrize("comparisons", [1, 2])
def test_equal_settings_are_called_equivalent_as_stated(comparisons: int) -> None:
    pairs = pairs_to_decide(1.0, comparisons)
    assert pairs is not None
    samples_RN = np.random.default_rng(4).standard_normal((1000, pairs))
    bound = stats.ttest_1samp(samples_RN, 0.0, axis=1).confidence_interval(0.95)
    inside = (bound.low > -1) & (bound.high < 1)
    share = np.mean([i and equivalence_p(s, 1.0) * comparisons < 0.05 for i, s in zip(inside, samples_RN, strict=True)])
    assert share > 0.8 - 4 * np.sqrt(0.16 / 1000)


@pytest.mark.parametrize("comparisons", [1, 2])
def test_settings_that_differ_by_the_margin_are_called_different_as_stated(comparisons: int) -> None:
    pairs = pairs_to_decide(1.0, comparisons)
    assert pairs is not None
    samples_RN = np.random.default_rng(5).standard_normal((1000, pairs)) + 1.0
    low = stats.ttest_1samp(samples_RN, 0.0, axis=1).confidence_interval(0.95).low
    share = np.mean((sign_flip_p(samples_RN) * comparisons < 0.05) & (low > 0))
    assert share > 0.8 - 4 * np.sqrt(0.16 / 1000)


def test_describe_states_what_seeds_can_show() -> None:
    few, decide = describe(3, 2, 0.01, 0.009, "here")
    assert few.startswith(
        "3 pairs of seeds cannot show any difference at 0.05: the sign-flip p value, corrected for 2 "
    )
    assert few.endswith("is at least 0.5; 7 pairs are the fewest.")
    assert decide.startswith("To tell a difference of 0.01 from none takes about ")
    (enough,) = describe(8, 1, 0.01, None, "")
    assert enough.startswith("8 pairs of seeds show a difference of 1.2 standard deviations of the paired differences ")
    assert enough.endswith("with 80 % power at 0.05.")
    assert "more than 1,000 pairs" in list(describe(8, 1, 1e-6, 1.0, "here"))[1]
