"""``mbcl bench ray``, and the cost of a large study."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mbcl.cli import main
from mbcl.study.record import TrialRecord

from .helpers import ROOT, command, errors_in

pytest.importorskip("ray")


def test_stages_of_a_trial_add_up_to_its_seconds() -> None:
    from mbcl.orchestration.bench import stages_of, summarize

    record = TrialRecord(ordinal=0, setting=0, parameters={}, seed=0, sampler="shuffle", objective="simclr")
    record.seconds = {"startup": 4.0, "training": 3.0, "evaluation": 0.5, "ray": 6.5, "total": 10.0}
    stages = stages_of(record, 2.5)
    assert stages == {"startup": 4.0, "prepare": 0.5, "epochs": 2.5, "evaluation": 0.5, "other": 2.5}
    summary = summarize([stages, stages], 25.0)
    assert (summary["outside"], summary["first_step"], summary["overhead"]) == (5.0, 4.5, 7.0)


def test_space_of_runs_one_trial_at_a_time_on_any_machine(tmp_path):
    from mbcl.orchestration.bench import RayBenchSettings, space_of
    from mbcl.orchestration.cluster.capacity import Node
    from mbcl.orchestration.search_space.expansion import expand
    from mbcl.orchestration.search_space.schema import read_space
    from mbcl.orchestration.trial.trial_runners import allocate

    path = tmp_path / "bench.yaml"
    path.write_text(yaml.safe_dump(space_of(RayBenchSettings(trials=3, sampler="shuffle", out=None, overwrite=False))))
    file = read_space(path, [])
    _, concurrency = allocate(file.space, expand(file), [Node(16)])
    assert concurrency.num_trials == 1


@pytest.mark.parametrize("words", [["--trials", "0"], ["--sampler", "nobody"], ["--out", "HERE"]])
def test_bench_ray_refuses_bad_options_in_one_line(words, tmp_path, capsys):
    (tmp_path / "ray.json").write_text("{}")
    line = ["bench", "ray", *(str(tmp_path) if word == "HERE" else word for word in words)]
    try:
        code = main(line)
    except SystemExit as error:  # raised by argparse
        code = error.code
    assert code == 2
    assert errors_in(capsys.readouterr().err).count("\n") == 1


@pytest.mark.slow
@pytest.mark.ray
def test_bench_ray_measures_the_stages_of_a_study(tmp_path):
    line = [sys.executable, "-m", "mbcl", "bench", "ray", "--trials", "2", "--out", str(tmp_path)]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "to the first step" in result.stdout
    content = json.loads((tmp_path / "ray.json").read_text())
    assert len(content["trials"]) == 2
    assert all(seconds > 0 for stages in content["trials"] for seconds in stages.values())


def test_dry_run_lists_a_thousand_trials(space_file, tmp_path):
    space = space_file({"seeds": list(range(500))})
    line = [*command(space, tmp_path / "out"), "--dry-run"]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(" seed ") == 1000
    assert "1000 trials" in result.stdout


TINY = {
    "seeds": list(range(100)),
    "experiment/data/max_samples": 100,
    "experiment/train": {"epochs": 1, "batch_size": 16},
    "experiment/track": [],
}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(7200)
def test_study_of_two_hundred_trials_has_flat_memory(space_file, tmp_path):
    process = subprocess.Popen([*command(space_file(TINY), tmp_path), "--quiet"], cwd=ROOT, env=os.environ)
    study, resident = tmp_path / "study" / "study.json", {}
    while process.poll() is None:
        time.sleep(1)
        if study.exists():
            done = study.read_text().count('"finished"')
            resident.setdefault(done, _resident(process.pid))
    assert process.returncode == 0
    assert study.read_text().count('"finished"') == 200
    early = max(mib for done, mib in resident.items() if 20 <= done < 60)
    late = max(mib for done, mib in resident.items() if done >= 160)
    assert late < early + 100, resident


def _resident(pid: int) -> float:
    """MiB of memory that a process holds, 0 when it has just ended."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)
