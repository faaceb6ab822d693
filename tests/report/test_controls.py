"""The report of a study with a control of equal forward passes."""

from __future__ import annotations

import csv

from report.studies import EIGHT, MRR, SHUFFLE, grid, trial

from mbcl.io.store import LocalStore
from mbcl.report import write
from mbcl.report.answer import answer
from mbcl.study.comparisons import compare
from mbcl.study.record import StudyRecord
from mbcl.study.statistics import summarise


def controlled() -> StudyRecord:
    """``spectral`` is better than ``shuffle`` at equal steps, and worse than the longer ``shuffle``."""
    record = grid({"shuffle": EIGHT["shuffle"], "spectral": EIGHT["spectral"]})
    for number, seed_value in enumerate(EIGHT["spectral"], len(record.trials)):
        longer = {"sampler": dict(SHUFFLE), "train.epochs": 14}
        control = trial(number, 2, number - 16, value=seed_value + 0.02, is_control=True, parameters=longer)
        record.trials[f"{number:03d}-aa"] = control
    for record_of_one in record.trials.values():
        record_of_one.equal_passes = 2 if record_of_one.setting == 1 else None
    return record


def test_the_answer_has_a_sentence_for_either_control() -> None:
    record = controlled()
    verdict = answer(record, summarise(record), compare(record, MRR), MRR)
    steps, passes = verdict.headline.split(" At equal forward passes: ")
    assert steps.startswith(f"spectral (k=4) is better than shuffle on {MRR} by 0.0500")
    assert passes.startswith(f"spectral (k=4) is worse than shuffle, epochs=14 on {MRR} by 0.0200")
    assert any("corrected for 2 comparisons" in sentence for sentence in verdict.details)


def test_tables_and_page_show_both_comparisons(tmp_path) -> None:
    write(LocalStore(tmp_path), controlled())
    with (tmp_path / "comparison.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == MRR]
    assert [(row["label"], row["control"], row["baseline_label"], row["verdict"]) for row in rows] == [
        ("spectral (k=4)", "equal_steps", "shuffle", "better"),
        ("spectral (k=4)", "equal_passes", "shuffle, epochs=14", "worse"),
    ]
    page = (tmp_path / "report.html").read_text()
    assert "<td>steps</td><td>shuffle</td>" in page
    assert "<td>passes</td><td>shuffle, epochs=14</td>" in page
    assert 'epochs=14<span class="tag">control</span>' in page
    assert "spectral (k=4), equal passes" in page, "a row of the figure"
    assert "the fewest that make as many forward passes, but for at most 1 %" in page


def test_a_study_without_control_has_no_such_column(tmp_path) -> None:
    write(LocalStore(tmp_path), grid(EIGHT))
    page = (tmp_path / "report.html").read_text()
    assert "at equal" not in page
    assert ">control<" not in page
