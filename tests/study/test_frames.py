import csv
import sys
import warnings
from pathlib import Path

import pytest
from report.studies import grid, partial, write_histories

import mbcl.study
from mbcl.errors import ConfigError
from mbcl.io.store import LocalStore
from mbcl.report import write
from mbcl.study.record import write_study


def test_frames_agree_with_the_files(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    store, record = LocalStore(tmp_path), partial()
    write_study(store, record)
    write_histories(store, record)
    write(store, record)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = mbcl.study.load(str(tmp_path))
    with (tmp_path / "results.csv").open() as stream:
        expected = list(csv.DictReader(stream))
    assert list(frames.trials.columns) == ["trial_id", "label", *list(expected[0])[1:]]
    assert frames.trials["trial_id"].tolist() == [row["trial_id"] for row in expected]
    finished = frames.trials[frames.trials["status"] == "finished"]
    values = [row["retrieval/mrr"] for row in expected if row["status"] == "finished"]
    assert finished["retrieval/mrr"].tolist() == [float(value) for value in values]
    assert finished.groupby("label")["retrieval/mrr"].max()["spectral (k=4)"] == 0.88
    begun = [key for key, trial in record.trials.items() if trial.status != "pending"]
    assert len(frames.rows) == 3 * len(begun)
    assert frames.rows["time/train"].sum() == 3 * len(begun)
    assert frames.plans.columns.tolist() == ["trial_id", "label", "sampler", "objective", "seed", "epoch", "lift"]
    assert set(frames.plans["sampler"]) == {"osgd", "spectral"}, "a plan without embeddings has no values"


def test_frames_of_a_study_that_has_not_begun(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    write_study(LocalStore(tmp_path), grid({"shuffle": [None]}))
    trials, rows, plans = mbcl.study.load(str(tmp_path))
    assert trials["status"].tolist() == ["pending"]
    assert len(rows) == len(plans) == 0
    assert "epoch" in rows.columns


def test_load_warns_of_a_study_whose_rows_of_epochs_are_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    record = partial()
    write_study(LocalStore(tmp_path), record)
    finished = sum(trial.status == "finished" for trial in record.trials.values())
    with pytest.warns(UserWarning, match=rf"{finished} of {finished} finished trials have no rows of epochs"):
        trials, rows, _ = mbcl.study.load(str(tmp_path))
    assert len(trials) == len(record.trials)
    assert len(rows) == 0


def test_load_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"holds no study\.json"):
        mbcl.study.load(str(tmp_path))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"pandas is not installed; pip install pandas"):
        mbcl.study.load(str(tmp_path))
