"""Synthetic studies as the trials of a space: errors before Ray starts, and a study on a real Ray."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mbcl.errors import ConfigError
from mbcl.io.store import LocalStore
from mbcl.orchestration.results_folder.layout import create, new_study
from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import read_space
from mbcl.synthetic.trial import run_synthetic_trial

from .helpers import ROOT, errors_in, run_study

pytest.importorskip("ray")

SPACE: dict[str, Any] = {
    "question": "Does it run?",
    "seeds": [0, 1],
    "baseline": {"sampler": "s"},
    "experiment": {"synthetic": {"n": 6, "dim": 5, "steps": 60, "log_every": 20}},
    "space": {"sampler": {"grid": [{"name": "shuffle"}, {"name": "osgd_NcB"}]}},
}


@pytest.fixture
def space_file(tmp_path: Path):
    def write(changes: dict[str, Any] | None = None) -> Path:
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump({**SPACE, **(changes or {})}, sort_keys=False))
        return file

    return write


def test_synthetic_space_has_its_metric_and_expands(space_file):
    file = read_space(space_file({"space": {**SPACE["space"], "synthetic.n": {"grid": [6, 12]}}}))
    assert (file.space.search.metric, file.space.search.mode) == ("synthetic/distance", "min")
    specs = expand(file).specs
    assert [spec.experiment.settings.n for spec in specs] == [6, 6, 12, 12] * 2
    assert {spec.experiment.objective.name for spec in specs} == {"clip"}
    assert len({spec.trial_id for spec in specs}) == 8


BROKEN = [
    ({"space": {"synthetic.m": {"grid": [1]}}, "baseline": {}}, "space.synthetic.m: unknown key 'm'"),
    ({"space": {"train.epochs": {"grid": [1]}}, "baseline": {}}, "space.train.epochs: unknown key 'train'"),
    ({"space": {"synthetic.n": {"grid": [6, 1]}}, "baseline": {}}, "experiment.synthetic.n: Input should be greater"),
    ({"experiment": {}, "space": {"synthetic.n": {"grid": [6]}}}, "space.synthetic.n: the base is no synthetic study"),
    ({"experiment": {"synthetic": {}, "data": {}}}, "experiment.data: a synthetic study does not use it"),
    ({"search": {"metric": "val/retrieval/top1"}}, "search: metric 'val/retrieval/top1' cannot be searched on"),
    ({"search": {"mode": "max"}}, "search.mode: found 'max', but synthetic/distance is better the lower it is"),
    ({"resources": {"workers": 2}}, "resources.workers: found 2, but a synthetic study is one process"),
    ({"resources": {"gpu": True}}, "resources.gpu: found true, but a synthetic study runs on a CPU"),
    (
        {"space": {"sampler": {"grid": [{"name": "spectral"}, {"name": "sc_even", "k": None}]}}, "baseline": {}},
        "is the same experiment as setting 0",
    ),
]


@pytest.mark.parametrize(("changes", "words"), BROKEN, ids=[words[:40] for _, words in BROKEN])
def test_synthetic_space_errors_name_file_and_key(space_file, changes, words):
    file = space_file(changes)
    with pytest.raises(ConfigError) as caught:
        expand(read_space(file))
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("block", "sampler", "words"),
    [
        ({"n": 64, "batch_size": 32}, {"name": "osgd_NcB"}, "there are about 10^18 batches of 32 of 64 samples"),
        ({"n": 2000}, {"name": "all_batches"}, "there are 1,999,000 batches of 2 of 2000 samples"),
        ({"n": 8}, {"name": "osgd", "k": 5, "q": 1}, "osgd"),
    ],
)
def test_dry_run_checks_the_samplers_of_a_synthetic_space(space_file, tmp_path, block, sampler, words, capsys):
    import run_ray

    changes = {"experiment": {"synthetic": block}, "space": {"sampler": {"grid": [sampler]}}, "baseline": {}}
    file = space_file(changes)
    assert run_ray.main(["--space", str(file), "--results-dir", str(tmp_path / "out"), "--dry-run"]) == 2
    error = errors_in(capsys.readouterr().err)
    assert error.startswith(f"error: {file}: experiment.sampler: ")
    assert words in error
    assert error.count("\n") == 1


def test_dry_run_of_a_synthetic_space_names_missing_metrics_without_ray(space_file, tmp_path):
    file = space_file({"experiment": {"synthetic": {"n": 6, "dim": 4, "restarts": 2}}})
    code = (
        "import sys, run_ray\n"
        f"code = run_ray.main(['--space', {str(file)!r}, '--results-dir', {str(tmp_path / 'out')!r}, '--dry-run'])\n"
        "assert 'ray' not in sys.modules, 'Ray was loaded'\n"
        "sys.exit(code)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    message = "no optimum of 6 samples in 4 dimensions is known in closed form, so there is no synthetic/distance, and"
    assert result.stdout.count(message) == 1
    assert "each 1 worker with 1 CPU, into" in result.stdout
    assert "4 trials" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_synthetic_study_resumes_and_reports_a_failing_trial(space_file, tmp_path, capsys):
    """Rows equal those of the trials run in this process; a diverging rate gives a row with its error."""
    import run_ray

    file = read_space(space_file({"space": {**SPACE["space"], "synthetic.lr": {"grid": [0.5, 1e300]}}, "seeds": [4]}))
    trials, folder = expand(file), tmp_path / "out" / "study"
    study = new_study(file, trials, "study")
    done = next(iter(study.trials))
    study.trials[done].status, study.trials[done].metrics = "finished", {"synthetic/distance": 17.0}
    create(LocalStore(folder), file, trials, study)
    result = run_study(file.path, tmp_path / "out", "--resume")
    assert result.returncode == 1, result.stdout + result.stderr
    record = json.loads((folder / "study.json").read_text())["trials"]
    assert [trial["status"] for trial in record.values()] == ["finished", "failed", "finished", "failed"]
    assert record[done]["metrics"] == {"synthetic/distance": 17.0}, "it is not run again"
    ran = list(record)[2]
    assert record[ran]["metrics"] == run_synthetic_trial(trials.by_id[ran].experiment, LocalStore(tmp_path / ran))
    for name in ("config.yaml", "metrics.jsonl"):
        assert (folder / "trials" / ran / name).read_text() == (tmp_path / ran / name).read_text()
    assert all("no direction after step" in trial["error"] for trial in record.values() if trial["status"] == "failed")
    with (folder / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["sampler"] for row in rows] == ["shuffle"] * 2 + ["osgd_exhaustive"] * 2
    assert [row["objective"] for row in rows] == ["clip"] * 4
    assert [row["synthetic/updates"] for row in rows] == ["", "", "180", ""]
    page = (folder / "report.html").read_text()
    for text in ("synthetic/distance over the steps", "synthetic/excess", "no direction after step"):
        assert text in page
    assert "synthetic/distance" in result.stdout
    options = ["--space", str(file.path), "--results-dir", str(tmp_path / "out"), "--eval-only"]
    assert run_ray.main(options) == 2
    assert errors_in(capsys.readouterr().err) == "error: --eval-only: a synthetic study has no evaluation of its own\n"


@pytest.mark.ray
@pytest.mark.slow
def test_shipped_synthetic_space_agrees_with_the_theory(tmp_path):
    result = run_study(ROOT / "tune_spaces" / "synthetic.yaml", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = tmp_path / "synthetic"
    with (folder / "summary.csv").open() as stream:
        settings = list(csv.DictReader(stream))
    assert len(settings) == 40
    for row in settings:
        distance = float(row["synthetic/distance/mean"])
        if row["sampler"] == "fixed":
            assert distance > 1, row["label"]
    with (folder / "comparison.csv").open() as stream:
        compared = [row for row in csv.DictReader(stream) if row["metric"] == "synthetic/distance"]
    assert len(compared) == 32, "each with the shuffle of its own N, d and B"
    assert all(float(row["difference"]) > 0 for row in compared if row["label"].startswith("fixed"))
    assert all(float(row["difference"]) < 0 for row in compared if row["label"].startswith("spectral"))
