import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report.studies import EIGHT, FULL, MRR, OSGD, SHUFFLE, SPECTRAL, TOP1, grid, partial, study, trial
from scipy import stats

from mbcl.study.comparisons import compare
from mbcl.study.record import Stopped, StudyRecord
from mbcl.study.statistics import compared_metrics, estimate, primary_metrics, summarise

finite = st.floats(-1e6, 1e6, allow_subnormal=False)


def test_estimate_interval_equals_hand_values() -> None:
    # t(0.975, 2) = 4.302652730; mean 2, sd 1, n 3: 2 +- 4.302652730 / sqrt(3)
    three = estimate([1.0, 2.0, 3.0])
    assert three is not None
    assert (three.mean, three.sd, three.n) == (2.0, 1.0, 3)
    assert three.ci_low == pytest.approx(2 - 2.484137712, abs=1e-8)
    assert three.ci_high == pytest.approx(2 + 2.484137712, abs=1e-8)
    # t(0.975, 4) = 2.776445105; mean 3, sd sqrt(2.5)
    five = estimate([5.0, 1.0, 4.0, 2.0, 3.0])
    assert five is not None
    assert five.ci_high == pytest.approx(3 + 2.776445105 * math.sqrt(2.5 / 5), abs=1e-8)


def test_estimate_of_one_seed_has_no_interval_and_of_none_is_none() -> None:
    one = estimate([0.5])
    assert one is not None
    assert (one.mean, one.sd, one.n, one.ci_low, one.ci_high) == (0.5, None, 1, None, None)
    assert estimate([]) is None


@given(st.lists(finite, min_size=2, max_size=9), st.randoms())
def test_estimate_contains_its_mean_and_ignores_order(values: list[float], rng: random.Random) -> None:
    expected = estimate(values)
    assert expected is not None
    assert expected.ci_low is not None
    assert expected.ci_high is not None
    assert expected.ci_low <= expected.mean <= expected.ci_high
    assert min(values) <= expected.mean <= max(values)
    shuffled = list(values)
    rng.shuffle(shuffled)
    assert estimate(shuffled) == expected


# Whole numbers: sums of two patterns of signs are equal or differ by far more than what counts as rounding.
whole = st.integers(-1000, 1000).map(float)


@given(st.lists(st.tuples(whole, whole), min_size=2, max_size=8, unique=True))
def test_compare_equals_scipys_paired_tests(pairs: list[tuple[float, float]]) -> None:
    differences = [b - a for a, b in pairs]
    scale = max(abs(x) for pair in pairs for x in pair)
    if max(differences) - min(differences) <= 1e-6 * scale:
        return  # scipy itself warns that such differences lose all their digits
    record = grid({"shuffle": [a for a, _ in pairs], "spectral": [b for _, b in pairs]})
    (comparison,) = compare(record, MRR)
    expected = stats.ttest_rel([b for _, b in pairs], [a for a, _ in pairs])
    low, high = expected.confidence_interval(0.95)
    assert comparison.n == len(pairs)
    permuted = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=1000)
    assert comparison.p == pytest.approx(permuted.pvalue, rel=1e-9)
    assert comparison.ci_low == pytest.approx(low, rel=1e-6, abs=1e-6 * scale)
    assert comparison.ci_high == pytest.approx(high, rel=1e-6, abs=1e-6 * scale)
    assert comparison.p_holm == comparison.p
    assert comparison.differs == (comparison.p < 0.05 and (comparison.ci_low > 0 or comparison.ci_high < 0))
    assert comparison.n >= 6 or comparison.verdict == "undecided"


def test_summarise_counts_finished_seeds_only() -> None:
    summaries = summarise(partial())
    assert [s.n for s in summaries] == [2, 1, 2]
    assert [s.metrics[MRR].n for s in summaries] == [2, 1, 2]
    assert summaries[0].statuses == {"finished": 2, "failed": 1}
    assert summaries[1].statuses == {"finished": 1, "stopped": 1, "pending": 1}
    assert summaries[2].statuses == {"pending": 1, "finished": 2}


@given(st.lists(st.sampled_from(["finished", "stopped", "failed", "pending", "running"]), min_size=1, max_size=7))
def test_summarise_n_is_the_number_of_finished_seeds(statuses: list[str]) -> None:
    record = study([trial(i, 0, i, SHUFFLE, 0.5 + i / 100, status=status) for i, status in enumerate(statuses)])
    (summary,) = summarise(record)
    count = statuses.count("finished")
    assert summary.n == count
    assert (summary.metrics[MRR].n if count else 0) == count
    assert (MRR in summary.metrics) == bool(count)


def test_summarise_and_compare_ignore_the_order_of_mappings() -> None:
    record = partial()
    reversed_record = record.model_copy(update={"trials": dict(reversed(record.trials.items()))})
    for t in reversed_record.trials.values():
        t.metrics = dict(reversed(t.metrics.items()))
    assert summarise(reversed_record) == summarise(record)
    assert compare(reversed_record, MRR) == compare(record, MRR)


def test_summarise_skips_missing_and_infinite_values() -> None:
    record = grid({"shuffle": [0.5, 0.7, 0.9]})
    records = list(record.trials.values())
    records[0].metrics[MRR] = None
    records[1].metrics[MRR] = math.inf
    (summary,) = summarise(record)
    assert (summary.metrics[MRR].n, summary.metrics[MRR].mean) == (1, 0.9)
    assert summary.metrics[TOP1].n == 3


def test_compare_gives_verdicts() -> None:
    osgd, spectral = compare(grid(EIGHT), MRR)
    assert (osgd.verdict, spectral.verdict) == ("no difference larger than 0.01", "better")
    assert (spectral.p, spectral.p_holm, spectral.improvement) == (2 / 256, 4 / 256, 1.0)
    assert [c.verdict for c in compare(grid(EIGHT, equivalence=0.0001), MRR)] == ["undecided", "better"]
    assert {c.verdict for c in compare(grid(EIGHT), TOP1)} == {"exploratory"}
    assert {c.p for c in compare(grid(EIGHT), TOP1)} == {None}
    assert {c.verdict for c in compare(grid(FULL), MRR)} == {"undecided"}, "three seeds show nothing"
    mirrored = compare(grid({"shuffle": EIGHT["spectral"], "spectral": EIGHT["shuffle"]}), MRR)
    assert mirrored[0].verdict == "worse"
    ranks = grid(EIGHT)
    for t in ranks.trials.values():
        t.metrics = {"retrieval/u2v/mean_rank": t.metrics[MRR], "train/loss": t.metrics[MRR]}
    assert compare(ranks, "retrieval/u2v/mean_rank")[1].verdict == "worse"  # a higher rank is worse
    assert compare(ranks, "train/loss")[1].verdict == "exploratory"
    for t in ranks.trials.values():
        t.metrics = {"val/retrieval/mrr": None, "train/loss": t.metrics["train/loss"]}
    assert compare(ranks, "train/loss")[1].verdict == "higher"  # a training loss does not measure quality


def test_compare_claims_a_difference_from_six_pairs_on() -> None:
    for pairs in range(2, 9):
        values = {name: EIGHT[name][:pairs] for name in ("shuffle", "spectral")}
        (comparison,) = compare(grid(values), MRR)
        assert comparison.p == 2 / 2**pairs
        assert comparison.verdict == ("better" if pairs >= 6 else "undecided")


def test_compare_of_a_setting_with_itself_claims_no_difference() -> None:
    (comparison,) = compare(grid({"shuffle": EIGHT["osgd"], "spectral": EIGHT["osgd"]}), MRR)
    assert (comparison.p, comparison.verdict) == (1.0, "no difference larger than 0.01")


def test_settings_of_a_search_have_no_interval() -> None:
    searched = summarise(grid(EIGHT, searched=True))
    assert {s.metrics[MRR].ci_low for s in searched} == {None}
    assert [s.metrics[MRR].mean for s in searched] == [s.metrics[MRR].mean for s in summarise(grid(EIGHT))]


def test_compare_pairs_seeds_that_finished_in_both() -> None:
    (comparison,) = compare(grid({"shuffle": [0.8, None, 0.9, 0.7], "spectral": [None, 0.9, 0.95, 0.8]}), MRR)
    assert comparison.n == 2
    assert comparison.difference == pytest.approx(0.075)
    (none,) = compare(grid({"shuffle": [0.8, None], "spectral": [None, 0.9]}), MRR)
    assert (none.n, none.difference, none.p, none.p_holm) == (0, None, None, None)
    assert none.verdict == "not comparable (no seed finished in both)"
    (one,) = compare(grid({"shuffle": [0.1], "spectral": [0.9]}), MRR)
    assert (one.ci_low, one.p, one.verdict) == (None, None, "undecided")


def test_compare_ignores_rounding_errors() -> None:
    # 0.1 + 0.2 and 0.3 differ in the last bit: three such pairs must not exclude 0.
    (comparison,) = compare(grid({"shuffle": [0.3, 0.3, 0.3], "spectral": [0.1 + 0.2] * 3}), MRR)
    assert (comparison.difference, comparison.p, comparison.verdict) == (0.0, 1.0, "undecided")
    (same,) = compare(grid({"shuffle": [0.25, 0.5], "spectral": [0.5, 0.75]}), MRR)
    assert (same.ci_low, same.ci_high) == (0.25, 0.25)


def test_compare_matches_the_baseline_by_alias_block_and_other_keys() -> None:
    assert len(compare(grid(FULL, baseline={"sampler": "s"}), MRR)) == 2
    assert [c.baseline for c in compare(grid(FULL, baseline={"sampler": {"k": 4}}), MRR)] == [2, 2]
    assert [c.baseline for c in compare(grid(FULL, baseline={"sampler.k": 20}), MRR)] == [1, 1]
    assert compare(grid(FULL, baseline={}), MRR) == []
    assert compare(grid(FULL, baseline={"sampler": "full"}), MRR) == []
    assert len(compare(grid(FULL, baseline={"sampler": "shuffle", "data.name": "digits"}), MRR)) == 2

    trials = []
    for size in (16, 32):
        for block in (SHUFFLE, SPECTRAL):
            parameters = {"train.batch_size": size, "sampler": block}
            trials += [
                trial(len(trials), len(trials) // 2, s, block, 0.5 + s / 10, parameters=parameters) for s in range(2)
            ]
    pairs = [(c.label, c.baseline_label) for c in compare(study(trials), MRR)]
    assert pairs == [
        ("spectral (k=4), batch_size=16", "shuffle, batch_size=16"),
        ("spectral (k=4), batch_size=32", "shuffle, batch_size=32"),
    ]


def pairs_of(parameters: list[dict], baseline: dict) -> list[tuple[int, int]]:
    """The pairs (setting, baseline) that are compared, for settings with these swept keys."""
    trials = [
        trial(2 * i + seed, i, seed, p.get("sampler", SHUFFLE), 0.5 + i / 10 + seed / 100, parameters=p)
        for i, p in enumerate(parameters)
        for seed in range(2)
    ]
    comparisons = compare(study(trials, baseline=baseline), MRR)
    assert not any(c.chosen_by for c in comparisons)
    return [(c.setting, c.baseline) for c in comparisons]


def test_compare_pairs_differ_only_in_keys_of_the_baseline() -> None:
    rates = [{"optimizer.lr": lr, "optimizer.momentum": m} for lr in (0.1, 0.2) for m in (0.8, 0.9)]
    assert pairs_of(rates, {"optimizer.lr": 0.1}) == [(2, 0), (3, 1)]
    rates = [{"optimizer": {"name": "sgd", **{k.partition(".")[2]: v for k, v in p.items()}}} for p in rates]
    assert pairs_of(rates, {"optimizer": {"lr": 0.1}}) == [(2, 0), (3, 1)]
    assert pairs_of(rates, {"optimizer": {"lr": 0.1, "momentum": 0.8}}) == [(1, 0), (2, 0), (3, 0)]
    sizes = [{"train.batch_size": b, "train.epochs": e} for b in (16, 32) for e in (1, 2)]
    assert pairs_of(sizes, {"train.batch_size": 16}) == [(2, 0), (3, 1)]
    blocks = [{"sampler": block, "train.epochs": e} for block in (SHUFFLE, SPECTRAL) for e in (1, 2)]
    assert pairs_of(blocks, {"sampler": {"k": 4}}) == [(0, 2), (1, 3)], "shuffle has no k that could agree"


def test_primary_metrics_fall_back_to_other_metrics() -> None:
    assert primary_metrics(grid(FULL)) == [MRR, TOP1]
    other = study([trial(0, 0, 0, OSGD, 0.5, metrics={"knn/top1": 0.4, "val/retrieval/mrr": 0.3})])
    assert primary_metrics(other) == ["knn/top1"], "the test split decides"
    values = {"corrupted/clean/mean/3/top1": 0.1, "corrupted/clean/fog/3/top1": 0.1, "probe/top1": 0.2, "knn/top1": 0.3}
    values |= {"repr/alignment": 1.0, "val/retrieval/mrr": 0.5, "baseline/pixels/knn/top1": 0.9, "plan/lift": 1.0}
    summary_metrics = ["knn/top1", "probe/top1", "corrupted/clean/mean/3/top1"]
    all_metrics = study([trial(0, 0, 0, OSGD, 0.5, metrics=values)])
    assert primary_metrics(all_metrics) == summary_metrics
    assert compared_metrics(all_metrics) == [*summary_metrics, "corrupted/clean/fog/3/top1", "repr/alignment"]
    repr_alone = {"repr/uniformity": -1.0, "repr/alignment": 1.0, "val/retrieval/mrr": 0.5}
    assert primary_metrics(study([trial(0, 0, 0, OSGD, 0.5, metrics=repr_alone)])) == ["repr/alignment"]
    validation = study([trial(0, 0, 0, OSGD, 0.5, metrics={"a": 1.0, "val/retrieval/mrr": 0.3})])
    assert primary_metrics(validation) == compared_metrics(validation) == ["val/retrieval/mrr"]
    assert primary_metrics(study([trial(0, 0, 0, OSGD, 0.5, metrics={"knn/top1": 0.4, "a": 1.0})])) == ["knn/top1"]
    earlier = {"retrieval/v2u/top1": 0.5, "retrieval/u2v/top1": 0.4, "retrieval/u2v/mrr": 0.6}
    of_mbcl_02 = study([trial(0, 0, 0, OSGD, 0.5, metrics=earlier)])
    assert primary_metrics(of_mbcl_02) == ["retrieval/u2v/top1", "retrieval/v2u/top1"]
    assert primary_metrics(study([])) == []
    assert primary_metrics(study([trial(0, 0, 0, OSGD)])) == []


def test_nothing_is_claimed_where_divergence_chose_the_seeds() -> None:
    values = {"shuffle": [*EIGHT["shuffle"], 0.8], "spectral": [*EIGHT["spectral"], None]}
    record = grid(values)
    (comparison,) = compare(record, MRR)
    assert (comparison.verdict, comparison.diverged) == ("better", 0), "a seed that is still to come is no result"
    last = list(record.trials.values())[-1]
    last.status, last.error = "failed", "the process was lost"
    assert compare(record, MRR)[0].verdict == "better", "neither is a crash"
    last.diverged = True
    (comparison,) = compare(record, MRR)
    assert (comparison.verdict, comparison.n, comparison.ci_low) == ("no claim (1 seed diverged)", 8, None)


def test_the_seed_of_early_stopping_takes_no_part_in_comparisons() -> None:
    record = grid({"shuffle": EIGHT["shuffle"], "osgd": [None] * 8, "spectral": EIGHT["spectral"]})
    for key in list(record.trials)[8:16]:
        stopped = Stopped(by="asha", epoch=2, of=4, metric="val/retrieval/mrr", first_seed=0)
        record.trials[key] = record.trials[key].model_copy(update={"status": "stopped", "stopped": stopped})
    spectral = compare(record, MRR)[-1]
    assert spectral.n == 7
    assert spectral.differences == pytest.approx(
        [b - a for a, b in zip(EIGHT["shuffle"][1:], EIGHT["spectral"][1:], strict=True)]
    )
    alone = compare(raced_on_one_seed(), MRR)[-1]
    assert (alone.n, alone.verdict, alone.p) == (1, "undecided", None)


def raced_on_one_seed() -> StudyRecord:
    record = grid({"shuffle": [0.5], "osgd": [None], "spectral": [0.6]})
    stopped = Stopped(by="asha", epoch=2, of=4, metric="val/retrieval/mrr", first_seed=0)
    key = list(record.trials)[1]
    record.trials[key] = record.trials[key].model_copy(update={"status": "stopped", "stopped": stopped})
    return record
