"""``draws.csv``: the draws behind the metrics of results.csv."""

import csv
import json
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from report.studies import MRR, TOP1, grid, partial, write_histories

from mbcl.io.store import LocalStore
from mbcl.report import write
from mbcl.report.draws import describe_draws, read_draws, variance
from mbcl.study.record import StudyRecord

SEEDS = {"shuffle": [0.5, 0.6, 0.7], "spectral": [0.4, 0.5, None]}


def drawn(folder: Path, record: StudyRecord, draws: int = 4) -> dict[str, dict[str, list[float]]]:
    """Write an ``evaluation.json`` for every finished trial and put its means into the record."""
    generator, written = np.random.default_rng(0), {}
    for key, trial in record.trials.items():
        if trial.status != "finished":
            continue
        values = {metric: (0.5 + generator.normal(0, 0.1, draws)).tolist() for metric in (MRR, TOP1)}
        trial.metrics |= {metric: fmean(each) for metric, each in values.items()}
        path = folder / "trials" / key / "evaluation.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"asked": {}, "metrics": trial.metrics, "draws": values, "pieces": []}))
        written[key] = values
    return written


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_tables_can_be_recomputed_from_the_draws(tmp_path: Path) -> None:
    record = grid(SEEDS)
    written = drawn(tmp_path, record)
    write(LocalStore(tmp_path), record)
    rows = table(tmp_path / "draws.csv")
    assert list(rows[0]) == ["trial_id", "draw", MRR, TOP1]
    assert [(row["trial_id"], row["draw"]) for row in rows] == [(key, str(i)) for key in written for i in range(4)]
    results = {row["trial_id"]: row for row in table(tmp_path / "results.csv")}
    for metric in (MRR, TOP1):
        means: dict[str, list[float]] = {}
        for key in written:
            mean = fmean(float(row[metric]) for row in rows if row["trial_id"] == key)
            assert repr(mean) == results[key][metric], "to the last bit"
            means.setdefault(results[key]["sampler"], []).append(mean)
        for row in table(tmp_path / "summary.csv"):
            assert float(row[f"{metric}/mean"]) == pytest.approx(np.mean(means[row["sampler"]]), rel=1e-12)
            assert float(row[f"{metric}/sd"]) == pytest.approx(np.std(means[row["sampler"]], ddof=1), rel=1e-12)


def test_report_states_the_noise_of_a_draw(tmp_path: Path) -> None:
    record = grid(SEEDS)
    written = drawn(tmp_path, record)
    write(LocalStore(tmp_path), record)
    far = [
        [(x - y) ** 2 / 2 for (i, x), (j, y) in combinations(enumerate(v[MRR]), 2) if j - i > 1]
        for v in written.values()
    ]
    spread = np.sqrt(np.mean(far))
    text = f"mean over 4 draws of the two views, whose standard deviation in a trial is {spread:.2g}"
    assert describe_draws(written, MRR) == text
    assert text in " ".join((tmp_path / "report.html").read_text().split())
    assert describe_draws({key: {MRR: values[MRR][:1]} for key, values in written.items()}, MRR) == ""
    two = {key: {MRR: values[MRR][:2]} for key, values in written.items()}
    assert describe_draws(two, MRR) == "mean over 2 draws of the two views", "they share a view"


def test_variance_of_draws_that_share_views_is_that_of_one_draw() -> None:
    """Of the additive model x_g = f(v_g) + f(v_g+1), where neighbours have the greatest correlation, 1/2."""
    views = np.random.default_rng(0).normal(0, 1, (4000, 6))
    draws = views[:, :-1] + views[:, 1:]
    found = np.array([variance(each) for each in draws.tolist()])
    assert abs(found.mean() - 2) < 5 * found.std(ddof=1) / np.sqrt(len(found))
    assert draws.var(axis=1, ddof=1).mean() < 1.7, "expectation 1.6: the sample variance is too small"
    assert variance([0.3, 0.9, 0.3]) == 0.0


def test_draws_that_do_not_belong_to_the_record_are_left_out(tmp_path: Path) -> None:
    """Of an ``--eval-only`` that was cut off before it wrote study.json, or of a damaged file."""
    record = grid(SEEDS)
    written = drawn(tmp_path, record)
    first, second, third, fourth, last = written
    record.trials[first].metrics[MRR] = 0.123
    files = {key: tmp_path / "trials" / key / "evaluation.json" for key in written}
    files[second].write_text("{")
    files[third].write_text(json.dumps({"draws": {MRR: "abc"}}))
    files[fourth].write_text(json.dumps({"draws": {**written[fourth], TOP1: written[fourth][TOP1][:1]}}))
    assert read_draws(LocalStore(tmp_path), record) == {last: written[last]}


def test_report_of_a_study_without_its_trials_leaves_its_draws(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write_bytes("draws.csv", b"published")
    write(store, grid(SEEDS))
    assert store.read_bytes("draws.csv") == b"published"


def test_report_of_a_study_without_draws_has_no_file(tmp_path: Path) -> None:
    """As of mbcl 0.2, or of a synthetic study."""
    store, record = LocalStore(tmp_path), partial()
    store.write_bytes("draws.csv", b"of an earlier report")
    write_histories(store, record)
    store.write_bytes(f"trials/{next(iter(record.trials))}/evaluation.json", b"{}")
    write(store, record)
    assert not store.exists("draws.csv")
    assert "draws of the two views" not in (tmp_path / "report.html").read_text()
