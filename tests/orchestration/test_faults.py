"""Killed processes of a running trial: its results equal those of an undisturbed one, and its resources are freed."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import gloo
import pytest
import torch
from engine import runs
from patience import wait_for

from mbcl.config.experiment import Experiment
from mbcl.evaluation import evaluate
from mbcl.io.ownership import claim
from mbcl.io.store import LocalStore
from mbcl.study.record import StudyRecord, TrialRecord, read_study

from .helpers import (
    CPUS,
    DRIVER,
    EVALUATION,
    PLANNER,
    SPACE,
    WORKER,
    Gate,
    SilentObserver,
    assert_same_metrics,
    close_gate,
    free_cpus,
    job_of,
    ray_processes,
    train_without_ray,
)

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")

TRIAL = "0-test"
EXPERIMENT = Experiment.model_validate(
    SPACE["experiment"]
    | {
        "sampler": {"name": "spectral", "k": 4},
        "train": {**SPACE["experiment"]["train"], "epochs": 12},
        "evaluation": {"metrics": ["retrieval", "knn", "probe"]},
    }
)
SHORT = Experiment.model_validate(SPACE["experiment"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, float]:
    return train_without_ray(EXPERIMENT, tmp_path_factory.mktemp("undisturbed"))


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


class Attack(threading.Thread):
    """Attacks processes of a trial one after the other, each after a number of epochs.

    Training waits at the end of that epoch, and an evaluation before it writes, until the attack is over.

    Args:
        folder: the trial's.
        plan: after how many epochs the processes of which title are attacked.
        how: the action on a process, a kill by default.
        moving: training continues before the attack, up to the gate of the next one.
        trainer: the title of the processes that train.
    """

    def __init__(
        self,
        folder: Path,
        plan: Sequence[tuple[int, str]],
        how: Callable[[int], object] = kill,
        moving: bool = False,
        trainer: str = DRIVER,
    ) -> None:
        super().__init__(daemon=True)
        self.metrics = folder / "metrics.jsonl"
        self.plan = list(plan)
        self.how = how
        self.moving = moving
        self.gates = folder.parents[1] / "gates"
        for number, (after, title) in enumerate(self.plan):
            gate_title, rows = (EVALUATION, 0) if title == EVALUATION else (trainer, after)
            pattern = f"trials/{folder.name}/metrics.jsonl" if rows else "*"
            close_gate(self.gates / str(number), gate_title, pattern, rows)
        self.done: list[tuple[int, str]] = []
        self.rows: list[str] = []
        """The rows before the last attack."""
        self.over = threading.Event()

    def run(self) -> None:
        while self.plan and not self.over.is_set():
            after, title = self.plan[0]
            rows = self.metrics.read_text().splitlines() if self.metrics.exists() else []
            hit = False
            gate = self.gates / str(len(self.done))
            for pid in ray_processes(title) if len(rows) >= after else ():
                if self.moving and title != EVALUATION:  # which does nothing after its gate
                    gate.unlink(missing_ok=True)
                with suppress(ProcessLookupError):
                    self.how(pid)
                    hit = True
            if hit:
                self.rows = rows
                self.done.append((len(rows), title))
                self.plan.pop(0)
                gate.unlink(missing_ok=True)
            time.sleep(0.01)


def run_some_trials(
    folder: Path,
    experiments: dict[str, Experiment],
    observer: SilentObserver,
    *,
    attack: Attack | None = None,
    workers: int = 1,
    gpus_per_worker: int = 0,
    kind: type[TrialRecord] = TrialRecord,
    told: list[StudyRecord] | None = None,
) -> dict[str, TrialRecord]:
    """Run trials one at a time as a study does, in the Ray of this process; ``told`` gets their study at the start."""
    from mbcl.orchestration.cluster.capacity import Node, resolve_resources
    from mbcl.orchestration.results_folder.lease import hold
    from mbcl.orchestration.search_space.resources_block import Resources
    from mbcl.orchestration.trial.trial_runners import Driver
    from mbcl.orchestration.tune.run_trials import run_trials

    store = LocalStore(folder)
    records = {
        key: kind(ordinal=number, setting=number, seed=0, sampler="", objective="", parameters={})
        for number, key in enumerate(experiments)
    }
    study = StudyRecord(
        name="test", space_digest="", metric="val/retrieval/top1", mode="max", created="", trials=records
    )
    if told is not None:
        told.append(study)
    need = replace(resolve_resources(Resources(workers=workers), [Node(CPUS)]), gpus_per_worker=gpus_per_worker)
    driver = Driver({"CPU": need.cpus}, trains=True) if gpus_per_worker else None  # a GPU of Ray's would be waited for
    with hold(store) as fence:
        gate_fence = Gate(fence.location, fence.token, str(attack.gates)) if attack else fence
        jobs = {
            key: job_of(key, experiment, store, need, num_tasks=2, fence=gate_fence)
            for key, experiment in experiments.items()
        }
        if attack:
            attack.start()
        scratch = str(folder / ".ray")
        run_trials(jobs, store=store, scratch=scratch, study=study, concurrency=1, observer=observer, driver=driver)
    if attack:
        attack.over.set()
        attack.join()
        assert not attack.plan, f"the trial was over before {attack.plan}, after {attack.done}"
    return study.trials


def run_one_trial(
    folder: Path, attack: Attack | None = None, *, experiment: Experiment = EXPERIMENT, **options: Any
) -> TrialRecord:
    """Run one trial as :func:`run_some_trials`."""
    return run_some_trials(folder, {TRIAL: experiment}, SilentObserver(), attack=attack, **options)[TRIAL]


def rows_of(tmp_path: Path) -> list[str]:
    return (tmp_path / "trials" / TRIAL / "metrics.jsonl").read_text().splitlines()


def assert_undisturbed(record: TrialRecord, tmp_path: Path, undisturbed: dict[str, float]) -> None:
    """Assert that a trial finished once with undisturbed results, and freed its CPUs."""
    assert (record.status, record.error) == ("finished", "")
    assert_same_metrics(record.metrics, undisturbed)
    assert [json.loads(row)["epoch"] for row in rows_of(tmp_path)] == list(range(1, EXPERIMENT.train.epochs + 1))
    wait_for(lambda: free_cpus() == CPUS)  # those of killed processes, too


def test_trial_with_killed_processes_equals_an_undisturbed_one(local_ray, undisturbed, tmp_path):
    attack = Attack(tmp_path / "trials" / TRIAL, [(2, PLANNER), (4, DRIVER)])
    record = run_one_trial(tmp_path, attack)
    assert_undisturbed(record, tmp_path, undisturbed)
    assert record.attempts == 2
    assert rows_of(tmp_path)[: len(attack.rows)] == attack.rows, "epochs that were done are not trained again"


@pytest.mark.slow
def test_trial_on_two_workers_with_a_killed_worker_equals_an_undisturbed_one(local_ray, tmp_path):
    """A training worker. The undisturbed training has two, too: over 192 steps a difference in the last bit of a sum
    grows until a plan has other batches, on some processors."""
    ranks = gloo.run(runs.run, 2, str(tmp_path / "undisturbed"), EXPERIMENT)
    undisturbed = ranks[0][2][-1] | evaluate(LocalStore(tmp_path / "undisturbed"))
    attack = Attack(tmp_path / "trials" / TRIAL, [(4, WORKER)], trainer=WORKER)
    record = run_one_trial(tmp_path, attack, workers=2)
    assert_undisturbed(record, tmp_path, undisturbed)
    assert record.attempts == 1, "Ray Train restarts the workers"
    assert rows_of(tmp_path)[: len(attack.rows)] == attack.rows, "epochs that were done are not trained again"


class ProcessObserver(SilentObserver):
    """Records which processes of Ray exist at the end of each trial."""

    def __init__(self) -> None:
        self.drivers: list[set[int]] = []
        self.others: set[int] = set()

    def on_trial_end(self, trial_id: str) -> None:
        self.drivers.append(ray_processes(DRIVER))
        self.others |= ray_processes(WORKER, EVALUATION, "ray::TrainController")


def test_trials_on_one_worker_share_a_process_and_equal_training_without_ray(local_ray, tmp_path):
    """The same arithmetic on one thread in another process: float32 embeddings, plans and losses to the last bit."""
    train = EXPERIMENT.train.model_copy(update={"precision": "float32", "epochs": 1})
    experiment = EXPERIMENT.model_copy(update={"train": train})
    experiments = {f"{seed}-test": experiment.model_copy(update={"seed": seed}) for seed in range(3)}
    observer = ProcessObserver()
    records = run_some_trials(tmp_path / "ray", experiments, observer)
    assert [record.status for record in records.values()] == ["finished"] * 3
    assert observer.others == set(), "no process but the driver and the planner"
    (driver,) = set.union(*observer.drivers)
    assert driver
    for key, record in records.items():
        expected = train_without_ray(experiments[key], tmp_path / key)
        keys = (record.metrics.keys() & expected.keys()) - {"plan/seconds"}
        assert len(keys) > 20
        assert {name: record.metrics[name] for name in keys} == {name: expected[name] for name in keys}
    assert len({record.metrics["train/loss"] for record in records.values()}) == 3, "three seeds, three results"


@pytest.mark.slow
def test_trial_in_a_worker_group_with_a_killed_driver_equals_an_undisturbed_one(local_ray, undisturbed, tmp_path):
    plan = [(2, PLANNER), (5, DRIVER), (12, EVALUATION)]
    attack = Attack(tmp_path / "trials" / TRIAL, plan, trainer=WORKER)
    record = run_one_trial(tmp_path, attack, workers=2)
    assert_undisturbed(record, tmp_path, undisturbed)
    assert record.attempts == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="trials on a GPU must fail")
def test_trial_whose_driver_is_lost_for_good_has_one_line_and_a_log(local_ray, tmp_path, monkeypatch, capfd):
    from mbcl.orchestration.tune import run_trials

    monkeypatch.setattr(run_trials, "DRIVER_RESTARTS", 0)
    attack = Attack(tmp_path / "trials" / TRIAL, [(2, DRIVER)])
    record = run_one_trial(tmp_path, attack)
    assert record.status == "failed"
    assert record.error.startswith("the process of the trial's driver was lost: a process was lost: ")
    assert "\n" not in record.error
    assert len(record.error) < 300
    log = (tmp_path / "trials" / TRIAL / "error.log").read_text()
    assert log.startswith(record.error)
    assert "Failure # 1" in log
    assert "Traceback" not in "".join(capfd.readouterr()), "Ray Tune prints none"


def test_trial_after_one_that_failed_on_a_gpu_gets_another_process(local_ray, tmp_path):
    """There is no GPU, so each fails; an error of CUDA would make its process useless for the next one."""
    observer = ProcessObserver()
    experiments = {f"{seed}-test": SHORT.model_copy(update={"seed": seed}) for seed in range(2)}
    records = run_some_trials(tmp_path, experiments, observer, gpus_per_worker=1)
    assert [record.status for record in records.values()] == ["failed"] * 2
    assert [record.attempts for record in records.values()] == [1, 2]
    first, second = observer.drivers
    assert not first & second


class MemoryObserver(SilentObserver):
    """Records the anonymous memory of the driver at the end of each trial, in KiB."""

    def __init__(self) -> None:
        self.memory: list[int] = []

    def on_trial_end(self, trial_id: str) -> None:
        (driver,) = ray_processes(DRIVER)
        status = (Path("/proc") / str(driver) / "status").read_text()
        self.memory.append(int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]))


@pytest.mark.slow
def test_driver_of_200_trials_holds_no_more_memory_than_of_100(local_ray, tmp_path):
    """A kept model, data set or optimiser of each trial would be at least 1 MB; the allocator's own noise is less."""
    train = EXPERIMENT.train.model_copy(update={"epochs": 1})
    experiment = EXPERIMENT.model_copy(update={"train": train, "evaluation": SHORT.evaluation})
    experiments = {f"{seed}-test": experiment.model_copy(update={"seed": seed}) for seed in range(200)}
    observer = MemoryObserver()
    records = run_some_trials(tmp_path, experiments, observer)
    assert {record.status for record in records.values()} == {"finished"}
    middle, end = (sum(observer.memory[stop - 20 : stop]) / 20 for stop in (100, 200))
    assert end - middle < 50 * 1000, observer.memory


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_trial_with_processes_killed_at_random_equals_an_undisturbed_one(local_ray, undisturbed, tmp_path, seed):
    random = Random(seed)
    plan = [(random.randrange(12), title) for title in (PLANNER, DRIVER, PLANNER)]
    plan.append((12, DRIVER))  # after the last epoch, in the evaluation
    delays = iter([random.random() for _ in range(100)])

    def later(pid: int) -> None:
        time.sleep(next(delays) / 4)  # anywhere within an epoch
        with suppress(ProcessLookupError):  # it has ended by itself meanwhile
            kill(pid)

    attack = Attack(tmp_path / "trials" / TRIAL, sorted(plan), later, moving=True)
    assert_undisturbed(run_one_trial(tmp_path, attack), tmp_path, undisturbed)


def limit_file_size(pid: int) -> None:
    """Simulate a full disk: a process cannot write files larger than a record."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))


@pytest.mark.slow
def test_trial_on_a_full_disk_fails_and_resumes(local_ray, undisturbed, tmp_path):
    attack = Attack(tmp_path / "trials" / TRIAL, [(3, DRIVER)], limit_file_size)
    record = run_one_trial(tmp_path, attack)
    assert record.status == "failed"
    assert re.fullmatch(r"/.*/trials/0-test: cannot be written: File too large", record.error)
    before = rows_of(tmp_path)
    assert len(before) >= 3
    assert_undisturbed(run_one_trial(tmp_path), tmp_path, undisturbed)
    assert rows_of(tmp_path)[: len(before)] == before, "epochs that were done are not trained again"


def test_run_trials_raises_for_an_unwritable_record_without_a_retry(local_ray, tmp_path):
    """Ray Tune would treat the error as a failure of the trial and run it again."""

    def block_record(pid: int) -> None:
        with suppress(FileNotFoundError, IsADirectoryError):
            (tmp_path / "study.json").unlink()
        (tmp_path / "study.json").mkdir(exist_ok=True)

    attack = Attack(tmp_path / "trials" / TRIAL, [(1, DRIVER)], block_record)
    studies: list[StudyRecord] = []
    with pytest.raises(OSError, match="study.json"):
        run_one_trial(tmp_path, attack, experiment=SHORT, told=studies)
    (record,) = studies[0].trials.values()
    assert (record.status, record.attempts) == ("finished", 1)
    assert "retrieval/u2v/top1" in record.metrics


class Interrupted(TrialRecord):
    """A record that receives a signal between two changes of its fields."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if (name, value) == ("status", "finished"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)


def test_run_trials_defers_an_interrupt_until_the_record_is_complete(local_ray, tmp_path):
    from mbcl.orchestration import signals

    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    signals.install_handlers(reset=True)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_one_trial(tmp_path, experiment=SHORT, kind=Interrupted)
    finally:
        signals.install_handlers(reset=True)  # drop the interrupt before the next test
        for number, handler in before.items():
            signal.signal(number, handler)
    (record,) = read_study(LocalStore(tmp_path)).trials.values()
    assert record.status == "finished"
    assert "retrieval/u2v/top1" in record.metrics
    wait_for(lambda: not ray_processes(DRIVER) and free_cpus() == CPUS)


def test_trial_that_loses_its_folder_ends_on_all_ranks(local_ray, tmp_path):
    """Only rank 0 has a claim on the folder of the trial, so only rank 0 raises."""
    trial = LocalStore(tmp_path / "trials" / TRIAL)
    attack = Attack(trial.folder, [(2, WORKER)], lambda pid: claim(trial), trainer=WORKER)
    experiment = Experiment.model_validate(SPACE["experiment"] | {"train": {"epochs": 500, "batch_size": 16}})
    from mbcl.orchestration.trial.train_workers import COLLECTIVE_SECONDS

    start = time.monotonic()
    record = run_one_trial(tmp_path, attack, workers=2, experiment=experiment)
    assert time.monotonic() - start < COLLECTIVE_SECONDS, "no rank has waited for another until its collective gave up"
    assert record.status == "failed"
    assert "another run works there since" in record.error
