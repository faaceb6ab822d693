"""The report of a study with nuisance keys."""

from __future__ import annotations

import csv

from report.studies import EIGHT, MRR, SHUFFLE, SPECTRAL, study, trial, write_histories
from report.test_page import check_self_contained

from mbcl.io.store import LocalStore
from mbcl.report import write
from mbcl.study.record import StudyRecord

VALIDATION = "val/retrieval/mrr"


def tuned(*, fails: bool = False) -> StudyRecord:
    """Two settings of two candidates each; if it ``fails``, a candidate of ``spectral`` has no result."""
    trials = []
    for setting in range(4):
        block, lr = (SHUFFLE, SPECTRAL)[setting // 2], (0.1, 0.2)[setting % 2]
        other = {"arm": setting // 2, "stage": "tuning", "nuisance": {"optimizer.lr": lr}}
        done = {"status": "finished", "metrics": {VALIDATION: 0.5 + lr}}
        if fails and setting == 3:
            done = {"status": "failed", "error": "the process was lost"}
        trials.append(trial(setting, setting, 100, block, **other, **done))
    for arm, name in enumerate(("shuffle", "spectral")):
        if fails and arm == 1:
            continue
        for seed, value in enumerate(EIGHT[name]):
            other = {"arm": arm, "stage": "confirmation", "nuisance": {"optimizer.lr": 0.2}}
            trials.append(trial(len(trials), 4 + arm, seed, (SHUFFLE, SPECTRAL)[arm], value, **other))
    return study(trials, nuisance=["optimizer.lr"])


def report(folder, record: StudyRecord):
    store = LocalStore(folder)
    write_histories(store, record)
    write(store, record)
    return check_self_contained((folder / "report.html").read_text(encoding="utf-8"))


def test_the_report_claims_from_confirmation_seeds_and_lists_the_choices(tmp_path) -> None:
    text = report(tmp_path, tuned()).text
    assert f"spectral (k=4) is better than shuffle on {MRR} by 0.0500" in text
    assert "val/retrieval/mrr over 1 seed (100) from equally many candidates" in " ".join(text.split())
    assert "Every setting has its own best optimizer.lr of 2 candidates by val/retrieval/mrr on 1 seed" in text
    results, _, tuning = text.partition("Nuisance hyperparameters")
    assert "tuning shuffle" not in results, "no row among the results"
    assert "".join(tuning.split()).startswith("settingcandidateschosenval/retrieval/mrrshuffle2lr=0.20.7000spectral")
    with (tmp_path / "summary.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["stage"] for row in rows] == 4 * ["tuning"] + 2 * ["confirmation"]
    assert [row["optimizer.lr"] for row in rows] == ["0.1", "0.2", "0.1", "0.2", "0.2", "0.2"]
    assert [row["label"] for row in rows][2:5] == [
        "tuning spectral (k=4), lr=0.1",
        "tuning spectral (k=4), lr=0.2",
        "shuffle",
    ]


def test_a_study_that_was_interrupted_while_it_chose_has_a_report(tmp_path) -> None:
    record = tuned()
    for key, each in list(record.trials.items())[1:]:
        if each.stage == "confirmation":
            del record.trials[key]
        else:
            each.status, each.metrics = "pending", {}
    text = report(tmp_path, record).text
    assert "Only trials that choose nuisance values have finished, so there is no answer yet." in text
    assert "3 pending" in text


def test_the_report_says_why_a_setting_has_no_choice_and_claims_nothing_there(tmp_path) -> None:
    page = report(tmp_path, tuned(fails=True))
    assert "No values are chosen for spectral (k=4) (1 tuning trial failed" in page.text
    assert "none: 1 tuning trial failed" in page.text
    assert "better than" not in page.text
    with (tmp_path / "comparison.csv").open() as stream:
        assert list(csv.DictReader(stream)) == []
