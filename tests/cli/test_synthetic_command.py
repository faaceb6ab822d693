"""The command ``mbcl synthetic``: files, page, options, errors in one line."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from mbcl.cli import main
from mbcl.console.stages import Stages
from mbcl.errors import PlanError
from mbcl.io.store import LocalStore
from mbcl.report.synthetic import write
from mbcl.synthetic.points import clip_losses
from mbcl.synthetic.selections import method_of
from mbcl.synthetic.settings import Settings
from mbcl.synthetic.study import run
from mbcl.synthetic.table import show

SMALL = ["--n", "6", "--dim", "5", "--steps", "40", "--log-every", "10", "--seeds", "2"]


def synthetic(*options: object) -> int:
    try:
        return main(["synthetic", *map(str, options)])
    except SystemExit as exited:
        return int(exited.code or 0)


def error_line(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """The one line of error of a command that is refused."""
    assert synthetic(*options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


class TagChecker(HTMLParser):
    """Checks that every tag is closed in the order of opening."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    assert synthetic(*SMALL, "--samplers", "f", "s", "full", "NcB", "osgd_NcB", "sc_even", "--out", out) == 0
    return out


def test_synthetic_writes_tables_points_page_and_plots(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == [
        "curves.csv", "plots", "points.npz", "report.html", "synthetic.json", "table.csv",
    ]  # fmt: skip
    plots = sorted(path.stem for path in (written / "plots").glob("*.png"))
    assert plots == sorted(path.stem for path in (written / "plots").glob("*.svg"))
    maps = ["optimum", "0_f", "1_s", "2_full", "3_ncb", "4_osgd_ncb", "5_sc_even"]
    curves = [f"curve_{name}" for name in ("batch_loss", "distance", "rearranging", "true_loss")]
    assert plots == sorted([*curves, *(f"gram_{name}{bar}" for name in maps for bar in ("", "_bar"))])
    for path in (written / "plots").iterdir():
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
        else:
            assert path.read_bytes().startswith(b"\x89PNG")
    assert json.loads((written / "synthetic.json").read_text())["samplers"][0] == "f"


def test_synthetic_tables_agree_with_the_points(written: Path) -> None:
    table, curves = rows(written / "table.csv"), rows(written / "curves.csv")
    points = np.load(written / "points.npz")
    assert [row["sampler"] for row in table] == [
        "fixed", "shuffle", "full", "all_batches", "osgd_exhaustive", "spectral",
    ]  # fmt: skip
    optimum = float(clip_losses(torch.from_numpy(points["optimum"])))
    for number, row in enumerate(table):
        losses = clip_losses(torch.from_numpy(points[f"z{number}"])).numpy()
        assert float(row["true_loss/mean"]) == pytest.approx(losses.mean(), rel=1e-12)
        assert float(row["excess/high"]) == pytest.approx(losses.max() - optimum, abs=1e-12)
        label_rows = [line for line in curves if line["label"] == row["label"]]
        assert [int(line["step"]) for line in label_rows] == [0, 10, 20, 30, 39] * 2
        last = [line for line in label_rows if line["step"] == "39"]
        assert [float(line["true_loss"]) for line in last] == pytest.approx(losses, rel=1e-12)
        assert int(last[0]["updates"]) == int(row["updates"])
        assert int(last[0]["samples"]) == int(row["samples"])
        norms = np.linalg.norm(points[f"z{number}"] - points["optimum"], axis=(1, 2))
        assert float(row["distance/mean"]) == pytest.approx(norms.mean(), rel=1e-10)
    work = {row["sampler"]: (int(row["updates"]), int(row["samples"])) for row in table}
    assert work["full"] == (40, 240)
    assert work["all_batches"] == (40, 40 * 15 * 2)
    assert work["shuffle"] == work["osgd_exhaustive"] == (120, 240)


def test_synthetic_page_is_self_contained(written: Path) -> None:
    page = (written / "report.html").read_text()
    checker = TagChecker()
    checker.feed(page)
    assert checker.open == []
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert not re.search(r"https?://", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for used in re.findall(r'(?:href="#|url\(#)([^")]+)', page):
        assert used in ids
    assert page.count("<svg") == 4 + 7
    for text in ("osgd_NcB", "the simplex", "samples seen", "mbcl synthetic --n 6"):
        assert text in page


def test_synthetic_command_on_the_page_reproduces_the_tables(written: Path, tmp_path: Path) -> None:
    page = (written / "report.html").read_text()
    (line,) = re.findall(r"<pre>mbcl synthetic (.*) --out DIR</pre>", page)
    assert synthetic(*line.split(), "--out", tmp_path / "again") == 0
    for name in ("table.csv", "curves.csv"):
        assert (tmp_path / "again" / name).read_text() == (written / name).read_text()


def test_synthetic_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert synthetic(*SMALL, "--samplers", "shuffle", "full", "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["shuffle", "full"]
    assert lines[-2].startswith("The optimum of 6 samples in 5 dimensions is the simplex: loss ")
    assert lines[-1] == f"page: {tmp_path}/out/report.html"


def test_synthetic_methods_share_start_points_and_are_independent(tmp_path: Path) -> None:
    assert synthetic(*SMALL, "--samplers", "shuffle", "spectral", "--out", tmp_path / "both") == 0
    assert synthetic(*SMALL, "--samplers", "spectral", "--batch-size", 2, 3, "--out", tmp_path / "one") == 0
    both, one = (np.load(tmp_path / name / "points.npz") for name in ("both", "one"))
    assert np.array_equal(both["start"], one["start"])
    np.testing.assert_allclose(both["x1"], one["x0"], rtol=1e-9, atol=1e-10)
    assert one["labels"].tolist() == ["spectral, B = 2", "spectral, B = 3"]
    seeds = np.load(tmp_path / "one" / "points.npz")["start"][:, 1]
    options = ["--samplers", "full", "--first-seed", 1, "--out", tmp_path / "seed"]
    assert synthetic(*SMALL[:-2], "--seeds", 1, *options) == 0
    assert np.array_equal(np.load(tmp_path / "seed" / "points.npz")["start"][:, 0], seeds)


def test_synthetic_runs_every_batch_size_but_full_once(tmp_path: Path) -> None:
    options = ["--samplers", "full", "all_batches", "shuffle", "--batch-size", 2, 3, 5, "--out", tmp_path / "out"]
    assert synthetic(*SMALL, *options) == 0
    table = rows(tmp_path / "out" / "table.csv")
    assert [(row["sampler"], int(row["batch_size"])) for row in table] == [
        ("full", 6), *(("all_batches", size) for size in (2, 3, 5)), *(("shuffle", size) for size in (2, 3, 5)),
    ]  # fmt: skip
    updates = {row["label"]: int(row["updates"]) for row in table}
    assert updates["shuffle, B = 5"] == 40
    assert updates["shuffle, B = 2"] == 120


def test_synthetic_equal_init_and_accumulate(tmp_path: Path) -> None:
    options = ["--samplers", "shuffle", "full", "osgd_exhaustive", "--equal-init"]
    for accumulate in ("sum", "mean"):
        assert synthetic(*SMALL, *options, "--accumulate", accumulate, "--out", tmp_path / accumulate) == 0
    points = {accumulate: np.load(tmp_path / accumulate / "points.npz") for accumulate in ("sum", "mean")}
    assert np.array_equal(*points["sum"]["start"])
    assert not np.allclose(points["sum"]["x0"], points["mean"]["x0"])
    for unchanged in ("x1", "x2"):
        assert np.array_equal(points["sum"][unchanged], points["mean"][unchanged])
    assert [int(row["updates"]) for row in rows(tmp_path / "sum" / "table.csv")] == [40, 40, 120]
    assert "full, osgd_exhaustive as without" in (tmp_path / "sum" / "report.html").read_text()


def test_synthetic_accumulate_sum_equals_mean_at_a_scaled_rate(tmp_path: Path) -> None:
    """The sum at the rate divided by the number of batches equals the mean."""
    base = ["--n", 6, "--dim", 3, "--steps", 15, "--seeds", 1, "--samplers", "shuffle"]
    assert synthetic(*base, "--accumulate", "mean", "--lr", 0.3, "--out", tmp_path / "mean") == 0
    assert synthetic(*base, "--accumulate", "sum", "--lr", 0.1, "--out", tmp_path / "sum") == 0
    ends = [np.load(tmp_path / how / "points.npz")["x0"] for how in ("mean", "sum")]
    np.testing.assert_allclose(*ends, rtol=1e-9)


def test_synthetic_reports_that_no_optimum_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--n", 6, "--dim", 4, "--steps", 300, "--seeds", 2, "--restarts", 4, "--out", tmp_path / "out"]
    assert synthetic(*options) == 0
    text = capsys.readouterr().out
    assert "no optimum is known in closed form" in text
    assert "4 restarts of L-BFGS" in text
    assert "The best minimiser found of the mean over all batches of 2" in text
    table = rows(tmp_path / "out" / "table.csv")
    assert all(row["distance/mean"] == row["rearranging/mean"] == "" for row in table)
    assert all(float(row["excess/low"]) >= 0 for row in table)
    assert not list((tmp_path / "out" / "plots").glob("*optimum*"))


def test_synthetic_accepts_samplers_with_parameters(tmp_path: Path) -> None:
    specs = ["osgd", "osgd:k=3,q=2,score=objective", "kmeans", "refined:sweeps=1", "spectral:k=2", "walk", "strata:k=2"]
    assert (
        synthetic("--n", 12, "--dim", 6, "--steps", 4, "--seeds", 2, "--samplers", *specs, "--out", tmp_path / "o") == 0
    )
    table = rows(tmp_path / "o" / "table.csv")
    assert [row["label"] for row in table] == specs
    assert {int(row["updates"]) for row in table} == {24}
    assert all(math.isfinite(float(row["true_loss/mean"])) for row in table)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--n", "1"], "--n must be a whole number >= 2, found 1"),
        (["--n", "100000000"], "--n 100000000: every pair of samples is compared; allowed are at most 10,000"),
        (["--dim", "100000000"], "--n 8, --dim 100000000: the two views of 30 runs have 48,000,000,000 coordinates"),
        (["--seeds", "1000000000"], "--seeds 1000000000: allowed are at most 10,000"),
        (["--samplers", "spectral:batch_size=4"], "batch_size is an option of its own, --batch-size"),
        (["--dim", "1"], "--dim must be at least 2, found 1: a point on a line has two directions"),
        (["--samplers", "full", "--published-points"], "--published-points is about osgd_exhaustive, which is not"),
        (["--first-seed", str(2**63 - 1)], "--first-seed must be at most 2^63 - 5"),
        (["--steps", "100000000", "--log-every", "1"], "--steps 100000000, --log-every 1: the curves of 30 runs have"),
        (["--steps", "40000", "--log-every", "1"], "about 1,200,030 points; allowed are at most 1,000,000"),
        (["--dim", "0"], "--dim must be a whole number >= 1, found 0"),
        (["--steps", "0"], "--steps must be a whole number >= 1"),
        (["--seeds", "0"], "--seeds must be a whole number >= 1"),
        (["--lr", "0"], "--lr must be > 0, found 0.0"),
        (["--lr", "nan"], "--lr must be a number > 0, found nan"),
        (["--batch-size", "9"], "--batch-size 9: above --n 8"),
        (["--batch-size", "1"], "--batch-size must be a whole number >= 2, found 1"),
        (["--batch-size", "2", "2"], "--batch-size: 2 is given twice"),
        (["--samplers", "spektral"], "--samplers spektral: unknown sampler 'spektral'; did you mean 'spectral'"),
        (["--samplers", "s", "shuffle"], "--samplers shuffle: the same as s; give each once"),
        (["--samplers", "spectral:kk=2"], "unknown parameter 'kk'; did you mean 'k'"),
        (["--n", "2000", "--samplers", "NcB"], "--samplers NcB: sampler 'all_batches': there are 1,999,000 batches"),
        (["--n", "64", "--batch-size", "32", "--samplers", "osgd_NcB"], "there are about 10^18 batches of 32"),
        (["--accumulate", "median"], "invalid choice: 'median'"),
    ],
)
def test_synthetic_refuses_bad_options_in_one_line(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in error_line(capsys, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_synthetic_reports_a_diverging_rate_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--lr", "1e200", "--steps", 5, "--log-every", 1, "--samplers", "full", "--out", tmp_path / "out"]
    assert "full: points have no direction after step" in error_line(capsys, *options)


def test_synthetic_replaces_a_study_only_with_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SMALL, "--samplers", "full", "--out", tmp_path / "out"]
    assert synthetic(*options) == 0
    capsys.readouterr()
    assert "holds a synthetic study already; add --overwrite" in error_line(capsys, *options)
    (tmp_path / "out" / "plots" / "gram_9_gone.png").touch()
    assert synthetic(*options, "--overwrite") == 0
    assert not (tmp_path / "out" / "plots" / "gram_9_gone.png").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    capsys.readouterr()
    line = error_line(capsys, *options[:-1], tmp_path / "other", "--overwrite")
    assert "holds other files (notes.txt); choose another --out" in line


def test_synthetic_refuses_an_unwritable_folder_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    line = error_line(capsys, "--steps", 100_000_000, "--log-every", 10_000_000, "--out", tmp_path / "deep" / "out")
    assert line == f"error: {tmp_path}/deep/out: cannot be written; choose another --out\n"


def test_synthetic_report_draws_a_study_at_its_optimum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two samples in one dimension start at the optimum: no value is above 0, and no axis is logarithmic."""
    settings = Settings(n=2, dim=1, samplers=("shuffle",), seeds=(0,), steps=3, equal_init=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = run(settings)
        write(LocalStore(tmp_path), outcome)
    show(outcome)
    assert "The optimum of 2 samples in 1 dimension is the simplex" in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("wrong", [[0, 1, 2, 2], [0, 1, 2, 6], [-1, 1, 2, 3], [0, 1]])
def test_selection_checks_the_plans_of_all_seeds(wrong: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated sample, one out of range, or a missing batch raises before training."""
    rows = torch.tensor([[0, 1, 2, 3][: len(wrong)], wrong]).view(2, -1, 2)
    method = method_of("spectral", {}, 2, 4)
    assert method.batches(torch.randn(2, 2, 4, 3), [0, 1], 0).shape == (2, 2, 2)
    monkeypatch.setattr(type(method.sampler), "plan_batched", lambda *given: rows)
    with pytest.raises(PlanError, match="batches of different samples were promised"):
        method.batches(torch.randn(2, 2, 4, 3), [0, 1], 0)


def test_synthetic_prints_a_sampler_warning_once(tmp_path: Path) -> None:
    options = ["--n", 12, "--samplers", "refined:pool=4", "--seeds", 2, "--steps", 3, "--batch-size", 4]
    with pytest.warns(UserWarning, match="every pool is a single batch") as caught:
        assert synthetic(*options, "--out", tmp_path / "out") == 0
    assert len(caught) == 1


def test_synthetic_interrupted_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real signal arrives after a step."""
    count = Stages.count

    def interrupt(self: Stages, done: int, total: int) -> None:
        count(self, done, total)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Stages, "count", interrupt)
    assert synthetic("--steps", 100_000_000, "--log-every", 100_000_000, "--out", tmp_path / "out") == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert not (tmp_path / "out").exists()
