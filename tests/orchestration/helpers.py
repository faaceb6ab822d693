"""Helpers of the orchestration tests: a small study, other processes, and gates that pause a trial."""

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
from threads import one_thread

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
"""For other processes: without the variables that a local Ray sets in this one."""
DRIVER, PLANNER, WORKER, EVALUATION = "ray::ImplicitFunc", "ray::Planner", "ray::RayTrainWorker", "ray::evaluate_end"
"""The processes of a trial, by their titles."""
CPUS = 2
"""The CPUs of the local Ray of the tests."""

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
    """The job of a trial in a results folder, as a study makes it, with changes."""
    values: dict[str, Any] = {
        "trial_id": key,
        "experiment": experiment,
        "store": store.child(f"trials/{key}").uri,
        "baselines": store.child("baselines").uri,
        "scratch": str(store.local_folder(".ray")),
        "resources": need,
        "group": "test",
        "num_tasks": 1,
    }
    return Job(**values | changes)


def command(space: Path, results: Path, *options: str) -> list[str]:
    return [sys.executable, "run_ray.py", "--space", str(space), "--results-dir", str(results), *options]


def errors_in(text: str) -> str:
    """What stderr has besides the lines on what is going on."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.endswith(("begin\n", "...\n")))


def run_study(space: Path, results: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # Without --address a study starts its own Ray, whatever cluster the environment names.
    environment = ENVIRONMENT | {"RAY_ADDRESS": "127.0.0.1:1"}
    return subprocess.run(command(space, results, *options), cwd=ROOT, capture_output=True, text=True, env=environment)


def line_of(module: str, code: str) -> list[str]:
    """The command of a new process, without Ray, that runs code in the namespace of a test module."""
    return [
        sys.executable,
        "-c",
        f"import sys; sys.path.append('tests'); from tests.orchestration.{module} import *; {code}",
    ]


def apart(module: str, expression: str, *, environment: dict[str, str] = ENVIRONMENT) -> Any:
    """The value of an expression of a test module, computed in such a process."""
    line = line_of(module, f"import json, pathlib; print(json.dumps({expression}))")
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def descendants(pid: int) -> list[int]:
    """The descendants of a process."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        parents.setdefault(int(fields[1]), []).append(int(status.parent.name))
    pids, todo = [], [pid]
    while todo:
        pids.extend(children := parents.get(todo.pop(), []))
        todo.extend(children)
    return pids


def ray_processes(*titles: str) -> set[int]:
    """The processes of the Ray of this process that have one of these titles."""
    pids = set()
    for pid in descendants(os.getpid()):
        with suppress(OSError):  # it has ended
            if (Path("/proc") / str(pid) / "cmdline").read_text().startswith(titles):
                pids.add(pid)
    return pids


def still_running(pids: list[int]) -> list[int]:
    """Those of the processes that have not ended."""
    running = []
    for pid in pids:
        try:
            state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            running.append(pid)
    return running


def train_without_ray(experiment: Experiment, folder: Path) -> dict[str, float]:
    """The metrics of an experiment without Ray, on one thread, as a trial has: float32 sums are the same then."""
    with one_thread():
        return train(experiment, world=World(), store=LocalStore(folder)).row | evaluate(LocalStore(folder))


def assert_same_metrics(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Assert that the metrics of a trial equal those of :func:`train_without_ray`, except for times."""
    prefixes = ("train/", "val/", "retrieval/", "knn/", "probe/", "plan/l")
    compared = {key: value for key, value in expected.items() if key.startswith(prefixes) and value is not None}
    assert len(compared) >= 10, "the loss, the rate, and those of two directions of retrieval"
    assert {key: float(actual[key]) for key in compared} == pytest.approx(compared, rel=EXACT)


def free_cpus() -> float:
    """The free CPUs of the Ray that this process is connected to."""
    import ray

    return float(ray.available_resources().get("CPU", 0))


class SilentObserver:
    """A trial observer that does nothing."""

    def on_trial_start(self, trial_id: str) -> None: ...

    def poll(self, trial_ids: Sequence[str]) -> None: ...

    def on_trial_end(self, trial_id: str) -> None: ...

    def on_waiting(self, number: int) -> None: ...

    def on_evaluation_end(self, trial_id: str, error: str) -> None: ...


# -- gates ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate(Fence):
    """A claim under which processes of Ray wait before they write or read, as long as a gate is closed.

    It lets a test act on a trial at a fixed point of the training, however slow a process is.

    Args:
        location, token: as of any claim.
        gates: the folder with a file for every closed gate, see :func:`close_gate`.
    """

    gates: str

    @contextmanager
    def held(self) -> Iterator[None]:
        """As for any claim, once every gate is open."""
        while any(self.is_closed(path) for path in Path(self.gates).glob("*")):
            time.sleep(0.02)
        with super().held():
            yield

    def is_closed(self, path: Path) -> bool:
        """Whether the gate stops this process now."""
        try:
            title, pattern, lines = json.loads(path.read_text())
        except FileNotFoundError:  # it has just been opened
            return False
        if title not in Path("/proc/self/cmdline").read_text():
            return False
        files = Path(self.location).glob(pattern)
        return any(lines == 0 or file.read_text().count("\n") >= lines for file in files)

    def __reduce__(self) -> tuple[Any, ...]:
        """Processes of Ray cannot import tests: the classes are pickled by value."""
        from ray import cloudpickle

        for kind in type(self).__mro__:
            if issubclass(kind, Gate) and kind.__module__ in sys.modules:
                cloudpickle.register_pickle_by_value(sys.modules[kind.__module__])
        return type(self), (self.location, self.token, self.gates)


def close_gate(gate: Path, title: str, pattern: str, lines: int = 0) -> None:
    """Close a gate; removing its file opens it.

    Args:
        gate: its file, in a folder of gates.
        title: the title, or its beginning, of the processes of Ray that it stops.
        pattern: a glob in the folder of the claim; the processes pass until it matches a file.
        lines: the least number of lines of that file.
    """
    gate.parent.mkdir(exist_ok=True)
    (part := gate.parent.parent / f"{gate.name}.part").write_text(json.dumps([title, pattern, lines]))
    part.replace(gate)


def gated_command(space: Path, results: Path, gates: Path, *options: str) -> list[str]:
    """The command of a study whose trials run under a :class:`Gate`."""
    line = line_of("helpers", f"run_study_under_gates({str(gates)!r})")
    return [*line, *command(space, results, *options)[2:]]


def run_study_under_gates(gates: str) -> None:
    """Run the main job with the arguments of this process, its trials under gates."""
    import run_ray
    from mbcl.orchestration import study

    hold = study.hold

    @contextmanager
    def hold_under_gates(store: Store, log: Any) -> Iterator[Fence]:
        with hold(store, log) as fence:
            yield Gate(fence.location, fence.token, gates)

    study.hold = hold_under_gates  # type: ignore[assignment]
    run_ray.leave(run_ray.main(sys.argv[1:]))
