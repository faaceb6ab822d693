"""A control of equal forward passes and nuisance keys on a real Ray: tuning, a kill, --resume, and the report."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from contextlib import suppress

import pytest
import yaml
from patience import wait_for

from mbcl.engine.metrics_log import read_rows
from mbcl.io.store import LocalStore

from .helpers import ENVIRONMENT, ROOT, SPACE, command, descendants, run_study, still_running

pytest.importorskip("ray")

FAIR = {
    **SPACE,
    "seeds": [0, 1],
    "control": "equal_passes",
    "nuisance": {"keys": ["objective.temperature"], "seeds": [7]},
    "experiment": {**SPACE["experiment"], "train": {"epochs": 1, "batch_size": 16}},
    "space": {
        **SPACE["space"],
        "objective.temperature": {"grid": [0.1, 0.5]},
        "sampler.temperature": {"same_as": "objective.temperature"},
    },
}
VALIDATION = "val/retrieval/mrr"


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory):
    """The study, killed in the first trial that measures a choice, then resumed; its record and its folder."""
    folder = tmp_path_factory.mktemp("fair")
    space, study = folder / "study.yaml", folder / "results" / "study"
    space.write_text(yaml.safe_dump(FAIR, sort_keys=False))
    with (folder / "log").open("w") as log:
        line = command(space, folder / "results")
        process = subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log, env=ENVIRONMENT)
        try:
            confirms = ("trials/00[6-9]-*/checkpoints/epoch_000001", "trials/01?-*/checkpoints/epoch_000001")
            wait_for(lambda: process.poll() is not None or any(list(study.glob(each)) for each in confirms))
        finally:
            everything = [process.pid, *descendants(process.pid)]
            for pid in everything:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
    assert (study / "study.json").exists(), (folder / "log").read_text()
    before = json.loads((study / "study.json").read_text())["trials"]
    wait_for(lambda: not still_running(everything))
    result = run_study(space, folder / "results", "--resume")
    assert result.returncode == 0, result.stdout + result.stderr
    return before, study, result


@pytest.mark.ray
def test_tuning_chooses_and_other_seeds_measure(killed_and_resumed):
    before, study, result = killed_and_resumed
    trials = json.loads((study / "study.json").read_text())["trials"]
    assert len(trials) == 12, "3 settings, the control among them: 2 candidates on 1 seed, then 2 seeds"
    assert all(trial["status"] == "finished" for trial in trials.values())
    stages = [(trial["stage"], trial["seed"]) for trial in trials.values()]
    assert sorted(stages) == sorted(6 * [("tuning", 7)] + 3 * [("confirmation", 0), ("confirmation", 1)])
    for key, trial in trials.items():
        if key in before and before[key]["status"] == "finished":
            assert trial == before[key], "a finished trial does not run again"
        evaluated = (study / "trials" / key / "evaluation.json").exists()
        assert evaluated == (trial["stage"] == "confirmation"), "tuning never reads the test split"
    for arm in range(3):
        tuning = [t for t in trials.values() if (t["arm"], t["stage"]) == (arm, "tuning")]
        confirmed = [t for t in trials.values() if (t["arm"], t["stage"]) == (arm, "confirmation")]
        best = max(tuning, key=lambda trial: trial["metrics"][VALIDATION])
        assert [t["nuisance"] for t in confirmed] == 2 * [best["nuisance"]]
    assert result.stdout.count(f"the best of 2 candidates by {VALIDATION}") == 3


@pytest.mark.ray
def test_the_control_made_as_many_forward_passes(killed_and_resumed):
    _, study, _ = killed_and_resumed
    trials = json.loads((study / "study.json").read_text())["trials"]
    passes = {key: read_rows(LocalStore(study / "trials" / key))[-1]["work/passes"] for key in trials}
    by_setting = {trial["setting"]: passes[key] for key, trial in trials.items()}
    compared = [trial for trial in trials.values() if trial["equal_passes"] is not None]
    assert {trial["sampler"] for trial in compared} == {"spectral"}
    for trial in compared:
        assert by_setting[trial["equal_passes"]] >= by_setting[trial["setting"]]
    # 270 images: an epoch trains on 256, which is 768 passes, and a plan embeds 270; two epochs of shuffle are more.
    assert set(passes.values()) == {768, 768 + 270, 2 * 768}


@pytest.mark.ray
def test_report_compares_at_equal_steps_and_at_equal_passes(killed_and_resumed):
    _, study, _ = killed_and_resumed
    with (study / "comparison.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == "retrieval/mrr"]
    assert [(row["control"], row["baseline_label"], row["n"], row["candidates"]) for row in rows] == [
        ("equal_steps", "shuffle", "2", "2"),
        ("equal_passes", "shuffle, epochs=2", "2", "2"),
    ]
    with (study / "results.csv").open() as stream:
        results = list(csv.DictReader(stream))
    assert [row["stage"] for row in results] == 6 * ["tuning"] + 6 * ["confirmation"]
    assert {row["objective.temperature"] for row in results} == {"0.1", "0.5"}
    page = (study / "report.html").read_text()
    assert "Nuisance hyperparameters" in page
    assert "<td>passes</td><td>shuffle, epochs=2</td>" in page
    assert 'id="against-passes"' in page


@pytest.mark.slow
@pytest.mark.ray
def test_a_candidate_that_diverges_is_a_result(tmp_path):
    """No command fails because of it, and none trains it again."""
    rates = {"optimizer.lr": {"grid": [0.05, 1e37]}}
    space = tmp_path / "study.yaml"
    content = {
        **FAIR,
        "seeds": [0],
        "control": None,
        "nuisance": {"keys": ["optimizer.lr"], "seeds": [7]},
        "experiment": {**FAIR["experiment"], "optimizer": {"name": "sgd"}},
        "space": {"sampler": {"grid": [{"name": "shuffle"}, {"name": "fixed"}]}, **rates},
    }
    space.write_text(yaml.safe_dump(content, sort_keys=False))
    record = tmp_path / "results" / "study" / "study.json"
    for options in ((), ("--resume",)):
        result = run_study(space, tmp_path / "results", *options)
        assert result.returncode == 0, result.stdout + result.stderr
        trials = json.loads(record.read_text())["trials"].values()
        assert [trial["attempts"] for trial in trials] == 6 * [1]
        assert [(trial["status"], trial["diverged"]) for trial in trials if trial["stage"] == "tuning"] == 2 * [
            ("finished", False),
            ("failed", True),
        ]
        assert result.stdout.count("lr=0.05, the best of 2 candidates, of which 1 diverged,") == 2
        assert result.stdout.count("diverged  00") == (4 if not options else 2)
        assert "FAILED" not in result.stdout
    assert "--resume" not in (record.parent / "report.html").read_text()
