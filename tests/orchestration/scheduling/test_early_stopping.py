"""Early stopping on a real Ray: a stopped trial frees its processes and reservations, and the next one starts."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from patience import wait_for

from mbcl.config.experiment import Experiment
from mbcl.io.ownership import claim
from mbcl.io.store import LocalStore
from mbcl.study.record import StudyRecord, TrialRecord, read_study

from ..helpers import CPUS, DRIVER, PLANNER, SPACE, WORKER, Gate, apart, close_gate, free_cpus, job_of, ray_processes

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")

TITLES = (DRIVER, PLANNER, WORKER, "ray::TrainController")
"""The titles of the processes of a running trial."""
EPOCHS = 3
ASHA = {"name": "asha", "grace_period": 1, "reduction_factor": 10}
MEDIAN = {"name": "median", "grace_period": 1, "min_samples_required": 1}


def groups() -> set[str]:
    """The placement groups that trials have made for their workers and not removed."""
    from mbcl.orchestration.cluster.orphaned_groups import actor_groups

    return {group.id for group in actor_groups()}


class ReleaseObserver:
    """Measures how long after a stop the processes and groups of the trial are gone. One trial runs at a time.

    Training waits at the end of every epoch until the scheduler has decided, so that a stop meets a running trial.
    """

    def __init__(self, study: StudyRecord, gates: Path) -> None:
        self.study = study
        self.gates = gates
        self.seconds: dict[str, float] = {}
        self.threads: list[threading.Thread] = []

    def on_trial_start(self, trial_id: str) -> None: ...

    def poll(self, trial_ids) -> None:
        for key in trial_ids:
            for epoch in range(1, self.study.trials[key].judged + 1):
                (self.gates / f"{key}-{epoch}").unlink(missing_ok=True)

    def on_waiting(self, number: int) -> None: ...

    def on_evaluation_end(self, trial_id: str, error: str) -> None: ...

    def on_trial_end(self, trial_id: str) -> None:
        if self.study.trials[trial_id].status == "stopped" and self.study.trials[trial_id].attempts:
            pids, group_ids = ray_processes(*TITLES), groups()
            assert len(pids) >= 4, "driver, controller, worker and planner"
            assert len(group_ids) == 1
            thread = threading.Thread(target=self._measure, args=(trial_id, pids, group_ids))
            thread.start()
            self.threads.append(thread)
        for epoch in range(1, EPOCHS):  # the worker of the next trial would wait for these gates, too
            (self.gates / f"{trial_id}-{epoch}").unlink(missing_ok=True)

    def _measure(self, trial_id: str, pids: set[int], group_ids: set[str]) -> None:
        start = time.monotonic()
        wait_for(lambda: not (pids & ray_processes(*TITLES) or group_ids & groups()), every=0.1)
        self.seconds[trial_id] = time.monotonic() - start


class DriverObserver(ReleaseObserver):
    """Records the processes of Ray at the end of every trial."""

    def __init__(self, study: StudyRecord, gates: Path) -> None:
        super().__init__(study, gates)
        self.processes: list[set[int]] = []

    def on_trial_end(self, trial_id: str) -> None:
        self.processes.append(ray_processes(*TITLES))
        assert not groups()


def run_with_early_stopping(
    folder: Path,
    rates: list[float],
    seeds: int,
    rule: dict[str, Any] = ASHA,
    observer: type[ReleaseObserver] = ReleaseObserver,
) -> tuple[StudyRecord, ReleaseObserver]:
    """Compare learning rates by their own value, one trial at a time, so that no rounding decides which is stopped.

    Trials have a worker group of their own, as on a joined cluster, unless the observer is a DriverObserver.
    """
    from mbcl.orchestration.cluster.capacity import Node, resolve_resources
    from mbcl.orchestration.cluster.orphaned_groups import remove_orphaned_groups
    from mbcl.orchestration.scheduling.early_stopping import build_stopper
    from mbcl.orchestration.scheduling.trial_queue import EarlyStopping, TrialQueue
    from mbcl.orchestration.search_space.resources_block import Resources
    from mbcl.orchestration.tune.run_trials import run_trials

    store = LocalStore(folder)
    study = StudyRecord(name="test", space_digest="", metric="train/lr", mode="max", created="", trials={})
    jobs, gates, fence = {}, folder / "gates", claim(store)
    gate_fence = Gate(fence.location, fence.token, str(gates))
    in_workers = observer is ReleaseObserver
    for setting, lr in enumerate(rates):
        for seed in range(seeds):
            experiment = Experiment.model_validate(
                SPACE["experiment"]
                | {
                    "seed": seed,
                    "sampler": {"name": "spectral", "k": 4},
                    "optimizer": {"name": "lars", "lr": lr},
                    "train": {"epochs": EPOCHS, "batch_size": 16},
                }
            )
            key = f"{len(jobs)}-test"
            study.trials[key] = TrialRecord(
                ordinal=len(jobs), setting=setting, seed=seed, sampler="", objective="", parameters={"lr": lr}
            )
            need = resolve_resources(Resources(), [Node(CPUS)])
            options = {"num_tasks": 2, "watched_metric": study.metric, "fence": gate_fence, "joined": in_workers}
            jobs[key] = job_of(key, experiment, store, need, **options)
            for epoch in range(1, EPOCHS if in_workers else 1):  # a driver waits for the decision by itself
                close_gate(gates / f"{key}-{epoch}", WORKER, f"trials/{key}/metrics.jsonl", epoch)
    early_stopping = EarlyStopping(build_stopper(rule, mode="max"), rule["name"], lambda key: EPOCHS)
    watcher = observer(study, gates)
    queue = TrialQueue(study, jobs, concurrency=1, rule=early_stopping)
    run_trials(
        jobs, store=store, scratch=str(folder / ".ray"), study=study, concurrency=1, observer=watcher, queue=queue
    )
    while any(thread.is_alive() for thread in watcher.threads):
        remove_orphaned_groups()  # as a study does every second
        time.sleep(0.1)
    return study, watcher


def assert_stopped_and_released(
    study: StudyRecord, watcher: ReleaseObserver, folder: Path, *, seeds: int, least: int
) -> None:
    """Assert that the record is right, and that at least so many settings were stopped and released."""
    from mbcl.orchestration.cluster.orphaned_groups import remove_orphaned_groups

    assert read_study(LocalStore(folder)) == study, "study.json equals the record in memory"
    first, *others = study.settings().values()
    assert [record.status for record in first] == ["finished"] * seeds
    stopped = 0
    for records in others:
        assert {record.status for record in records} in ({"finished"}, {"stopped"})
        if records[0].status == "stopped":
            stopped += 1
            assert 1 <= records[0].stopped.epoch < EPOCHS
            assert [(record.stopped.epoch, record.attempts) for record in records[1:]] == [(0, 0)] * (seeds - 1)
            assert all(record.metrics == {} for record in records)
    assert stopped >= least
    assert len(watcher.seconds) == stopped, "all processes and groups of stopped trials are gone"
    # A controller may make a last group while it is being killed.
    wait_for(lambda: remove_orphaned_groups() == 0 and free_cpus() == CPUS, every=0.1)


@pytest.mark.slow
def test_stopped_trial_frees_its_processes_and_reservations(local_ray, tmp_path):
    study, watcher = run_with_early_stopping(tmp_path, [0.1, 1e-4], seeds=1)
    assert_stopped_and_released(study, watcher, tmp_path, seeds=1, least=1)


@pytest.mark.slow
def test_stopped_trial_leaves_its_process_to_the_next_one(local_ray, tmp_path):
    """The training of a stopped trial ends; the driver and the planner go on, and results do not change."""
    rates = [0.1, 2e-4, 1e-4]
    study, watcher = run_with_early_stopping(tmp_path, rates, seeds=2, observer=DriverObserver)
    (first, second, *stopped) = study.trials.values()
    assert [record.status for record in (first, second)] == ["finished"] * 2
    assert [record.status for record in stopped] == ["stopped"] * 4
    assert [record.attempts for record in stopped] == [1, 0, 1, 0]
    assert [record.stopped.epoch for record in stopped] == [1, 0, 1, 0]
    assert isinstance(watcher, DriverObserver)
    assert len(watcher.processes) == 4
    assert len(set.union(*watcher.processes)) == 2, "one driver and one planner"
    for key, record in study.trials.items():
        if record.attempts:
            rows = LocalStore(tmp_path).child(f"trials/{key}").read_bytes("metrics.jsonl").decode().splitlines()
            assert len(rows) == (record.stopped.epoch if record.stopped else EPOCHS), "it ends where it was stopped"
    wait_for(lambda: free_cpus() == CPUS)


def release_seconds_of_a_large_study(folder: Path, dashboard: bool, rule: dict[str, Any]) -> list[float]:
    """The seconds from each stop to the release, in a checked study of 18 trials on a new Ray."""
    from mbcl.orchestration.cluster.capacity import Node
    from mbcl.orchestration.cluster.connection import cluster

    with cluster(None, [Node(CPUS)], verbose=False, dashboard=dashboard):
        study, watcher = run_with_early_stopping(
            folder, [0.1, *(i * 1e-4 for i in range(8, 0, -1))], seeds=2, rule=rule
        )
        assert_stopped_and_released(study, watcher, folder, seeds=2, least=8)
    return sorted(watcher.seconds.values())


@pytest.mark.slow
@pytest.mark.parametrize(("dashboard", "rule"), [(False, ASHA), (True, ASHA), (False, MEDIAN)])
def test_stopped_trials_of_a_large_study_free_their_reservations(tmp_path, dashboard, rule, capsys):
    seconds = apart(
        "scheduling.test_early_stopping",
        f"release_seconds_of_a_large_study(pathlib.Path({str(tmp_path)!r}), {dashboard}, {rule})",
    )
    with capsys.disabled():
        gone = ", ".join(f"{value:.1f}" for value in seconds)
        print(f"dashboard {dashboard}, {rule['name']}: gone {gone} s after the stop")
