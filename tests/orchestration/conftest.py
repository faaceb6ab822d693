from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mbcl.experiment import Experiment
from mbcl.orchestration.jobs import Job
from mbcl.orchestration.resources import Need
from mbcl.storage import LocalStore

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = dict(os.environ)
"""For other processes: without the variables that a local Ray of this one sets."""

SPACE: dict[str, Any] = {
    "question": "Does it run?",
    "seeds": [0],
    "baseline": {"sampler": "shuffle"},
    "experiment": {
        "data": {"name": "digits", "max_samples": 300},
        "projector": {"hidden": 64, "dim": 16},
        "optimizer": {"name": "lars", "lr": 0.075},
        "schedule": {"warmup_epochs": 0},
        "train": {"epochs": 2, "batch_size": 16},
    },
    "space": {"sampler": {"grid": [{"name": "shuffle"}, {"name": "spectral", "k": 4}]}},
}


@pytest.fixture
def space_file(tmp_path: Path):
    """Writes a space: the small one above with changes by dotted path; None as a value removes the key."""

    def write(changes: dict[str, Any] | None = None, name: str = "study.yaml") -> Path:
        content = yaml.safe_load(yaml.safe_dump(SPACE))
        for path, value in (changes or {}).items():
            *parents, last = path.split("/")
            block = content
            for key in parents:
                block = block.setdefault(key, {})
            if value is None:
                del block[last]
            else:
                block[last] = value
        file = tmp_path / name
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    return write


def job_of(key: str, experiment: Experiment, store: LocalStore, need: Need, **changes: Any) -> Job:
    """A trial's job in a results folder, as a sweep makes it but for what is changed."""
    values: dict[str, Any] = {
        "trial_id": key,
        "experiment": experiment.model_dump(mode="json"),
        "store": store.child(f"trials/{key}").uri,
        "baselines": store.child("baselines").uri,
        "scratch": str(store.local_folder(".ray")),
        "need": need,
        "group": "test",
        "num_tasks": 1,
    }
    return Job(**values | changes)


def command(space: Path, results: Path, *options: str) -> list[str]:
    return [sys.executable, "run_ray.py", "--space", str(space), "--results-dir", str(results), *options]


def call(space: Path, results: Path, *options: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    # Without --address a sweep has a Ray of its own, whatever cluster the environment names.
    environment = ENVIRONMENT | {"RAY_ADDRESS": "127.0.0.1:1"}
    return subprocess.run(
        command(space, results, *options), cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment
    )


def apart(module: str, expression: str, *, environment: dict[str, str] = ENVIRONMENT, timeout: float = 300) -> Any:
    """What an expression of a test module is in a process of its own, which has not imported Ray yet."""
    code = f"import json, pathlib; from tests.orchestration.{module} import *; print(json.dumps({expression}))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray in this process, for tests that leave it as it is; those on another Ray run in other processes."""
    from mbcl.orchestration.cluster import cluster
    from mbcl.orchestration.resources import Node

    with cluster(None, [Node(2)], verbose=False):
        yield


def children(pid: int) -> list[int]:
    """A process's descendants."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        parents.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found, todo = [], [pid]
    while todo:
        found.extend(more := parents.get(todo.pop(), []))
        todo.extend(more)
    return found


def alive(pids: list[int]) -> list[int]:
    """Those of them that have not ended."""
    found = []
    for pid in pids:
        try:
            state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    return found
