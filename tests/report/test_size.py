"""The page of a large study stays small."""

from pathlib import Path

from report.studies import SHUFFLE, study, trial, write_histories
from report.test_page import check_self_contained, write_report

from mbcl.io.store import LocalStore
from mbcl.study.record import StudyRecord

MEGABYTE = 2**20


def thousand() -> StudyRecord:
    """A thousand trials: 125 settings of eight seeds, with twenty metrics, some of them failed."""
    trials = []
    for number in range(1000):
        setting, seed = divmod(number, 8)
        block = {"name": "spectral", "k": setting % 25 + 1, "temperature": 0.05 * (1 + setting // 25)}
        value = 0.5 + (number * 7919 % 1000) / 3000
        found = trial(number, setting, seed, block if setting else SHUFFLE, value)
        found.metrics |= {f"corrupted/clean/kind{i}/3/top1": value / (i + 1) for i in range(20)}
        if number % 50 == 49:
            found = trial(number, setting, seed, block, status="failed", error=f"out of memory at step {number % 7}")
        trials.append(found)
    return study(trials)


def test_a_thousand_trials_are_less_than_five_megabytes(tmp_path: Path) -> None:
    record, store = thousand(), LocalStore(tmp_path)
    write_histories(store, record, epochs=30)
    for key, each in record.trials.items():
        if each.status == "failed":
            store.write_bytes(f"trials/{key}/error.log", b"a line of a long traceback\n" * 500)
    text = write_report(tmp_path, record, histories=False)
    assert len(text.encode()) < 5 * MEGABYTE
    page = check_self_contained(text)
    assert sum(value == "row" for tag, key, value in page.attributes if (tag, key) == ("th", "scope")) > 125
    assert page.text.count("out of memory at step") >= 20
    assert "the end of its log" in page.text
    assert "All 24 final metrics: summary.csv" in page.text.replace("\n", " ")
