"""The main job in real processes on a real Ray, with small trials."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from statistics import fmean

import pytest
import yaml
from patience import wait_for

from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import read_space

from .helpers import (
    ENVIRONMENT,
    ROOT,
    SPACE,
    assert_same_metrics,
    close_gate,
    command,
    descendants,
    errors_in,
    gated_command,
    run_study,
    still_running,
    train_without_ray,
)

pytest.importorskip("ray")


SEQUENTIAL = SPACE | {"resources": {"max_concurrent_trials": 1}}
"""One trial at a time: the gate stops all of them as soon as the second one has a checkpoint."""


def statuses(folder: Path) -> list[str]:
    try:
        return [trial["status"] for trial in json.loads((folder / "study.json").read_text())["trials"].values()]
    except FileNotFoundError:
        return []


def refusal(capsys: pytest.CaptureFixture[str], space: Path, results: Path, *options: str) -> str:
    """The error line of a study that is refused before Ray starts."""
    import run_ray

    assert run_ray.main(command(space, results, *options)[2:]) == 2
    error = errors_in(capsys.readouterr().err)
    assert "Traceback" not in error
    assert error.startswith("error: "), error
    assert error.count("\n") == 1, error
    return error


def damage(study: Path) -> str:
    """Damage files as a kill or a disk may; returns the name of the damaged checkpoint."""
    (study / ".study.json.0123.tmp").write_text('{"trials": {')
    snapshots = [path for path in (study / ".ray").rglob("*") if path.is_file()]
    assert snapshots, "Ray keeps snapshots of its own there"
    for path in snapshots:
        path.write_bytes(b"\x80garbage")
    newest = max(study.glob("trials/001-*/checkpoints/*/manifest.json")).parent
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:-100])
    return newest.name


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory):
    """A study whose processes were killed in its second trial and whose files were damaged, then resumed to its end."""
    folder = tmp_path_factory.mktemp("sweep")
    space = folder / "study.yaml"
    space.write_text(yaml.safe_dump(SEQUENTIAL, sort_keys=False))
    study = folder / "results" / "study"
    with (folder / "log").open("w") as log:
        begun = "trials/001-*/checkpoints/epoch_000001/manifest.json"
        close_gate(folder / "gates" / "begun", "ray::", begun)
        line = gated_command(space, folder / "results", folder / "gates")
        process = subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log, env=ENVIRONMENT)
        try:
            wait_for(lambda: process.poll() is not None or list(study.glob(begun)))
        finally:
            everything = [process.pid, *descendants(process.pid)]
            for pid in everything:  # Ray would end its own only after a minute, with valid checkpoints
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
    assert statuses(study) == ["finished", "running"], (folder / "log").read_text()
    before = json.loads((study / "study.json").read_text())
    wait_for(lambda: not still_running(everything))
    damaged = damage(study)
    result = run_study(space, folder / "results", "--resume")
    assert result.returncode == 0, result.stdout + result.stderr
    wrong = f"{damaged}/state.pt: does not match its manifest; the trial goes on from "
    assert wrong + ("epoch_000001" if damaged == "epoch_000002" else "its beginning") in result.stdout
    return space, study, before, result


@pytest.mark.ray
def test_results_folder_holds_records_tables_and_report(killed_and_resumed):
    _, study, _, result = killed_and_resumed
    present = {path.name for path in study.iterdir()}
    assert {"study.json", "space.yaml", "results.csv", "summary.csv", "report.html", "plots", "trials"} <= present
    assert ".ray" not in present, "files of Ray are removed at the end of the study"
    assert not list(study.rglob("*.tmp"))
    record = json.loads((study / "study.json").read_text())
    for trial_id, trial in record["trials"].items():
        assert trial["status"] == "finished"
        assert {"training", "evaluation", "total", "startup", "ray"} <= set(trial["seconds"])
        files = {path.name for path in (study / "trials" / trial_id).iterdir()}
        assert {"config.yaml", "metrics.jsonl", "checkpoints", "evaluation.json"} <= files
        assert len((study / "trials" / trial_id / "metrics.jsonl").read_text().splitlines()) == 2
    with (study / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["trial_id"] for row in rows] == list(record["trials"])
    resolved = yaml.safe_load((study / "space.yaml").read_text())
    assert resolved["given"] == SEQUENTIAL
    assert resolved["resolved"]["scheduler"] == {"name": "fifo"}
    assert resolved["versions"]["ray"]
    assert "report.html" in result.stdout


@pytest.mark.ray
def test_resume_does_not_run_a_finished_trial_again(killed_and_resumed):
    _, study, before, _ = killed_and_resumed
    after = json.loads((study / "study.json").read_text())
    first, second = list(after["trials"])
    assert after["trials"][first] == before["trials"][first]
    assert after["trials"][first]["attempts"] == 1
    assert after["trials"][second]["attempts"] == 2
    assert after["trials"][second]["metrics"]["plan/lift"] > 0


@pytest.mark.ray
def test_study_metrics_equal_training_without_ray(killed_and_resumed, tmp_path):
    """Neither Ray, nor the tasks of the planner, nor a kill changes a result."""
    space, study, _, _ = killed_and_resumed
    record = json.loads((study / "study.json").read_text())
    for spec in expand(read_space(space)).specs:
        expected = train_without_ray(spec.experiment, tmp_path / spec.trial_id)
        assert_same_metrics(record["trials"][spec.trial_id]["metrics"], expected)


@pytest.mark.ray
def test_results_can_be_recomputed_from_the_draws(killed_and_resumed):
    _, study, _, _ = killed_and_resumed
    with (study / "draws.csv").open() as draws, (study / "results.csv").open() as results:
        drawn, trials = list(csv.DictReader(draws)), list(csv.DictReader(results))
    metrics = [name for name in drawn[0] if name.startswith("retrieval/")]
    assert len(metrics) == 14
    for trial in trials:
        rows = [row for row in drawn if row["trial_id"] == trial["trial_id"]]
        assert [row["draw"] for row in rows] == [str(number) for number in range(20)]
        for metric in metrics:
            assert fmean(float(row[metric]) for row in rows) == float(trial[metric])


def untimed(folder: Path) -> list[dict[str, str]]:
    """The rows of ``results.csv`` without times."""
    with (folder / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    clocks = ("seconds/", "time/", "plan/seconds")
    return [{key: value for key, value in row.items() if not key.startswith(clocks)} for row in rows]


@pytest.mark.slow
@pytest.mark.ray
def test_concurrent_trials_equal_sequential_ones(killed_and_resumed, tmp_path):
    space, study, _, _ = killed_and_resumed
    result = run_study(space, tmp_path / "out", "--set", "resources.max_concurrent_trials=2")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 at a time (resources.max_concurrent_trials), each 1 worker with 1 CPU" in result.stdout
    rows = untimed(tmp_path / "out" / "study")
    assert len(rows) == 2
    assert {"train/loss", "plan/lift", "retrieval/u2v/mrr"} < set(rows[0])
    assert rows == untimed(study)


@pytest.mark.ray
@pytest.mark.slow
def test_study_results_do_not_depend_on_concurrency_or_resume(space_file, tmp_path):
    """Every sampler with embeddings, drawn rates, two seeds: one by one, two at a time, and killed and resumed."""
    changes = {
        "seeds": [0, 1],
        "space/sampler": {
            "grid": [
                {"name": "shuffle"},
                {"name": "osgd", "k": 8, "q": 4},
                {"name": "spectral", "k": 4},
                {"name": "refined"},
            ]
        },
        "space/optimizer.lr": {"loguniform": [0.01, 0.2]},
        "search/num_samples": 2,
    }
    space, two = space_file(changes), ("--set", "resources.max_concurrent_trials=2")
    for name, options in (("one", ()), ("two", two)):
        result = run_study(space, tmp_path, "--name", name, *options)
        assert result.returncode == 0, result.stdout + result.stderr
    line = [*command(space, tmp_path, "--name", "cut"), *two]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    try:
        wait_for(lambda: process.poll() is not None or statuses(tmp_path / "cut").count("finished") >= 5)
    finally:
        process.kill()
        process.wait()
    assert run_study(space, tmp_path, "--name", "cut", "--resume").returncode == 0
    rows = untimed(tmp_path / "one")
    assert len(rows) == 16
    assert rows == untimed(tmp_path / "two")
    assert rows == untimed(tmp_path / "cut")


@pytest.mark.ray
def test_finished_study_runs_nothing_again_and_refuses_changes(killed_and_resumed, capsys):
    space, study, _, _ = killed_and_resumed
    resumed = run_study(space, study.parent, "--resume")
    assert resumed.returncode == 0
    assert "finished  " not in resumed.stdout
    assert "--resume" in refusal(capsys, space, study.parent)
    changed = refusal(capsys, space, study.parent, "--resume", "--set", "experiment.train.epochs=3")
    assert "experiment.train.epochs was 2, now it is 3" in changed


@pytest.fixture
def own_copy(killed_and_resumed, tmp_path):
    """A finished study that a test may change: its space file and its folder."""
    space, study, _, _ = killed_and_resumed
    return space, Path(shutil.copytree(study, tmp_path / "results" / "study"))


@pytest.mark.ray
@pytest.mark.slow
def test_eval_only_measures_all_trials_again(own_copy, capsys):
    """Other settings and further metrics, which reach the tables and the report."""
    space, study = own_copy
    before = json.loads((study / "study.json").read_text())
    files = [study / "trials" / trial_id / "evaluation.json" for trial_id in before["trials"]]
    forged = json.loads(files[0].read_text())
    forged["metrics"]["retrieval/u2v/top1"] = 17.0
    files[0].write_text(json.dumps(forged))
    chosen = [
        "similarity=dot",
        "metrics=[retrieval, corrupted, knn, probe, repr]",
        "baselines=[random, pixels]",
        "corrupted={severities: [2], corruptions: [fog, contrast]}",
    ]
    overrides = [word for setting in chosen for word in ("--set", f"experiment.evaluation.{setting}")]
    result = run_study(space, study.parent, "--eval-only", *overrides)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("evaluated ") == 2
    assert "finished  " not in result.stdout
    after = json.loads((study / "study.json").read_text())
    for (trial_id, trial), file in zip(after["trials"].items(), files, strict=True):
        old = before["trials"][trial_id]["metrics"]
        assert trial["metrics"]["train/loss"] == old["train/loss"]
        assert set(trial["metrics"]) > set(old)
        evaluation_file = json.loads(file.read_text())
        assert evaluation_file["asked"]["settings"]["similarity"] == "dot"
        assert evaluation_file["metrics"].items() <= trial["metrics"].items()
    assert any(trial["metrics"] != before["trials"][trial_id]["metrics"] for trial_id, trial in after["trials"].items())
    evaluation = yaml.safe_load((study / "space.yaml").read_text())["evaluation"]
    assert [block["trials"] for block in evaluation["evaluated"]] == [list(after["trials"])]
    assert evaluation["evaluated"][0]["settings"]["similarity"] == "dot"
    assert evaluation["when"] > after["created"]
    assert_in_tables_and_report(study)
    for setting, text in (
        ("knn={k: 5000}", "evaluation.knn.k: 5000 is above the 270"),
        ("split=train", "knn is fitted"),
    ):
        bad = [*overrides, "--set", f"experiment.evaluation.{setting}"]
        assert text in refusal(capsys, space, study.parent, "--eval-only", *bad)


def assert_in_tables_and_report(study: Path) -> None:
    """Assert that the further metrics are in the tables and the report, and those of baselines measured once."""
    expected = {"corrupted/within/2/u2v/top1", "corrupted/clean/fog/2/top1", "corrupted/clean/mean/2/top1"}
    expected |= {"knn/top1", "probe/top1", "repr/alignment", "repr/uniformity", "repr/effective_rank"}
    expected |= {f"baseline/{kind}/{metric}" for kind in ("random", "pixels") for metric in expected}
    with (study / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    with (study / "summary.csv").open() as stream:
        settings = list(csv.DictReader(stream))
    page = (study / "report.html").read_text()
    for metric in expected:
        assert all(row[metric] for row in rows), metric
        assert [float(row[f"{metric}/mean"]) for row in settings] == [float(row[metric]) for row in rows]
        assert metric in page
    names = sorted(path.name.rpartition("-")[0] for path in (study / "baselines").iterdir())
    metrics = ("corrupted", "knn", "probe", "repr", "retrieval")
    assert names == [f"{kind}-{metric}" for kind in ("pixels", "random") for metric in metrics], "one seed, one model"
    assert len({row["baseline/random/knn/top1"] for row in rows}) == 1


def _fail_the_second(study: Path) -> tuple[str, str]:
    """Turn the second trial into one that failed in its evaluation; returns the names of both."""
    record = json.loads((study / "study.json").read_text())
    first, second = record["trials"]
    record["trials"][second] |= {"status": "failed", "error": "lost", "metrics": {}, "seconds": {}}
    (study / "study.json").write_text(json.dumps(record))
    (study / "trials" / second / "evaluation.json").unlink()
    return first, second


@pytest.mark.ray
@pytest.mark.slow
def test_resume_after_eval_only_uses_its_settings(own_copy):
    """Otherwise one table would mix metrics of two evaluation settings."""
    space, study = own_copy
    first, second = _fail_the_second(study)
    result = run_study(space, study.parent, "--eval-only", "--set", "experiment.evaluation.similarity=dot")
    assert result.returncode == 1, "a trial is still missing"
    record = json.loads((study / "study.json").read_text())["trials"]
    assert [record[key]["evaluation"]["similarity"] for key in (first, second)] == ["dot", "dot"]
    assert record[first]["status"] == "finished"
    result = run_study(space, study.parent, "--resume")
    assert result.returncode == 0, result.stderr
    assert "note: trials are evaluated as the last --eval-only asked" in result.stdout
    for key in (first, second):
        evaluation_file = json.loads((study / "trials" / key / "evaluation.json").read_text())
        assert evaluation_file["asked"]["settings"]["similarity"] == "dot"
        metrics = json.loads((study / "study.json").read_text())["trials"][key]["metrics"]
        assert evaluation_file["metrics"].items() <= metrics.items()


@pytest.mark.ray
@pytest.mark.slow
def test_eval_only_that_fails_leaves_the_study_unchanged(own_copy):
    space, study = own_copy
    files = [study / "study.json", study / "space.yaml", *study.glob("trials/*/evaluation.json")]
    before = {path: path.read_bytes() for path in files}
    broken = max(study.glob("trials/*"))
    shutil.rmtree(broken / "checkpoints")
    result = run_study(space, study.parent, "--eval-only", "--set", "experiment.evaluation.similarity=dot")
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{broken.name}: evaluation failed: " in result.stderr
    assert "1 of 2 evaluations failed; the study keeps its earlier one" in result.stderr
    assert "finished  " not in result.stdout
    assert {path: path.read_bytes() for path in files} == before


@pytest.mark.slow
@pytest.mark.ray
def test_failed_trial_is_a_row_and_the_others_finish(space_file, tmp_path):
    space = space_file({"space": {"optimizer.lr": {"grid": [1e38, 0.075]}}, "baseline": {}})
    result = run_study(space, tmp_path / "out")
    assert result.returncode == 1, result.stdout + result.stderr
    record = json.loads((tmp_path / "out" / "study" / "study.json").read_text())
    failed, finished = record["trials"].values()
    assert (failed["status"], finished["status"]) == ("failed", "finished")
    assert "the loss is" in failed["error"]
    assert "\n" not in failed["error"]
    assert failed["attempts"] == 1, "it would fail the same way again"
    assert "FAILED" in result.stdout
    assert failed["error"] in (tmp_path / "out" / "study" / "results.csv").read_text()
    logs = [path.read_text() for path in (tmp_path / "out" / "study" / "trials").glob("*/error.log")]
    assert len(logs) == 1
    assert logs[0].startswith(failed["error"])
    assert "Traceback" in logs[0]


@pytest.mark.ray
@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM],
    ids=lambda number: getattr(number, "name", ""),
)
def test_study_interrupted_by_a_signal_can_be_resumed(space_file, tmp_path, number):
    space, out = space_file({"experiment/train/epochs": 1000000}), tmp_path / "out"
    process = subprocess.Popen(
        command(space, out),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=ENVIRONMENT,
    )
    try:
        wait_for(lambda: process.poll() is not None or list(out.glob("study/trials/*/metrics.jsonl")))
        second = subprocess.run(command(space, out, "--resume"), cwd=ROOT, capture_output=True, text=True)
        os.kill(process.pid, number)
        _, stderr = process.communicate()
    finally:
        process.kill()
    assert second.returncode == 2, "two studies in one folder"
    assert "another sweep is at work there" in second.stderr
    assert process.returncode == 130, stderr
    assert "--resume" in stderr.splitlines()[-1]
    assert f"--space {space}" in stderr.splitlines()[-1]
    assert statuses(out / "study") == ["pending", "pending"]
    assert (out / "study" / "results.csv").exists()
