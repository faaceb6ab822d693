"""The best settings are chosen on the validation split, and tuned settings are compared with tuned ones."""

from __future__ import annotations

import numpy as np
import pytest
from report.studies import MRR, SHUFFLE, study, trial
from scipy import stats

from mbcl.report.answer import answer
from mbcl.study.comparisons import compare
from mbcl.study.record import Drawn, StudyRecord
from mbcl.study.settings import labels
from mbcl.study.statistics import summarise

VAL = "val/retrieval/mrr"
SPECTRAL = {"name": "spectral", "k": 4}


def tuned(objectives: tuple[str, ...] = ("simclr",), **other) -> StudyRecord:
    """Two drawn rates for each sampler (and objective), two seeds; validation and test rank the rates oppositely."""
    trials = []
    for objective in objectives:
        for block, offset in ((SHUFFLE, 0.0), (SPECTRAL, 0.1)):
            for draw in range(2):
                setting = len(trials) // 2
                for seed in range(2):
                    metrics = {MRR: 0.5 + offset - draw / 10 + seed / 100, VAL: 0.3 + draw / 10}
                    lr = 0.1 + setting / 100
                    parameters = {"sampler": block, "optimizer.lr": lr} | (
                        {"objective": {"name": objective}} if len(objectives) > 1 else {}
                    )
                    record = trial(len(trials), setting, seed, block, 0.5, metrics=metrics, parameters=parameters)
                    trials.append(record.model_copy(update={"objective": objective}))
    return study(trials, **other)


def test_compare_takes_the_best_of_each_kind_by_validation():
    record = tuned()
    (comparison,) = compare(record, MRR)
    assert comparison.chosen_by
    assert (comparison.setting, comparison.baseline) == (3, 1), "worst by the test split, best by validation"
    assert comparison.difference == pytest.approx(0.1)
    assert comparison.n == 2
    (lowest,) = compare(tuned(mode="min"), MRR)
    assert (lowest.setting, lowest.baseline) == (2, 0)


def test_compare_ignores_drawn_values_that_agree_by_chance():
    record = tuned()
    for each in record.trials.values():
        each.drawn = Drawn(point=0, number=0, values={})
        if each.setting == 2:
            each.parameters["optimizer.lr"] = 0.1  # as setting 0
    (comparison,) = compare(record, MRR)
    assert comparison.chosen_by
    assert (comparison.setting, comparison.baseline) == (3, 1)


def test_compare_has_a_baseline_for_each_objective():
    pairs = {(c.setting, c.baseline) for c in compare(tuned(("simclr", "dcl")), MRR)}
    assert pairs == {(3, 1), (7, 5)}


def test_compare_chooses_finished_settings_only():
    record = tuned()
    for key in list(record.trials)[6:8]:
        record.trials[key] = record.trials[key].model_copy(update={"status": "stopped", "metrics": {}})
    assert [(c.setting, c.baseline) for c in compare(record, MRR)] == [(2, 1)]
    for key in list(record.trials)[:4]:
        record.trials[key] = record.trials[key].model_copy(update={"status": "failed", "metrics": {}})
    assert compare(record, MRR) == []


def test_compare_chooses_by_the_mean_over_all_seeds():
    record = tuned()
    lucky, unlucky = list(record.trials)[6:8]
    record.trials[lucky].metrics[VAL] = 0.99
    record.trials[unlucky] = record.trials[unlucky].model_copy(update={"status": "failed", "metrics": {}})
    assert [(c.setting, c.baseline) for c in compare(record, MRR)] == [(2, 1)]


def test_answer_explains_how_settings_were_chosen():
    record = tuned()
    text = answer(record, summarise(record), compare(record, MRR), MRR)
    assert any(f"best settings of each sampler and objective by {VAL}" in sentence for sentence in text.details)
    assert any("of 2 against 2" in sentence for sentence in text.details)


@pytest.mark.parametrize("metric", [VAL, MRR])
def test_nothing_is_claimed_of_settings_that_the_runs_themselves_have_chosen(metric):
    record = tuned(metric=metric)
    comparisons = compare(record, MRR)
    assert [(c.verdict, c.p, c.ci_low) for c in comparisons] == [
        ("no claim (chosen by the runs that measure them)", None, None)
    ]
    report = answer(record, summarise(record), comparisons, MRR)
    assert report.headline.startswith("Undecided:")
    assert "so nothing is tested" in " ".join(report.details)


def test_the_control_of_a_chosen_setting_gets_no_claim():
    record = tuned()
    for seed in range(2):
        number = len(record.trials)
        longer = {"sampler": dict(SHUFFLE), "train.epochs": 14}
        control = trial(number, 4, seed, SHUFFLE, 0.4 + seed / 100, parameters=longer, is_control=True)
        record.trials[f"{number:03d}-aa"] = control
    for each in record.trials.values():
        each.equal_passes = 4 if each.setting in (2, 3) else None
    _, passes = compare(record, MRR)
    assert (passes.setting, passes.baseline, passes.control) == (3, 4, "equal_passes")
    assert (passes.verdict, passes.ci_low) == ("no claim (best of 2 against best of 1)", None)


def test_an_adaptive_search_is_not_tested_against_a_single_baseline():
    record = tuned()
    for key in list(record.trials)[2:4]:
        del record.trials[key]
    for each in record.trials.values():
        each.drawn = Drawn(point=each.setting // 2, number=0, values={})
    (comparison,) = compare(record, MRR)
    assert (comparison.setting, comparison.baseline) == (3, 0)
    assert (comparison.verdict, comparison.ci_low) == ("no claim (best of 2 against best of 1)", None)


def best_of_equal_ones(rng: np.random.Generator, equal: int, shared: float) -> StudyRecord:
    """``spectral`` in ``equal`` settings as good as the one good setting of ``shuffle``, which has as many.

    Validation and test values of a run share a part of their variance.
    """
    trials = []
    for block in (SHUFFLE, SPECTRAL):
        for draw in range(equal):
            bad = block is SHUFFLE and draw > 0
            for seed in range(8):
                run, val, test = rng.normal(0, 0.01, size=3)
                values = {VAL: val, MRR: test}
                metrics = {
                    key: 0.5 - 0.2 * bad + shared**0.5 * run + (1 - shared) ** 0.5 * own for key, own in values.items()
                }
                setting = len(trials) // 8
                parameters = {"sampler": block, "optimizer.lr": 0.1 + setting / 100}
                trials.append(trial(len(trials), setting, seed, block, 0.5, metrics=metrics, parameters=parameters))
    return study(trials)


def test_without_the_rule_the_best_of_more_equal_settings_would_be_called_better():
    """The reason for the rule: equal numbers of candidates are not enough, nor is another metric than the choice's."""
    rng = np.random.default_rng(0)
    excluded = 0
    for _ in range(300):
        (comparison,) = compare(best_of_equal_ones(rng, equal=10, shared=0.8), MRR)
        assert (comparison.candidates, comparison.baseline_candidates) == (10, 10)
        assert not comparison.differs
        excluded += float(stats.ttest_1samp(comparison.differences, 0, alternative="greater").pvalue) < 0.025
    assert excluded > stats.binom.isf(1e-4, 300, 0.025), "more often than a test of fixed settings may"


def test_unequal_numbers_of_candidates_get_no_claim():
    record = tuned()
    for key in list(record.trials)[4:6]:  # one of two spectral settings has failed
        record.trials[key] = record.trials[key].model_copy(update={"status": "failed", "metrics": {}})
    (comparison,) = compare(record, MRR)
    assert (comparison.candidates, comparison.baseline_candidates) == (1, 2)
    assert (comparison.verdict, comparison.p, comparison.ci_low) == (
        "no claim (best of 1 against best of 2)",
        None,
        None,
    )
    report = answer(record, summarise(record), [comparison], MRR)
    assert report.headline.startswith("Undecided:")
    assert "of 1 against 2" in " ".join(report.details)


def test_answer_without_baseline_names_the_best_by_validation():
    record = tuned(baseline={})
    report = answer(record, summarise(record), compare(record, MRR), MRR)
    assert report.headline.startswith(f"The best setting by {VAL} is shuffle, lr=0.11: {MRR} 0.4050")


def test_answer_ranks_settings_with_the_most_seeds_on_the_metric_of_the_search():
    record = tuned(baseline={}, metric=MRR)
    lucky, unlucky = list(record.trials)[6:8]
    record.trials[lucky].metrics[MRR] = 0.99
    record.trials[unlucky] = record.trials[unlucky].model_copy(update={"status": "failed", "metrics": {}})
    report = answer(record, summarise(record), compare(record, MRR), MRR)
    assert report.headline.startswith(f"The highest mean {MRR} is 0.6050, for spectral"), report.headline
    assert "lr=0.12" in report.headline, "not the setting whose other seed failed"


def test_labels_shorten_drawn_rates_and_stay_unique():
    columns = [{"sampler": "shuffle", "optimizer.lr": lr} for lr in (0.42668550567811425, 0.4266899, 0.075)]
    assert labels(columns) == ["lr=0.4267 #0", "lr=0.4267 #1", "lr=0.075"]
