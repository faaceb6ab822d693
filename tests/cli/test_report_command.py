import webbrowser
from pathlib import Path

import pytest
from report.studies import EIGHT, grid, partial

from mbcl.cli import main
from mbcl.io.store import LocalStore
from mbcl.study.record import write_study


def test_show_prints_the_table_and_why_trials_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(LocalStore(tmp_path), partial())
    assert main(["show", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "samplers: mean [95 % interval]" in out
    (line,) = [line for line in out.splitlines() if "spectral (k=4)" in line]
    assert "2/3" in line
    assert "0.8700 [0.743, 0.997]" in line
    assert "FAILED    002-aa  the loss is nan" in out
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"], "nothing is written"


def test_open_opens_the_page_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or len(opened) == 1)
    monkeypatch.chdir(tmp_path)
    write_study(LocalStore(tmp_path / "a study"), grid(EIGHT))
    assert main(["report", "a study", "--open"]) == 0
    assert opened == [(tmp_path / "a study" / "report.html").as_uri()]
    assert capsys.readouterr().out == "a study/report.html\n"
    assert main(["report", "a study", "--open"]) == 1
    assert "--open: no browser was found; open" in capsys.readouterr().err
    assert main(["report", "a study"]) == 0
    assert len(opened) == 2


def test_a_study_that_is_given_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its seeds would count twice, and the interval would be too narrow."""
    write_study(LocalStore(tmp_path / "study"), grid(EIGHT))
    out = tmp_path / "all.html"
    assert main(["report", str(tmp_path / "study"), f"{tmp_path}/./study/", "--out", str(out)]) == 2
    assert "study is given twice" in capsys.readouterr().err
    assert not out.exists()


def test_out_and_markdown_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(LocalStore(tmp_path / "study"), grid(EIGHT))
    arguments = ["--out", str(tmp_path / "a.html"), "--markdown", str(tmp_path / "a.md")]
    assert main(["report", str(tmp_path / "study"), *arguments]) == 2
    assert "--out and --markdown: choose one" in capsys.readouterr().err


def test_out_takes_a_copy_of_the_page_of_one_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(LocalStore(tmp_path / "study"), grid(EIGHT))
    out = tmp_path / "copy.html"
    assert main(["report", str(tmp_path / "study"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_bytes() == (tmp_path / "study" / "report.html").read_bytes()


@pytest.mark.parametrize("studies", [["a"], ["a", "b"]])
@pytest.mark.parametrize("out", [".", "none/all.html"])
def test_a_page_needs_a_place(
    studies: list[str], out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_study(LocalStore(tmp_path / name), grid(EIGHT))
    assert main(["report", *studies, "--out", out]) == 2
    assert capsys.readouterr().err == f"error: --out: expected a file in a folder that exists, found {out}\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [('{"name": 1', "Invalid JSON"), ("{}", "name: Field required"), ("[]", "Input should be an object")],
)
def test_the_first_fault_of_a_damaged_record_is_named(
    content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/study.json: damaged: {words}" in line
