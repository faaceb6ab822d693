"""The best settings are chosen on the validation split, and tuned settings are compared with tuned ones."""

from __future__ import annotations

import pytest
from report.studies import MRR, SHUFFLE, study, trial

from mbcl.report.answer import answer
from mbcl.study.record import Drawn, StudyRecord
from mbcl.study.settings import labels
from mbcl.study.statistics import compare, summarise

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


def test_answer_claims_nothing_on_the_metric_of_the_choice():
    record = tuned(metric=MRR)
    comparisons = compare(record, MRR)
    assert [(c.verdict, c.p, c.ci_low) for c in comparisons] == [("no claim (chosen by this metric)", None, None)]
    report = answer(record, summarise(record), comparisons, MRR)
    assert report.headline.startswith("Undecided:")
    assert f"not on {MRR}, which flatters the chosen" in " ".join(report.details)


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


def test_labels_shorten_drawn_rates_and_stay_unique():
    columns = [{"sampler": "shuffle", "optimizer.lr": lr} for lr in (0.42668550567811425, 0.4266899, 0.075)]
    assert labels(columns) == ["lr=0.4267 #0", "lr=0.4267 #1", "lr=0.075"]
