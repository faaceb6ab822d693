"""Killed processes inside a running trial: the trial ends as if nothing had happened, and gives back what it held."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from mbcl.dist import World
from mbcl.engine import train
from mbcl.evaluation import evaluate
from mbcl.experiment import Experiment
from mbcl.storage import LocalStore
from mbcl.study import StudyRecord, TrialRecord

from .conftest import SPACE

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")

CPUS = 2
EXPERIMENT = Experiment.model_validate(
    SPACE["experiment"] | {"sampler": {"name": "spectral", "k": 4}, "train": {"epochs": 12, "batch_size": 16}}
)
COMPARED = ("train/loss", "val/retrieval/top1", "plan/lift", "retrieval/u2v/top1")


def alone(experiment: Experiment, folder: Path) -> dict[str, float]:
    """The metrics of an experiment without Ray."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(experiment, world=World(), store=LocalStore(folder)).row | evaluate(LocalStore(folder))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, float]:
    return alone(EXPERIMENT, tmp_path_factory.mktemp("undisturbed"))


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


def kill(title: str) -> int:
    """Kill the processes of this test's own Ray with that title; returns how many."""
    killed = 0
    for pid in children(os.getpid()):
        try:
            if title in (Path("/proc") / str(pid) / "cmdline").read_text():
                os.kill(pid, signal.SIGKILL)
                killed += 1
        except OSError:
            continue
    return killed


class Killer:
    """A watcher that kills a process as soon as the trial has some epochs behind it."""

    def __init__(self, metrics: Path, title: str) -> None:
        self.metrics = metrics
        self.title = title
        self.killed = 0
        self.killed_at = 0

    def started(self, trial_id: str) -> None: ...

    def ended(self, trial_id: str) -> None: ...

    def evaluated(self, trial_id: str, error: str) -> None: ...

    def look(self, trial_ids) -> None:
        if self.title and not self.killed and self.metrics.exists():
            self.killed_at = len(self.metrics.read_text().splitlines())
            self.killed = kill(self.title) if self.killed_at >= 2 else 0


def run_one(
    tmp_path: Path, title: str, workers: int = 1, experiment: Experiment = EXPERIMENT
) -> tuple[StudyRecord, Killer]:
    from mbcl.orchestration.jobs import Job
    from mbcl.orchestration.resources import Node, resolve
    from mbcl.orchestration.runner import run_trials
    from mbcl.orchestration.space import Resources

    store = LocalStore(tmp_path)
    job = Job(
        trial_id="0-test",
        experiment=experiment.model_dump(mode="json"),
        store=store.child("trials/0-test").uri,
        baselines=store.child("baselines").uri,
        scratch=str(store.local_folder(".ray")),
        need=resolve(Resources(workers=workers), [Node(CPUS)]),
        group="test",
        num_tasks=2,
    )
    record = TrialRecord(ordinal=0, setting=0, seed=0, sampler="spectral", objective="simclr", parameters={})
    study = StudyRecord(
        name="test", space_digest="", metric="val/retrieval/top1", mode="max", created="", trials={"0-test": record}
    )
    watcher = Killer(tmp_path / "trials" / "0-test" / "metrics.jsonl", title)
    run_trials({"0-test": job}, store=store, scratch=job.scratch, study=study, concurrency=1, watcher=watcher)
    return study, watcher


def free_cpus() -> float:
    return ray.available_resources().get("CPU", 0)


@pytest.mark.parametrize(
    ("title", "attempts"),
    [
        ("ray::ImplicitFunc", 2),
        ("ray::Planner", 1),
        pytest.param("ray::RayTrainWorker", 1, marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_changes_nothing(local_ray, undisturbed, tmp_path, title, attempts):
    study, watcher = run_one(tmp_path, title)
    assert watcher.killed >= 1
    assert watcher.killed_at < EXPERIMENT.train.epochs, "it was killed after the training: use more epochs"
    record = study.trials["0-test"]
    assert (record.status, record.error) == ("finished", "")
    assert record.attempts == attempts
    for name in COMPARED:
        assert record.metrics[name] == pytest.approx(undisturbed[name], rel=1e-6), name
    end = time.monotonic() + 20
    while free_cpus() < CPUS and time.monotonic() < end:
        time.sleep(0.2)
    assert free_cpus() == CPUS, "what the killed driver had reserved is lost for the rest of the sweep"


def test_two_workers_give_what_one_gives(local_ray, tmp_path):
    # Not spectral: rounding of two workers' gradients may change a plan, and with it everything after it.
    experiment = Experiment.model_validate(SPACE["experiment"])
    study, _ = run_one(tmp_path / "two", "", workers=2, experiment=experiment)
    record, expected = study.trials["0-test"], alone(experiment, tmp_path / "one")
    assert (record.status, record.error) == ("finished", "")
    assert record.metrics["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-4)
    assert record.metrics["val/retrieval/top1"] == pytest.approx(expected["val/retrieval/top1"], abs=0.05)
    assert record.metrics["retrieval/u2v/mrr"] == pytest.approx(expected["retrieval/u2v/mrr"], abs=0.01)
