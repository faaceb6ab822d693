"""A whole study ended repeatedly at random moments by every signal: its results equal those of an undisturbed one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.schema import read_space

from .helpers import ROOT, assert_same_metrics, command, run_study, train_without_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(7200)]
pytest.importorskip("ray")

MEANS = {
    "kill": (os.kill, signal.SIGKILL),
    "kill all": (os.killpg, signal.SIGKILL),
    "interrupt": (os.kill, signal.SIGINT),
    "Ctrl-C in a terminal": (os.killpg, signal.SIGINT),
    "terminate": (os.kill, signal.SIGTERM),
    "a service manager's stop": (os.killpg, signal.SIGTERM),
}
AGAIN = 8
"""How often a study is ended before it may run to its end."""


def trials_of(study: Path) -> dict[str, Any]:
    try:
        return json.loads((study / "study.json").read_text())["trials"]
    except FileNotFoundError:
        return {}


def finished_trials(study: Path) -> dict[str, Any]:
    return {key: trial for key, trial in trials_of(study).items() if trial["status"] == "finished"}


def catches_signals(pid: int) -> bool:
    """Whether the process has installed its handler of SIGTERM."""
    with suppress(OSError):
        for line in (Path("/proc") / str(pid) / "status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def run_and_interrupt(space: Path, study: Path, means: str, seconds: float) -> bool:
    """Start or resume the study and end it after so many seconds; returns whether it had finished before."""
    options = ["--resume"] if trials_of(study) else []
    before = finished_trials(study)
    process = subprocess.Popen(
        command(space, study.parent, *options),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not catches_signals(process.pid):
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        send, number = MEANS[means]
        send(process.pid, number)
    try:
        out, err = process.communicate()
    finally:
        process.kill()
    over = process.returncode == 0
    if not over and "kill" not in means:
        assert process.returncode == 130, (means, seconds, process.returncode, out, err)
        assert "Traceback" not in err, (means, seconds, err)
        words = "--resume" if "go on with" in err else "the same command starts it"
        assert words in err.splitlines()[-1], err
        assert "running" not in [trial["status"] for trial in trials_of(study).values()]
    assert before.items() <= finished_trials(study).items(), "a finished trial was run again"
    return over


@pytest.mark.parametrize("seed", range(4))
def test_study_ended_at_random_moments_resumes_to_equal_metrics(space_file, tmp_path, seed):
    random = Random(seed)
    space = space_file({"seeds": [0, 1], "experiment/train/epochs": 3})
    study = tmp_path / "out" / "study"
    for _ in range(AGAIN):
        if run_and_interrupt(space, study, random.choice(list(MEANS)), random.uniform(0, 40)):
            break
    begun = time.monotonic()
    result = run_study(space, study.parent, *(["--resume"] if trials_of(study) else []))
    assert result.returncode == 0, (time.monotonic() - begun, result.stdout, result.stderr)
    with (study / "results.csv").open() as stream:
        rows = {row["trial_id"]: row for row in csv.DictReader(stream)}
    specs = expand(read_space(space)).by_id
    assert list(rows) == list(specs), "no row is lost or doubled"
    for key, spec in specs.items():
        assert_same_metrics(rows[key], train_without_ray(spec.experiment, tmp_path / key))
        lines = (study / "trials" / key / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_study_on_a_full_disk_ends_in_one_line_and_resumes(space_file, small_disk, tmp_path):
    space = space_file({"seeds": [0, 1], "experiment/train/epochs": 6})
    study = small_disk / "study"
    process = subprocess.Popen(
        command(space, small_disk), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while not finished_trials(study) and process.poll() is None:
            time.sleep(0.2)
        subprocess.run(["dd", "if=/dev/zero", f"of={small_disk / 'filler'}"], capture_output=True)
        out, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 1, (out, err)
    assert "Traceback" not in err
    assert "No space left on device" in out + err
    before = finished_trials(study)
    assert before
    (small_disk / "filler").unlink()
    result = run_study(space, small_disk, "--resume")
    assert result.returncode == 0, (result.stdout, result.stderr)
    assert before.items() <= finished_trials(study).items()
    for key, spec in expand(read_space(space)).by_id.items():
        assert_same_metrics(finished_trials(study)[key]["metrics"], train_without_ray(spec.experiment, tmp_path / key))
