"""The main job as a user runs it: real processes, real Ray, small trials."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from patience import wait_for

from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import read_space

from .helpers import ENVIRONMENT, ROOT, SPACE, alive, alone, assert_as_alone, call, children, command, gated, shut

pytest.importorskip("ray")


def statuses(folder: Path) -> list[str]:
    try:
        return [trial["status"] for trial in json.loads((folder / "study.json").read_text())["trials"].values()]
    except FileNotFoundError:
        return []


def one_error_line(result: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def damage(study: Path) -> str:
    """What a kill, a machine or a disk may leave: returns the checkpoint that is not whole any more."""
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
    """A sweep, all of its processes killed while its second trial ran, its files damaged, then resumed to its end."""
    folder = tmp_path_factory.mktemp("sweep")
    space = folder / "study.yaml"
    space.write_text(yaml.safe_dump(SPACE, sort_keys=False))
    study = folder / "results" / "study"
    with (folder / "log").open("w") as log:
        begun = "trials/001-*/checkpoints/epoch_000001/manifest.json"
        shut(folder / "gates" / "begun", "ray::", begun)
        line = gated(space, folder / "results", folder / "gates")
        process = subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log, env=ENVIRONMENT)
        try:
            wait_for(lambda: process.poll() is not None or list(study.glob(begun)))
        finally:
            everything = [process.pid, *children(process.pid)]
            for pid in everything:  # Ray's own would notice only after a minute, and write whole checkpoints meanwhile
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
    assert statuses(study) == ["finished", "running"], (folder / "log").read_text()
    before = json.loads((study / "study.json").read_text())
    wait_for(lambda: not alive(everything))
    damaged = damage(study)
    result = call(space, folder / "results", "--resume")
    assert result.returncode == 0, result.stdout + result.stderr
    wrong = f"{damaged}/state.pt: does not match its manifest; the trial goes on from "
    assert wrong + ("epoch_000001" if damaged == "epoch_000002" else "its beginning") in result.stdout
    return space, study, before, result


@pytest.mark.ray
def test_results_folder(killed_and_resumed):
    _, study, _, result = killed_and_resumed
    present = {path.name for path in study.iterdir()}
    assert {"study.json", "space.yaml", "results.csv", "summary.csv", "report.html", "plots", "trials"} <= present
    assert ".ray" not in present, "Ray's own files go when the sweep ends"
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
    assert resolved["given"] == SPACE
    assert resolved["resolved"]["scheduler"] == {"name": "fifo"}
    assert resolved["versions"]["ray"]
    assert "report.html" in result.stdout


@pytest.mark.ray
def test_a_finished_trial_is_not_run_again(killed_and_resumed):
    _, study, before, _ = killed_and_resumed
    after = json.loads((study / "study.json").read_text())
    first, second = list(after["trials"])
    assert after["trials"][first] == before["trials"][first]
    assert after["trials"][first]["attempts"] == 1
    assert after["trials"][second]["attempts"] == 2
    assert after["trials"][second]["metrics"]["plan/lift"] > 0


@pytest.mark.ray
def test_the_sweep_gives_what_training_alone_gives(killed_and_resumed, tmp_path):
    """Neither Ray, nor the planner's tasks, nor a kill in the middle changes a result."""
    space, study, _, _ = killed_and_resumed
    record = json.loads((study / "study.json").read_text())
    for spec in expand(read_space(space)).specs:
        expected = alone(spec.experiment, tmp_path / spec.trial_id)
        assert_as_alone(record["trials"][spec.trial_id]["metrics"], expected)


def untimed(folder: Path) -> list[dict[str, str]]:
    """The rows of ``results.csv`` without what depends on how busy the machine was."""
    with (folder / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    clocks = ("seconds/", "time/", "plan/seconds")
    return [{key: value for key, value in row.items() if not key.startswith(clocks)} for row in rows]


@pytest.mark.slow
@pytest.mark.ray
def test_trials_side_by_side_give_what_they_give_one_by_one(killed_and_resumed, tmp_path):
    space, study, _, _ = killed_and_resumed
    result = call(space, tmp_path / "out", "--set", "resources.max_concurrent_trials=2")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 at a time (resources.max_concurrent_trials), each 1 worker with 0.999 CPU" in result.stdout
    rows = untimed(tmp_path / "out" / "study")
    assert len(rows) == 2
    assert {"train/loss", "plan/lift", "retrieval/u2v/mrr"} < set(rows[0])
    assert rows == untimed(study)


@pytest.mark.ray
@pytest.mark.slow
def test_concurrency_and_order_change_no_result(space_file, tmp_path):
    """Every sampler with embeddings, drawn rates, two seeds: one by one, two at a time, and cut and resumed."""
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
        result = call(space, tmp_path, "--name", name, *options)
        assert result.returncode == 0, result.stdout + result.stderr
    line = [*command(space, tmp_path, "--name", "cut"), *two]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    try:
        wait_for(lambda: process.poll() is not None or statuses(tmp_path / "cut").count("finished") >= 5)
    finally:
        process.kill()
        process.wait()
    assert call(space, tmp_path, "--name", "cut", "--resume").returncode == 0
    rows = untimed(tmp_path / "one")
    assert len(rows) == 16
    assert rows == untimed(tmp_path / "two")
    assert rows == untimed(tmp_path / "cut")


@pytest.mark.ray
def test_after_the_end_only_what_is_asked_for_runs(killed_and_resumed):
    space, study, _, _ = killed_and_resumed
    again = call(space, study.parent, "--resume")
    assert again.returncode == 0
    assert "finished  " not in again.stdout
    refused = call(space, study.parent)
    assert refused.returncode == 2
    assert "--resume" in one_error_line(refused)
    other = call(space, study.parent, "--resume", "--set", "experiment.train.epochs=3")
    assert other.returncode == 2
    assert "experiment.train.epochs was 2, now it is 3" in one_error_line(other)


@pytest.fixture
def own_copy(killed_and_resumed, tmp_path):
    """A finished study that a test may change: its space file and its folder."""
    space, study, _, _ = killed_and_resumed
    return space, Path(shutil.copytree(study, tmp_path / "results" / "study"))


@pytest.mark.ray
def test_evaluation_alone(own_copy):
    space, study = own_copy
    before = json.loads((study / "study.json").read_text())
    files = [study / "trials" / trial_id / "evaluation.json" for trial_id in before["trials"]]
    forged = json.loads(files[0].read_text())
    forged["metrics"]["retrieval/u2v/top1"] = 17.0
    files[0].write_text(json.dumps(forged))
    result = call(space, study.parent, "--eval-only", "--set", "experiment.evaluation.similarity=dot")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("evaluated ") == 2
    assert "finished  " not in result.stdout
    after = json.loads((study / "study.json").read_text())
    for (trial_id, trial), file in zip(after["trials"].items(), files, strict=True):
        old = before["trials"][trial_id]["metrics"]
        assert trial["metrics"]["train/loss"] == old["train/loss"]
        assert set(trial["metrics"]) == set(old)
        measured = json.loads(file.read_text())
        assert measured["asked"]["settings"]["similarity"] == "dot"
        assert measured["metrics"].items() <= trial["metrics"].items()
    assert any(trial["metrics"] != before["trials"][trial_id]["metrics"] for trial_id, trial in after["trials"].items())
    evaluation = yaml.safe_load((study / "space.yaml").read_text())["evaluation"]
    assert [block["trials"] for block in evaluation["evaluated"]] == [list(after["trials"])]
    assert evaluation["evaluated"][0]["settings"]["similarity"] == "dot"
    assert evaluation["when"] > after["created"]


def _fail_the_second(study: Path) -> tuple[str, str]:
    """Make the second trial one that failed in its evaluation; the names of both."""
    record = json.loads((study / "study.json").read_text())
    first, second = record["trials"]
    record["trials"][second] |= {"status": "failed", "error": "lost", "metrics": {}, "seconds": {}}
    (study / "study.json").write_text(json.dumps(record))
    (study / "trials" / second / "evaluation.json").unlink()
    return first, second


@pytest.mark.ray
@pytest.mark.slow
def test_what_is_resumed_after_another_evaluation_is_evaluated_as_the_others(own_copy):
    """Otherwise one table would hold figures that were measured in two ways."""
    space, study = own_copy
    first, second = _fail_the_second(study)
    result = call(space, study.parent, "--eval-only", "--set", "experiment.evaluation.similarity=dot")
    assert result.returncode == 1, "a trial is still missing"
    record = json.loads((study / "study.json").read_text())["trials"]
    assert [record[key]["evaluation"]["similarity"] for key in (first, second)] == ["dot", "dot"]
    assert record[first]["status"] == "finished"
    result = call(space, study.parent, "--resume")
    assert result.returncode == 0, result.stderr
    assert "note: trials are evaluated as the last --eval-only asked" in result.stdout
    for key in (first, second):
        measured = json.loads((study / "trials" / key / "evaluation.json").read_text())
        assert measured["asked"]["settings"]["similarity"] == "dot"
        metrics = json.loads((study / "study.json").read_text())["trials"][key]["metrics"]
        assert measured["metrics"].items() <= metrics.items()


@pytest.mark.ray
def test_other_metrics_go_through_tables_and_report(own_copy):
    space, study = own_copy
    corrupted = "{severities: [2], corruptions: [fog, contrast]}"
    chosen = [
        "metrics=[retrieval, corrupted, knn, probe, repr]",
        "baselines=[random, pixels]",
        f"corrupted={corrupted}",
    ]
    overrides = [word for setting in chosen for word in ("--set", f"experiment.evaluation.{setting}")]
    result = call(space, study.parent, "--eval-only", *overrides)
    assert result.returncode == 0, result.stderr
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
    values = {row["baseline/random/knn/top1"] for row in rows}
    assert len(values) == 1
    for setting, text in (
        ("knn={k: 5000}", "evaluation.knn.k: 5000 is above the 270"),
        ("split=train", "knn is fitted"),
    ):
        bad = call(space, study.parent, "--eval-only", *overrides, "--set", f"experiment.evaluation.{setting}")
        assert bad.returncode == 2
        assert text in one_error_line(bad)


@pytest.mark.ray
def test_an_evaluation_that_fails_leaves_the_study_as_it_was(own_copy):
    space, study = own_copy
    kept = [study / "study.json", study / "space.yaml", *study.glob("trials/*/evaluation.json")]
    before = {path: path.read_bytes() for path in kept}
    broken = max(study.glob("trials/*"))
    shutil.rmtree(broken / "checkpoints")
    result = call(space, study.parent, "--eval-only", "--set", "experiment.evaluation.similarity=dot")
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{broken.name}: evaluation failed: " in result.stderr
    assert "1 of 2 evaluations failed; the study keeps its earlier one" in result.stderr
    assert "finished  " not in result.stdout
    assert {path: path.read_bytes() for path in kept} == before


@pytest.mark.slow
@pytest.mark.ray
def test_a_failing_trial_is_a_row_and_the_others_stay(space_file, tmp_path):
    space = space_file({"space": {"optimizer.lr": {"grid": [1e38, 0.075]}}, "baseline": {}})
    result = call(space, tmp_path / "out")
    assert result.returncode == 1, result.stdout + result.stderr
    record = json.loads((tmp_path / "out" / "study" / "study.json").read_text())
    failed, finished = record["trials"].values()
    assert (failed["status"], finished["status"]) == ("failed", "finished")
    assert "the loss is" in failed["error"]
    assert "\n" not in failed["error"]
    assert failed["attempts"] == 1, "it would fail the same way again"
    assert "FAILED" in result.stdout
    assert failed["error"] in (tmp_path / "out" / "study" / "results.csv").read_text()


@pytest.mark.ray
@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM],
    ids=lambda number: getattr(number, "name", ""),
)
def test_interrupted(space_file, tmp_path, number):
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
    assert second.returncode == 2, "two sweeps in one folder"
    assert "another sweep is at work there" in second.stderr
    assert process.returncode == 130, stderr
    assert "--resume" in stderr.splitlines()[-1]
    assert f"--space {space}" in stderr.splitlines()[-1]
    assert statuses(out / "study") == ["pending", "pending"]
    assert (out / "study" / "results.csv").exists()
