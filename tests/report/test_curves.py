from pathlib import Path

from report.studies import FULL, MRR, grid, partial, write_histories

from mbcl.io.store import LocalStore
from mbcl.report.curves import MetricCurve, curve, stage_seconds, wall_seconds
from mbcl.report.wording import centre, interval, listed, number, p_value, printable, seconds
from mbcl.study.comparisons import Comparison
from mbcl.study.histories import parse_history, read_histories
from mbcl.study.metric_glossary import direction, meaning, metric_order
from mbcl.study.settings import settings_of


def test_parse_history_skips_nulls_partial_lines_and_repeated_epochs() -> None:
    text = '{"epoch": 2, "a": 1}\n{"epoch": 1, "a": null, "b": NaN}\nnoise\n[1]\n{"a": 3}\n{"epoch": 2, "a": 5}\n'
    text += '{"epoch": 3, "a'
    assert parse_history(text) == [{"epoch": 1}, {"epoch": 2, "a": 5}]


def test_curve_is_the_mean_and_range_over_finished_seeds(tmp_path: Path) -> None:
    store, record = LocalStore(tmp_path), partial()
    write_histories(store, record)
    histories = read_histories(store, record)
    first = settings_of(record)[0]
    line = curve(first, histories, "train/loss")
    assert line is not None
    assert (line.epochs, line.seeds) == ([1, 2, 3], 2)
    assert (line.low[0], line.high[0]) == (2.0, 2.1)
    assert abs(line.mean[0] - 2.05) < 1e-12
    validation = curve(first, histories, "val/retrieval/mrr")
    assert validation is not None
    assert validation.epochs == [1, 3]
    assert curve(first, histories, "plan/lift") is None


def test_curves_have_the_mean_work_of_the_seeds_until_each_epoch(tmp_path: Path) -> None:
    store, record = LocalStore(tmp_path), grid({"shuffle": [0.5, 0.6], "spectral": [0.5, 0.6]})
    write_histories(store, record)
    histories = read_histories(store, record)
    for seed, history in enumerate(list(histories.values())[2:]):
        for row in history:
            row |= {"time/embed": 0.5, "time/wait": 0.25 + seed, "time/eval": 7.0}
    shuffle, spectral = (curve(s, histories, "val/retrieval/mrr") for s in settings_of(record))
    assert shuffle is not None
    assert spectral is not None
    assert shuffle.work == {"epochs": [1, 3], "images": [320, 960], "passes": [960, 2880], "seconds": [1.0, 3.0]}
    assert spectral.work["passes"] == [1290, 3870]
    assert spectral.work["seconds"] == [2.25, 6.75], "of two seeds, without validation"
    del histories[0][0]["work/images"]
    older = curve(settings_of(record)[0], histories, "val/retrieval/mrr")
    assert older is not None
    assert list(older.work) == ["epochs", "passes", "seconds"], "an axis that a row lacks is left out"


def test_stage_seconds_and_wall_seconds_sum_a_setting(tmp_path: Path) -> None:
    store, record = LocalStore(tmp_path), grid(FULL)
    write_histories(store, record)
    first = settings_of(record)[0]
    assert stage_seconds(first, read_histories(store, record)) == {"train": 3.0, "plan": 0.75}
    assert stage_seconds(first, {}) == {}
    assert wall_seconds(first) == {"training": 3.5, "evaluation": 0.25, "total": 4.0}
    first.trials[0].seconds.clear()
    assert wall_seconds(first)["training"] == 3.5


def test_metric_glossary_has_direction_meaning_and_order() -> None:
    assert (direction(MRR), direction("retrieval/v2u/mean_rank"), direction("plan/lift")) == (1, -1, 0)
    assert "5 most similar" in meaning("retrieval/u2v/top5")
    assert meaning("something/else") == ""
    names = ["time/train", "plan/lift", "retrieval/u2v/mrr", "retrieval/u2v/top10", "zzz", "retrieval/u2v/top5"]
    assert sorted(names, key=metric_order) == [
        "retrieval/u2v/mrr",
        "retrieval/u2v/top5",
        "retrieval/u2v/top10",
        "plan/lift",
        "time/train",
        "zzz",
    ]


def test_wording_formats_numbers_times_and_lists() -> None:
    assert [number(v) for v in (0.12345, 1.5, 12.345, 0, 0.0, 1, 12345.6, 8000.0, None)] == [
        "0.1235",
        "1.500",
        "12.35",
        "0",
        "0",
        "1",
        "12,345.6",
        "8,000",
        "–",
    ]
    assert (number(-0.5, signed=True), number(0.5, signed=True), number(1e-5)) == ("−0.5000", "+0.5000", "1.00e−05")
    assert (p_value(0.0), p_value(0.0314), p_value(None)) == ("< 0.001", "0.031", "–")
    assert (seconds(3.14), seconds(600.0), seconds(10800.0)) == ("3.1 s", "10.0 min", "3.0 h")
    assert (listed([]), listed(["a"]), listed(["a", "b", "c"])) == ("", "a", "a, b and c")
    assert printable("a\x00b\u202ec\nd") == "a�b�c\nd"


def test_an_interval_and_its_centre_have_one_number_of_decimals() -> None:
    def texts(centre_: float, low: float, high: float) -> tuple[str, str]:
        found = Comparison("m", 1, "a", 0, "b", difference=centre_, ci_low=low, ci_high=high, n=8)
        return centre(found, signed=True), interval(found, signed=True)

    assert texts(-0.0074, -0.0154, 0.000562) == ("−0.0074", "−0.0154 to +0.0006")
    assert texts(0.0002, -0.00041, 0.00081) == ("+0.000200", "−0.000410 to +0.000810")
    assert texts(0.00002, -0.3, 0.3) == ("0.0000", "−0.3000 to +0.3000")
    assert texts(1.5, 0.25, 2.75) == ("+1.500", "+0.250 to +2.750")
    assert texts(2e-9, -1e-9, 5e-9) == ("+2.00e−09", "−1.00e−09 to +5.00e−09")
    assert centre(None) == interval(None) == "–"


def test_a_long_curve_is_thinned_to_its_first_and_last_points() -> None:
    numbers = [float(i) for i in range(1000)]
    line = MetricCurve(numbers, {"seconds": numbers}, numbers, numbers, numbers, seeds=2)
    thin = line.thinned(100)
    assert len(thin.epochs) <= 101
    assert (thin.epochs[0], thin.epochs[-1]) == (0, 999)
    assert thin.mean == thin.work["seconds"] == thin.epochs
    assert line.thinned(1000) is line
