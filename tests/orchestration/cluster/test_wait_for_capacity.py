"""Waiting for capacity on a cluster that others use and that loses nodes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, wait_for

from mbcl.config.experiment import Experiment
from mbcl.io.ownership import claim
from mbcl.io.store import LocalStore

from ..helpers import SPACE, WORKER, Gate, SilentObserver, apart, close_gate, job_of

pytestmark = pytest.mark.ray
pytest.importorskip("ray")


def wait_on_a_used_cluster(folder: Path) -> dict[str, Any]:
    """Wait on a Ray of two CPUs, both in use by another task."""
    import ray

    from mbcl.orchestration.cluster import wait_for_capacity
    from mbcl.orchestration.cluster.capacity import Node
    from mbcl.orchestration.cluster.connection import cluster

    wait_for_capacity.POLL_SECONDS, wait_for_capacity.NO_CAPACITY_SECONDS = 0.1, 1.0
    begun, free, polls = folder / "begun", folder / "free", []

    def occupy() -> None:
        begun.touch()
        while not free.exists():
            time.sleep(0.05)

    def can_ever_fit(*request: Any) -> bool:
        polls.append(time.monotonic())
        if polls[-1] - polls[0] > 3 * wait_for_capacity.NO_CAPACITY_SECONDS:
            free.touch()
        return original(*request)

    requests = [({"CPU": 1}, 2), ({"CPU": 1}, 3), ({"CPU": 1.5}, 2), ({"GPU": 1}, 1), ({"task": 1}, 1), ({}, 9)]
    with cluster(None, [Node(2)], verbose=False):
        busy = ray.remote(num_cpus=2)(occupy).remote()
        wait_for(begun.exists)
        results: dict[str, Any] = {"may": [wait_for_capacity.can_ever_fit(*request) for request in requests]}
        original, wait_for_capacity.can_ever_fit = wait_for_capacity.can_ever_fit, can_ever_fit
        task = ray.remote(num_cpus=1)(lambda: "done").remote()
        results["waited"] = ray.get(wait_for_capacity.wait_any([task], {"CPU": 1}))
        ray.get(busy)
        try:
            wait_for_capacity.wait_any([ray.remote(num_cpus=0, resources={"task": 1})(lambda: 0).remote()], {"task": 1})
        except wait_for_capacity.NoCapacityError as error:
            results["error"] = str(error)
    return results


def test_wait_any_waits_for_used_capacity_but_not_for_missing_nodes(tmp_path):
    results = apart("cluster.test_wait_for_capacity", f"wait_on_a_used_cluster(pathlib.Path({str(tmp_path)!r}))")
    assert results["may"] == [True, False, False, False, False, True]
    assert results["waited"] == "done"
    assert results["error"] == "no node of the cluster could run it within 1 s; it takes 1 task"


def run_two_trials_with_capacity_for_one(folder: Path) -> dict[str, Any]:
    """Two trials with capacity for one: the other waits longer than all attempts to start a worker group take."""
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "3"
    from mbcl.orchestration.cluster.capacity import Node, TrialResources
    from mbcl.orchestration.cluster.connection import cluster
    from mbcl.orchestration.trial.train_workers import START_FAILURES
    from mbcl.orchestration.tune import run_trials as runner
    from mbcl.orchestration.tune.run_trials import run_trials
    from mbcl.study.record import StudyRecord, TrialRecord

    store = LocalStore(folder)
    study = StudyRecord(name="", space_digest="", metric="", mode="max", created="", trials={})
    jobs, fence, gate = {}, claim(store), folder / "gates" / "begun"
    gate_fence = Gate(fence.location, fence.token, str(gate.parent))
    close_gate(gate, WORKER, "trials/*/metrics.jsonl", 1)
    for number in range(2):
        experiment = Experiment.model_validate(
            SPACE["experiment"] | {"seed": number, "train": {"epochs": 2, "batch_size": 16}}
        )
        key = f"{number}-test"
        study.trials[key] = TrialRecord(
            ordinal=number, setting=number, seed=0, sampler="shuffle", objective="simclr", parameters={}
        )
        need = TrialResources(workers=1, cpus_per_worker=1.5, gpus_per_worker=0, threads=1)
        jobs[key] = job_of(key, experiment, store, need, joined=True, fence=gate_fence)
    waiting = []

    class WaitingObserver(SilentObserver):
        def poll(self, trial_ids: Sequence[str]) -> None:
            if list(folder.glob("trials/*/metrics.jsonl")):  # one of the two has begun, and stops at the gate
                runner.WAITING_SECONDS = 1.0

        def on_waiting(self, number: int) -> None:
            waiting.append(number)
            threading.Timer(3 * (1 + START_FAILURES), gate.unlink).start()

    runner.WAITING_SECONDS = PATIENCE
    with cluster(None, [Node(2)], verbose=False):
        run_trials(
            jobs, store=store, scratch=str(folder / ".ray"), study=study, concurrency=2, observer=WaitingObserver()
        )
    waited = max(record.seconds["startup"] for record in study.trials.values())
    return {
        "status": [[record.status, record.error] for record in study.trials.values()],
        "told": waiting,
        "tries": waited / 3 / (1 + START_FAILURES),
    }


@pytest.mark.slow
def test_run_trials_waits_for_capacity_without_limit(tmp_path):
    results = apart(
        "cluster.test_wait_for_capacity", f"run_two_trials_with_capacity_for_one(pathlib.Path({str(tmp_path)!r}))"
    )
    assert results["tries"] > 1, "the wait was longer than all attempts to start workers"
    assert results["status"] == [["finished", ""]] * 2
    assert results["told"] == [1]
