import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report.studies import MRR, SHUFFLE, SPECTRAL, study, trial
from scipy import stats

from mbcl.study.comparisons import compare
from mbcl.study.metric_glossary import direction
from mbcl.study.paired import equivalence_p, fewest_pairs, holm, improvement, sign_flip_p
from mbcl.study.record import Drawn, StudyRecord

samples = st.lists(st.integers(-1000, 1000).map(lambda i: i / 1024), min_size=2, max_size=8)


def brute_force(differences: list[float]) -> float:
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return sum(s >= abs(sum(differences)) for s in sums) / len(sums)


@given(samples)
def test_sign_flip_p_equals_all_sign_flips(differences: list[float]) -> None:
    # Multiples of 1/1024: sums are exact, so ties are ties.
    assert sign_flip_p([differences])[0] == pytest.approx(brute_force(differences), abs=1e-12)


@given(samples, st.randoms(), st.sampled_from([0.25, 3.0, 1e-9, 1e9]))
def test_sign_flip_p_ignores_order_side_and_scale(differences: list[float], rng, scale: float) -> None:
    shuffled = list(differences)
    rng.shuffle(shuffled)
    (p,) = sign_flip_p([differences])
    assert sign_flip_p([shuffled, [-d for d in differences], [d * scale for d in differences]]).tolist() == [p] * 3


def test_sign_flip_p_of_many_pairs_is_estimated() -> None:
    differences = np.random.default_rng(0).standard_normal(18) + 0.3
    (exact,) = [stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=2**18).pvalue]
    (p,) = sign_flip_p([differences])
    assert p == sign_flip_p([differences[::-1]])[0]
    assert abs(p - exact) < 5 * np.sqrt(exact * (1 - exact) / 65_535)


@given(samples, st.floats(0.001, 2.0))
def test_equivalence_p_equals_scipys_one_sided_tests(differences: list[float], margin: float) -> None:
    if np.ptp(differences) == 0:
        assert equivalence_p(differences, margin) == float(abs(differences[0]) >= margin)
        return
    low = stats.ttest_rel(np.array(differences) + margin, np.zeros(len(differences)), alternative="greater").pvalue
    high = stats.ttest_rel(np.array(differences) - margin, np.zeros(len(differences)), alternative="less").pvalue
    p = equivalence_p(differences, margin)
    assert p == pytest.approx(max(low, high), rel=1e-6, abs=1e-12)
    assert equivalence_p([-d for d in differences], margin) == pytest.approx(p, rel=1e-6, abs=1e-12)
    assert equivalence_p([4 * d for d in differences], 4 * margin) == pytest.approx(p, rel=1e-6, abs=1e-12)


def test_equivalence_p_equals_a_hand_value() -> None:
    # Mean 0, standard deviation sqrt(2/3), n 4: t = 1 / (sqrt(2/3) / 2) = sqrt(6), three degrees of freedom.
    assert equivalence_p([-1.0, 0.0, 0.0, 1.0], 1.0) == pytest.approx(stats.t.sf(6**0.5, 3), abs=1e-12)


@given(samples)
def test_improvement_mirrors_when_the_arms_are_swapped(differences: list[float]) -> None:
    assert improvement(differences, 1) == pytest.approx(1 - improvement([-d for d in differences], 1), abs=1e-12)
    assert improvement(differences, -1) == improvement([-d for d in differences], 1)


def test_fewest_pairs_is_the_least_number_below_the_level() -> None:
    for comparisons in range(1, 200):
        pairs = fewest_pairs(comparisons)
        assert comparisons * 2 / 2**pairs < 0.05 <= comparisons * 2 / 2 ** (pairs - 1)


def test_holm_equals_hand_values() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_between_raw_and_bonferroni_p_values(p_values: list[float]) -> None:
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, raw * len(p_values))


def record_of(values_SN: np.ndarray, **other) -> StudyRecord:
    """A study of shuffle and S - 1 other settings with N seeds."""
    trials = [
        trial(i * len(row) + seed, i, seed, SPECTRAL | {"k": i} if i else SHUFFLE, float(value))
        for i, row in enumerate(values_SN)
        for seed, value in enumerate(row)
    ]
    return study(trials, **other)


def false_claims(settings: int, seeds: int, studies: int) -> int:
    """The number of null studies with a claim of a difference on any metric."""
    generator = np.random.default_rng(seeds)
    count = 0
    for _ in range(studies):
        common = generator.normal(0.5, 0.02, seeds)  # what a seed does to all settings
        record = record_of(common + generator.normal(0.0, 0.01, (settings, seeds)))
        metrics = ("retrieval/mrr", "retrieval/top1", "retrieval/u2v/median_rank")
        assert all(direction(metric) for metric in metrics)
        count += any(c.differs for metric in metrics for c in compare(record, metric))
    return count


@pytest.mark.parametrize(("settings", "seeds", "studies"), [(2, 6, 200), (4, 8, 200)])
def test_at_most_one_null_study_in_twenty_claims_a_difference(settings: int, seeds: int, studies: int) -> None:
    assert false_claims(settings, seeds, studies) <= stats.binom.ppf(0.999, studies, 0.05)


@pytest.mark.slow
def test_at_most_one_null_study_in_twenty_claims_a_difference_in_many_studies() -> None:
    assert false_claims(4, 8, 3000) <= stats.binom.ppf(0.999, 3000, 0.05)
    assert false_claims(21, 10, 300) <= stats.binom.ppf(0.999, 300, 0.05)


def null_search(generator: np.random.Generator, candidates: int, baseline_candidates: int, seeds: int) -> StudyRecord:
    """A search in which all settings are equal; the search metric is the headline with noise."""
    trials = []
    for setting in range(candidates + baseline_candidates):
        block = SHUFFLE if setting < baseline_candidates else SPECTRAL
        for seed in range(seeds):
            value = generator.normal(0.5, 0.01)
            metrics = {MRR: value, "val/retrieval/mrr": value + generator.normal(0.0, 0.005)}
            parameters = {"sampler": block, "optimizer.lr": 0.1 + setting / 100}
            drawn = Drawn(point=0, number=setting, values={})
            trials.append(
                trial(len(trials), setting, seed, block, value, metrics=metrics, parameters=parameters, drawn=drawn)
            )
    return study(trials)


@pytest.mark.parametrize(("candidates", "baseline_candidates", "seeds"), [(20, 20, 3), (10, 10, 8), (18, 2, 8)])
def test_null_searches_claim_nothing(candidates, baseline_candidates, seeds) -> None:
    """The runs that choose the best of each also measure them, so even equal numbers are not tested."""
    generator = np.random.default_rng(1)
    comparisons = [
        c for _ in range(5) for c in compare(null_search(generator, candidates, baseline_candidates, seeds), MRR)
    ]
    assert {(c.candidates, c.baseline_candidates) for c in comparisons} == {(candidates, baseline_candidates)}
    assert {(c.ci_low, c.p, c.differs, c.n) for c in comparisons} == {(None, None, False, seeds)}


def test_false_equivalence_is_rare_where_the_difference_is_the_margin() -> None:
    generator = np.random.default_rng(2)
    wrong = 0
    for _ in range(300):
        values_SN = generator.normal(0.5, 0.003, (3, 10)) + np.array([[0.0], [0.01], [-0.01]])
        wrong += any("no difference" in c.verdict for c in compare(record_of(values_SN), MRR))
    assert wrong <= stats.binom.ppf(0.999, 300, 0.05)
