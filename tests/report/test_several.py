from pathlib import Path

from report.studies import EIGHT, FULL, MRR, grid, partial
from report.test_page import check_self_contained

from mbcl.cli import main
from mbcl.io.store import LocalStore
from mbcl.report import several_page
from mbcl.study.across import gains_across
from mbcl.study.record import write_study


def test_page_of_several_studies_has_each_answer_and_the_gains() -> None:
    studies = [grid(EIGHT, name="digits"), grid(EIGHT, name="letters")]
    page = check_self_contained(several_page(["a", "b/letters"], studies))
    assert page.text.count("spectral (k=4) is better than shuffle on retrieval/mrr by 0.0500") == 2
    assert page.tags.count("svg") == 3, "the differences of each, and gains against the lift"
    _, gains = gains_across(studies)
    assert f"spectral (k=4) against shuffle: +{100 * gains[1].iqm:.3f}\u00a0%" in page.text
    assert "b/letters/report.html" in page.text
    rows = [value for tag, key, value in page.attributes if (tag, key, value) == ("th", "scope", "row")]
    assert len(rows) == 3 + 2, "each setting once, and each gain"


def test_unfinished_studies_stand_beside_others(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    records = {"done": grid(FULL), "half": partial(), "new": grid({"shuffle": [None], "osgd": [None]})}
    for name, record in records.items():
        write_study(LocalStore(tmp_path / name), record.model_copy(update={"name": name}))
    assert main(["report", "done", "half/", "new", "--out", "all.html"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("no common gains: studies measure nothing, retrieval/mrr; together they need one headline")
    assert out[-1] == "all.html"
    page = check_self_contained((tmp_path / "all.html").read_text(encoding="utf-8"))
    assert "studies measure nothing, retrieval/mrr" in page.text
    assert "No trial has finished, so there is no answer yet (2 pending)." in page.text
    assert "Of 9 trials, 1 stopped, 1 failed and 2 pending" in page.text
    assert f"half{MRR}" in page.text, "the head of a column"
    assert page.tags.count("svg") == 3, "two have differences, which make a figure against the lift"
