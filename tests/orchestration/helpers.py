"""What several tests of the orchestration use: a small study, other processes, and gates that hold a trial up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from engine.runs import EXACT

from mbcl.config.experiment import Experiment
from mbcl.distributed.collectives import World
from mbcl.engine import train
from mbcl.evaluation import evaluate
from mbcl.io.ownership import Fence
from mbcl.io.store import LocalStore, Store
from mbcl.orchestration.cluster.capacity import TrialResources
from mbcl.orchestration.trial.job import Job

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = dict(os.environ)
"""For other processes: without the variables that a local Ray of this one sets."""
DRIVER, PLANNER, WORKER, EVALUATION = "ray::ImplicitFunc", "ray::Planner", "ray::RayTrainWorker", "ray::evaluate_end"
"""The processes of a trial, by their titles."""
CPUS = 2
"""Of the local Ray of the tests."""

SPACE: dict[str, Any] = {
    "question": "Does it run?",
    "seeds": [0],
    "baseline": {"sampler": "shuffle"},
    "experiment": {
        "data": {"name": "digits", "max_samples": 300},
        "projector": {"hidden": 64, "dim": 16},
        "optimizer": {"name": "lars", "lr": 0.075},
        "schedule": {"warmup_epochs": 0},
        "train": {"epochs": 2, "batch_size": 16, "precision": "float64"},
    },
    "space": {"sampler": {"grid": [{"name": "shuffle"}, {"name": "spectral", "k": 4}]}},
}


def job_of(key: str, experiment: Experiment, store: LocalStore, need: TrialResources, **changes: Any) -> Job:
    """A trial's job in a results folder, as a sweep makes it but for what is changed."""
    values: dict[str, Any] = {
        "trial_id": key,
        "experiment": experiment,
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


def call(space: Path, results: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # Without --address a sweep has a Ray of its own, whatever cluster the environment names.
    environment = ENVIRONMENT | {"RAY_ADDRESS": "127.0.0.1:1"}
    return subprocess.run(command(space, results, *options), cwd=ROOT, capture_output=True, text=True, env=environment)


def line_of(module: str, code: str) -> list[str]:
    """The command of a process of its own, which has not imported Ray yet, for what is in a test module."""
    return [
        sys.executable,
        "-c",
        f"import sys; sys.path.append('tests'); from tests.orchestration.{module} import *; {code}",
    ]


def apart(module: str, expression: str, *, environment: dict[str, str] = ENVIRONMENT) -> Any:
    """What an expression of a test module is in such a process."""
    line = line_of(module, f"import json, pathlib; print(json.dumps({expression}))")
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


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


def processes(*titles: str) -> set[int]:
    """The processes of this one's own Ray that have one of these titles."""
    found = set()
    for pid in children(os.getpid()):
        with suppress(OSError):  # it has ended
            if (Path("/proc") / str(pid) / "cmdline").read_text().startswith(titles):
                found.add(pid)
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


def alone(experiment: Experiment, folder: Path) -> dict[str, float]:
    """The metrics of an experiment without Ray."""
    return train(experiment, world=World(), store=LocalStore(folder)).row | evaluate(LocalStore(folder))


def assert_as_alone(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """The metrics of a trial are those of :func:`alone`, but for the times."""
    prefixes = ("train/", "val/", "retrieval/", "knn/", "probe/", "plan/l")
    compared = {key: value for key, value in expected.items() if key.startswith(prefixes) and value is not None}
    assert len(compared) >= 10, "the loss, the rate, and those of two directions of retrieval"
    assert {key: float(found[key]) for key in compared} == pytest.approx(compared, rel=EXACT)


def free_cpus() -> float:
    """Of the Ray that this process is connected to."""
    import ray

    return float(ray.available_resources().get("CPU", 0))


class Quiet:
    """A watcher that nobody listens to."""

    def on_trial_start(self, trial_id: str) -> None: ...

    def poll(self, trial_ids: Sequence[str]) -> None: ...

    def on_trial_end(self, trial_id: str) -> None: ...

    def on_waiting(self, number: int) -> None: ...

    def on_evaluation_end(self, trial_id: str, error: str) -> None: ...


# -- gates ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate(Fence):
    """A claim under which processes of Ray wait before they write or look at it, as long as a gate is shut.

    What a test does to a trial at some point of it is done there, however slow or paused whichever process is.

    Args:
        location, token: as of any claim.
        gates: the folder with a file for every gate that is shut, see :func:`shut`.
    """

    gates: str

    @contextmanager
    def held(self) -> Iterator[None]:
        """As of any claim, when every gate is open."""
        while any(self.is_shut(path) for path in Path(self.gates).glob("*")):
            time.sleep(0.02)
        with super().held():
            yield

    def is_shut(self, path: Path) -> bool:
        """Whether that gate holds this process now."""
        try:
            who, where, lines = json.loads(path.read_text())
        except FileNotFoundError:  # it has just been opened
            return False
        if who not in Path("/proc/self/cmdline").read_text():
            return False
        found = Path(self.location).glob(where)
        return any(lines == 0 or file.read_text().count("\n") >= lines for file in found)

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray's processes cannot import tests: what this is made of travels whole."""
        from ray import cloudpickle

        for kind in type(self).__mro__:
            if issubclass(kind, Gate) and kind.__module__ in sys.modules:
                cloudpickle.register_pickle_by_value(sys.modules[kind.__module__])
        return type(self), (self.location, self.token, self.gates)


def shut(gate: Path, who: str, where: str, lines: int = 0) -> None:
    """Shut a gate; who removes the file opens it.

    Args:
        gate: its file, in a folder of gates.
        who: the title, or its beginning, of the processes of Ray that it holds.
        where: a glob in the folder of the claim; they pass until it finds a file.
        lines: with so many lines at least.
    """
    gate.parent.mkdir(exist_ok=True)
    (part := gate.parent.parent / f"{gate.name}.part").write_text(json.dumps([who, where, lines]))
    part.replace(gate)


def gated(space: Path, results: Path, gates: Path, *options: str) -> list[str]:
    """The command of a sweep whose trials run under a :class:`Gate`."""
    line = line_of("helpers", f"sweep_under({str(gates)!r})")
    return [*line, *command(space, results, *options)[2:]]


def sweep_under(gates: str) -> None:
    """The main job with the arguments of this process."""
    import run_ray
    from mbcl.orchestration import study

    hold = study.hold

    @contextmanager
    def under_gates(store: Store, log: Any) -> Iterator[Fence]:
        with hold(store, log) as fence:
            yield Gate(fence.location, fence.token, gates)

    study.hold = under_gates  # type: ignore[assignment]
    run_ray.leave(run_ray.main(sys.argv[1:]))
