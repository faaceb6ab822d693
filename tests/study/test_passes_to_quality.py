"""Forward passes to the baseline's quality, against pandas and SciPy on the files of a results folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report.studies import EIGHT, SHUFFLE, SPECTRAL, grid, raced, study, trial
from report.test_page import write_report
from scipy import stats

import mbcl.study
from mbcl.io.store import LocalStore
from mbcl.study.histories import History, read_histories
from mbcl.study.passes_to_quality import MIN_EPOCHS, passes_to_quality
from mbcl.study.record import StudyRecord, write_study

VALIDATION = "val/retrieval/mrr"
RISING = [0.3, 0.4, 0.46, 0.5, 0.53, 0.55, 0.56, 0.57, 0.58, 0.585, 0.59, 0.6]


def history(values: Sequence[float | None], passes: int) -> History:
    rows = [{"epoch": e, "work/passes": passes * e, VALIDATION: value} for e, value in enumerate(values, 1)]
    return [{key: float(cell) for key, cell in row.items() if cell is not None} for row in rows]


def pair(ours: Sequence[Sequence[float | None]], theirs: Sequence[Sequence[float | None]]) -> tuple[StudyRecord, dict]:
    """``spectral`` of 130 passes an epoch and ``shuffle`` of 100, with a curve a seed."""
    trials = [trial(i, 0, i, SHUFFLE, 0.5) for i in range(len(theirs))]
    trials += [trial(len(theirs) + i, 1, i, SPECTRAL, 0.6) for i in range(len(ours))]
    histories = {i: history(values, 100) for i, values in enumerate(theirs)}
    return study(trials), histories | {len(theirs) + i: history(values, 130) for i, values in enumerate(ours)}


def test_by_hand() -> None:
    fast = [0.4, 0.5, 0.59, 0.6, *[0.61] * 8]
    record, histories = pair([fast, RISING], [RISING, RISING])
    (found,) = passes_to_quality(record, histories)
    assert (found.label, found.baseline_label, found.metric) == ("spectral (k=4)", "shuffle", VALIDATION)
    assert found.passes == 1200
    assert found.ratios == (4 * 130 / 1200, 1.3)
    assert (found.reached, found.n) == (2, 2)
    assert found.ratio is not None
    assert found.ratio.mean == pytest.approx((4 * 130 / 1200 * 1.3) ** 0.5)


def test_the_baseline_counts_from_when_it_first_was_as_good() -> None:
    peaked = [*RISING[:-2], 0.7, 0.6]
    record, histories = pair([RISING], [peaked])
    (found,) = passes_to_quality(record, histories)
    assert found.passes == 1100, "it was above its last value before"
    assert found.ratios == (12 * 130 / 1100,)
    assert found.ratio is not None
    assert found.ratio.ci_low is None, "one seed has no interval"


def test_a_seed_that_never_gets_there_is_counted_and_takes_the_ratio_away() -> None:
    record, histories = pair([RISING, RISING[:-1], RISING], [RISING, [*RISING, 0.62], RISING])
    (found,) = passes_to_quality(record, histories)
    assert (found.reached, found.n, found.ratio) == (2, 3, None)


def test_a_training_that_diverged_did_not_get_there_and_without_a_baseline_there_is_no_ratio() -> None:
    record, histories = pair([RISING] * 3, [RISING] * 3)
    keys = list(record.trials)
    record.trials[keys[4]] = trial(4, 1, 1, SPECTRAL, status="failed", diverged=True)
    (found,) = passes_to_quality(record, histories)
    assert (found.reached, found.n, found.ratio) == (2, 3, None)
    record, histories = pair([RISING] * 3, [RISING] * 3)
    record.trials[keys[1]] = trial(1, 0, 1, SHUFFLE, status="failed", diverged=True)
    (found,) = passes_to_quality(record, histories)
    assert (found.reached, found.n, found.ratio) == (2, 2, None)


def test_unfinished_trials_do_not_count() -> None:
    record, histories = pair([RISING] * 3, [RISING] * 3)
    keys = list(record.trials)
    for number, status in ((1, "failed"), (5, "running")):
        record.trials[keys[number]] = record.trials[keys[number]].model_copy(update={"status": status, "metrics": {}})
    (found,) = passes_to_quality(record, histories)
    assert found.n == 1


def test_settings_of_few_validated_epochs_are_left_out() -> None:
    short = RISING[-MIN_EPOCHS:]
    record, histories = pair([short], [RISING])
    assert len(passes_to_quality(record, histories)) == 1
    for ours, theirs in (([short[1:]], [RISING]), ([RISING], [short[1:]]), ([[None, *short[1:]]], [RISING])):
        record, histories = pair(ours, theirs)
        assert passes_to_quality(record, histories) == []
    assert passes_to_quality(record, {}) == []


def test_the_seed_of_early_stopping_does_not_count() -> None:
    record = raced()
    histories = {each.ordinal: history(RISING, 100) for each in record.trials.values()}
    (found,) = passes_to_quality(record, histories)
    assert (found.label, found.n) == ("spectral (k=4)", 2)


def write_curves(store: LocalStore, record: StudyRecord, curves: Mapping[str, Sequence[float]]) -> None:
    for key, each in record.trials.items():
        passes = 960 if each.sampler == "shuffle" else 1290
        rows = [
            {"epoch": e, "work/passes": passes * e, VALIDATION: value + 0.01 * (each.seed * e % 5)}
            for e, value in enumerate(curves[each.sampler], 1)
        ]
        store.write_bytes(f"trials/{key}/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def test_the_report_agrees_with_the_rows_of_the_folder(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    record, store = grid(EIGHT), LocalStore(tmp_path)
    write_study(store, record)
    better = [value + 0.08 for value in RISING]
    write_curves(store, record, {"shuffle": RISING, "osgd": RISING[:-1] + [0.55], "spectral": better})
    _, rows, _ = mbcl.study.load(str(tmp_path))
    osgd, spectral = passes_to_quality(record, read_histories(store, record))
    logs, passes = [], []
    never = 0
    for _, of_seed in rows.groupby("seed"):
        own, reference = (of_seed[of_seed["sampler"] == name] for name in ("spectral", "shuffle"))
        target = reference.sort_values("epoch")[VALIDATION].iloc[-1]
        first = reference.loc[reference[VALIDATION] >= target, "work/passes"].min()
        logs.append(own.loc[own[VALIDATION] >= target, "work/passes"].min() / first)
        passes.append(first)
        never += of_seed.loc[(of_seed["sampler"] == "osgd") & (of_seed[VALIDATION] >= target)].empty
    assert spectral.ratio is not None
    values = pandas.Series(logs).map(math.log)
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    expected = [stats.gmean(logs), *map(math.exp, interval)]
    assert [spectral.ratio.mean, spectral.ratio.ci_low, spectral.ratio.ci_high] == pytest.approx(expected, rel=1e-12)
    assert spectral.passes == pytest.approx(sum(passes) / len(passes))
    assert 0 < never == osgd.n - osgd.reached
    text = " ".join(write_report(tmp_path, record, histories=False).split())
    assert "Forward passes to the baseline's quality" in text
    assert f'<td class="num">{spectral.ratio.mean:.4f}</td>' in text
    assert f"<td>{osgd.reached} of 8</td>" in text


def test_a_report_of_few_epochs_has_no_such_table(tmp_path: Path) -> None:
    assert "baseline's quality" not in write_report(tmp_path, grid(EIGHT))


@given(
    st.lists(
        st.tuples(*[st.lists(st.integers(0, 5), min_size=MIN_EPOCHS, max_size=MIN_EPOCHS)] * 2), min_size=1, max_size=4
    )
)
def test_passes_are_the_fewest_that_are_enough(curves: list[tuple[list[int], list[int]]]) -> None:
    record, histories = pair([ours for ours, _ in curves], [theirs for _, theirs in curves])
    (found,) = passes_to_quality(record, histories)
    ratios = []
    for ours, theirs in curves:
        enough = [e for e, value in enumerate(ours, 1) if value >= theirs[-1]]
        reference = [e for e, value in enumerate(theirs, 1) if value >= theirs[-1]]
        ratios += [130 * min(enough) / (100 * min(reference))] if enough else []
    assert found.ratios == pytest.approx(tuple(ratios))
    assert (found.n, found.ratio is None) == (len(curves), len(ratios) < len(curves))


def test_equal_curves_have_the_ratio_of_the_work_of_an_epoch() -> None:
    record, histories = pair([RISING] * 6, [RISING] * 6)
    (found,) = passes_to_quality(record, histories)
    assert found.ratio is not None
    assert (found.ratio.mean, found.ratio.ci_low, found.ratio.ci_high) == pytest.approx((1.3, 1.3, 1.3))
