"""Gains by swept keys and measured metrics, against pandas and SciPy on the rows of ``results.csv``."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report.grids import TAUS, temperatures
from report.studies import EIGHT, MRR, SHUFFLE, grid, study, trial
from scipy import stats

from mbcl.report.tables import results_csv
from mbcl.study.comparisons import EQUAL_PASSES, EQUAL_STEPS, compare
from mbcl.study.gains import gains_by_key, gains_by_metric
from mbcl.study.record import Drawn, StudyRecord


def frame(record: StudyRecord) -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.read_csv(io.StringIO(results_csv(record)))


def values_by_seed(table: Any, **wanted: Any) -> Any:
    for key, value in wanted.items():
        column = key.replace("__", ".")
        table = table[table[column].isna() if value is None else table[column] == value]
    return table.set_index("seed")[MRR]


def test_a_line_has_the_paired_differences_of_results_csv() -> None:
    record = temperatures()
    table = frame(record)
    (found,) = gains_by_key(record)
    assert (found.key, found.tied) == ("objective.temperature", ("sampler.temperature",))
    assert [(line.label, line.control) for line in found.lines] == [
        (f"{name} (pool=128)", control) for name in ("refined", "chain") for control in (EQUAL_STEPS, EQUAL_PASSES)
    ]
    for line in found.lines:
        assert [value for value, _ in line.points] == list(TAUS)
        for tau, gain in line.points:
            epochs = None if line.control == EQUAL_STEPS else 14
            ours = values_by_seed(table, sampler=line.label.split()[0], objective__temperature=tau)
            theirs = values_by_seed(table, sampler="shuffle", objective__temperature=tau, train__epochs=epochs)
            differences = (ours - theirs).dropna()
            interval = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
            assert gain.n == len(differences) == 8
            expected = (differences.mean(), interval.low, interval.high)
            assert (gain.difference, gain.ci_low, gain.ci_high) == pytest.approx(expected, abs=1e-12)


def community(value: int | None, seed: int, ordinal: int, setting: int) -> Any:
    block = SHUFFLE if value is None else {"name": "refined", "pool": 64, "community": value}
    return trial(ordinal, setting, seed, block, 0.5 + (value or 0) / 100 + seed / 1000)


def test_settings_of_a_key_of_the_sampler_alone_have_one_baseline() -> None:
    values = (None, 1, 4, 16, 32)
    record = study([community(v, seed, 3 * i + seed, i) for i, v in enumerate(values) for seed in range(3)])
    (found,) = gains_by_key(record)
    (line,) = found.lines
    assert (found.key, line.label, found.tied) == ("sampler.community", "refined (pool=64)", ())
    assert [(value, round(gain.difference or 0, 9)) for value, gain in line.points] == [
        (1, 0.01),
        (4, 0.04),
        (16, 0.16),
        (32, 0.32),
    ]
    assert {gain.baseline for _, gain in line.points} == {0}


def test_a_setting_without_a_number_is_named_instead() -> None:
    record = study([community(v, seed, 2 * i + seed, i) for i, v in enumerate((None, 1, 4, 16)) for seed in range(2)])
    whole = {"name": "refined", "pool": 64, "community": None}
    for seed in range(2):
        record.trials[f"{8 + seed:03d}-aa"] = trial(8 + seed, 4, seed, whole, 0.7)
    (found,) = gains_by_key(record)
    assert [value for value, _ in found.lines[0].points] == [1, 4, 16]
    assert found.without == ("refined (pool=64, community=null)",)


def test_arms_with_chosen_nuisance_values_are_related_to_the_keys_that_are_left() -> None:
    """A temperature that each arm chose for itself, and what is tied to it, tells no settings apart."""
    trials = []
    sizes = (8, 16, 32)
    for confirmed in (False, True):
        for arm, (size, name) in enumerate(itertools.product(sizes, ("shuffle", "spectral"))):
            for tau in (0.1, 0.2) if not confirmed else (0.1 if size > 8 else 0.2,):
                for seed in (100,) if not confirmed else range(2):
                    setting = (12 + arm) if confirmed else 2 * arm + (tau > 0.1)
                    block = {"name": name, "k": 4, "temperature": tau} if name == "spectral" else {"name": name}
                    found = trial(len(trials), setting, seed, block, 0.5 + size / 1000 * (name == "spectral"))
                    found.parameters["train.batch_size"] = size
                    found.arm, found.stage = arm, "confirmation" if confirmed else "tuning"
                    found.nuisance = {"objective.temperature": tau}
                    trials.append(found)
    record = study(trials, nuisance=["objective.temperature"])
    (found_gains,) = gains_by_key(record)
    (line,) = found_gains.lines
    assert (found_gains.key, found_gains.tied, line.label) == ("train.batch_size", (), "spectral (k=4)")
    assert [(value, round(gain.difference or 0, 9)) for value, gain in line.points] == [
        (8, 0.008),
        (16, 0.016),
        (32, 0.032),
    ]


def test_a_key_in_lockstep_with_another_makes_no_figure_of_its_own() -> None:
    """The pool grows with the batch size: the key that the baseline has, too, stands for both."""
    trials = []
    for size in (8, 16, 32):
        for block in (SHUFFLE, {"name": "refined", "pool": 4 * size}):
            for seed in range(2):
                found = trial(len(trials), len(trials) // 2, seed, block, 0.5 + size / 1000)
                found.parameters["train.batch_size"] = size
                trials.append(found)
    (found,) = gains_by_key(study(trials))
    assert (found.key, found.tied) == ("train.batch_size", ("sampler.pool",))
    assert [[value for value, _ in line.points] for line in found.lines] == [[8, 16, 32]]
    assert [line.label for line in found.lines] == ["refined"]


def test_two_swept_keys_have_lines_for_the_values_of_the_other() -> None:
    blocks = [SHUFFLE, *({"name": "osgd", "k": k, "q": q} for k in (4, 8, 16) for q in (1, 2, 3))]
    record = study([trial(i, i, 0, block, 0.5 + i / 100) for i, block in enumerate(blocks)])
    found = {gains.key: gains for gains in gains_by_key(record)}
    assert sorted(found) == ["sampler.k", "sampler.q"]
    assert [line.label for line in found["sampler.k"].lines] == [f"osgd (q={q})" for q in (1, 2, 3)]
    assert [len(line.points) for line in found["sampler.q"].lines] == [3, 3, 3]
    assert {gain.ci_low for gains in found.values() for line in gains.lines for _, gain in line.points} == {None}


def drawn() -> StudyRecord:
    """A study whose values an adaptive search drew: the best of each sampler are compared, chosen by results."""
    record = temperatures()
    for each in record.trials.values():
        each.drawn = Drawn(point=0, number=each.setting, values={})
        each.metrics["val/retrieval/mrr"] = each.metrics[MRR]
    assert {c.chosen_by for c in compare(record, MRR)} == {"val/retrieval/mrr"}
    return record


@pytest.mark.parametrize(
    "record",
    [
        grid(EIGHT),
        temperatures(taus=TAUS[:2]),
        temperatures().model_copy(update={"baseline": {}}),
        drawn(),
        study([]),
    ],
    ids=["no key", "two values", "no baseline", "a search", "empty"],
)
def test_no_relation_is_found_where_there_is_none(record: StudyRecord) -> None:
    assert gains_by_key(record) == []


@given(
    st.lists(st.sampled_from([1, 2, 3, 5, 8]), min_size=1, max_size=5, unique=True),
    st.lists(st.sampled_from([16, 32, 64]), min_size=1, max_size=3, unique=True),
    st.integers(0, 2**16),
)
def test_every_gain_stands_once_in_each_figure(ks: list[int], sizes: list[int], order: int) -> None:
    settings: list[tuple[int | None, int]] = [(k, size) for k in (None, *ks) for size in sizes]
    settings = settings[order % len(settings) :] + settings[: order % len(settings)]
    trials = []
    for i, (k, size) in enumerate(settings):
        found = trial(i, i, 0, SHUFFLE if k is None else {"name": "osgd", "k": k}, (k or 0) / 100 + size / 1000)
        found.parameters["train.batch_size"] = size
        trials.append(found)
    by_key = {gains.key: gains for gains in gains_by_key(study(trials))}
    keys = {"sampler.k": ks, "train.batch_size": sizes}
    assert sorted(by_key) == sorted(key for key, values in keys.items() if len(values) >= 3)
    for key, gains in by_key.items():
        points = [(value, gain.setting) for line in gains.lines for value, gain in line.points]
        assert sorted(setting for _, setting in points) == [i for i, (k, _) in enumerate(settings) if k is not None]
        for value, setting in points:
            assert value == settings[setting][0 if key == "sampler.k" else 1]
        assert all(len(line.points) == len(keys[key]) for line in gains.lines)


@pytest.mark.parametrize("metric", ["train/same_class", "plan/lift"])
def test_gains_by_a_measured_metric_have_its_mean_over_the_seeds(metric: str) -> None:
    record = temperatures()
    table = frame(record)
    found = gains_by_metric(record, metric)
    assert len(found.points) == 2 * len(TAUS) * 2
    for mean, gain in found.points:
        ordinals = [t.ordinal for t in record.settings()[gain.setting]]
        assert mean == pytest.approx(table.iloc[ordinals][metric].mean(), rel=1e-12)
    expected = [0.1] * len(TAUS) if metric == "train/same_class" else []
    assert [mean for mean, _ in found.baselines] == pytest.approx(expected)


def test_a_setting_without_the_metric_has_no_dot() -> None:
    record = temperatures()
    for each in record.trials.values():
        if each.setting == 4:
            each.metrics["train/same_class"] = None
    points = gains_by_metric(record, "train/same_class").points
    assert 4 not in {gain.setting for _, gain in points}
    assert len(points) == 2 * (2 * len(TAUS) - 1)
