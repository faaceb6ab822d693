"""What is best goes by the validation split, and tuned settings are compared with tuned ones."""

from __future__ import annotations

import pytest
from report.studies import SHUFFLE, TOP1, study, trial

from mbcl.report.answer import answer, second_opinion
from mbcl.study.record import Drawn, StudyRecord
from mbcl.study.settings import labels
from mbcl.study.statistics import compare, summarise

VAL = "val/retrieval/top1"
SPECTRAL = {"name": "spectral", "k": 4}


def tuned(objectives: tuple[str, ...] = ("simclr",), **other) -> StudyRecord:
    """Two drawn rates a sampler (and objective), two seeds; validation and test rank the rates the other way round."""
    trials = []
    for objective in objectives:
        for block, offset in ((SHUFFLE, 0.0), (SPECTRAL, 0.1)):
            for draw in range(2):
                setting = len(trials) // 2
                for seed in range(2):
                    metrics = {TOP1: 0.5 + offset - draw / 10 + seed / 100, VAL: 0.3 + draw / 10}
                    lr = 0.1 + setting / 100
                    parameters = {"sampler": block, "optimizer.lr": lr} | (
                        {"objective": {"name": objective}} if len(objectives) > 1 else {}
                    )
                    found = trial(len(trials), setting, seed, block, 0.5, metrics=metrics, parameters=parameters)
                    trials.append(found.model_copy(update={"objective": objective}))
    return study(trials, **other)


def test_the_best_of_each_kind_by_validation_are_compared():
    record = tuned()
    (comparison,) = compare(record, TOP1)
    assert comparison.chosen
    assert (comparison.setting, comparison.baseline) == (3, 1), "worst by the test split, best by validation"
    assert comparison.difference == pytest.approx(0.1)
    assert comparison.n == 2
    (lowest,) = compare(tuned(mode="min"), TOP1)
    assert (lowest.setting, lowest.baseline) == (2, 0)


def test_drawn_values_that_agree_by_chance_do_not_decide_what_is_compared():
    record = tuned()
    for found in record.trials.values():
        found.drawn = Drawn(point=0, number=0, values={})
        if found.setting == 2:
            found.parameters["optimizer.lr"] = 0.1  # as setting 0
    (comparison,) = compare(record, TOP1)
    assert comparison.chosen
    assert (comparison.setting, comparison.baseline) == (3, 1)


def test_each_objective_has_its_own_baseline():
    pairs = {(c.setting, c.baseline) for c in compare(tuned(("simclr", "dcl")), TOP1)}
    assert pairs == {(3, 1), (7, 5)}


def test_what_has_not_finished_is_not_chosen():
    record = tuned()
    for key in list(record.trials)[6:8]:
        record.trials[key] = record.trials[key].model_copy(update={"status": "stopped", "metrics": {}})
    assert [(c.setting, c.baseline) for c in compare(record, TOP1)] == [(2, 1)]
    for key in list(record.trials)[:4]:
        record.trials[key] = record.trials[key].model_copy(update={"status": "failed", "metrics": {}})
    assert compare(record, TOP1) == []


def test_one_lucky_seed_does_not_beat_a_mean_over_all():
    record = tuned()
    lucky, unlucky = list(record.trials)[6:8]
    record.trials[lucky].metrics[VAL] = 0.99
    record.trials[unlucky] = record.trials[unlucky].model_copy(update={"status": "failed", "metrics": {}})
    assert [(c.setting, c.baseline) for c in compare(record, TOP1)] == [(2, 1)]


def test_the_answer_says_how_they_were_chosen():
    record = tuned()
    found = answer(record, summarise(record), compare(record, TOP1), TOP1)
    assert any(f"best settings of each sampler and objective by {VAL}" in sentence for sentence in found.details)
    assert any(f"{TOP1} took no part in the choice" in sentence for sentence in found.details)


def test_no_difference_is_claimed_in_what_the_settings_were_chosen_by():
    record = tuned(metric=TOP1)
    for each in record.trials.values():  # a clear difference, with some spread
        each.metrics[TOP1] += (each.sampler == "spectral") * each.seed / 1000
    comparisons = compare(record, TOP1)
    assert all(c.excludes_zero and c.circular and not c.constant and c.p_holm < 0.05 for c in comparisons)
    found = answer(record, summarise(record), comparisons, TOP1)
    assert found.headline == f"No setting is shown to differ from shuffle, lr=0.1 on {TOP1}."
    text = " ".join(found.details)
    assert f"since {TOP1} is what they were chosen by, it flatters them" in text
    assert "took no part" not in text
    assert "Holm" not in text
    assert "Differences measured: spectral (k=4), lr=0.12" in text
    assert "better" not in second_opinion(comparisons)


def test_without_a_baseline_the_best_goes_by_validation():
    record = tuned(baseline={})
    found = answer(record, summarise(record), compare(record, TOP1), TOP1)
    assert found.headline.startswith(f"The best setting by {VAL} is shuffle, lr=0.11: {TOP1} 0.4050")


def test_drawn_rates_are_short_in_labels_and_still_differ():
    columns = [{"sampler": "shuffle", "optimizer.lr": lr} for lr in (0.42668550567811425, 0.4266899, 0.075)]
    assert labels(columns) == ["lr=0.4267 #0", "lr=0.4267 #1", "lr=0.075"]
