"""Waiting on a cluster that others use, and that loses nodes."""

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

from ..helpers import SPACE, WORKER, Gate, Quiet, apart, job_of, shut

pytestmark = pytest.mark.ray
pytest.importorskip("ray")


def look(folder: Path) -> dict[str, Any]:
    """What is said on a Ray of two CPUs, both of which somebody else uses; in a process of its own."""
    import ray

    from mbcl.orchestration.cluster import wait_for_capacity
    from mbcl.orchestration.cluster.capacity import Node
    from mbcl.orchestration.cluster.connection import cluster

    wait_for_capacity.POLL_SECONDS, wait_for_capacity.NO_CAPACITY_SECONDS = 0.1, 1.0
    begun, free, looks = folder / "begun", folder / "free", []

    def use() -> None:
        begun.touch()
        while not free.exists():
            time.sleep(0.05)

    def can_ever_fit(*found: Any) -> bool:
        looks.append(time.monotonic())
        if looks[-1] - looks[0] > 3 * wait_for_capacity.NO_CAPACITY_SECONDS:
            free.touch()
        return answer(*found)

    asked = [({"CPU": 1}, 2), ({"CPU": 1}, 3), ({"CPU": 1.5}, 2), ({"GPU": 1}, 1), ({"task": 1}, 1), ({}, 9)]
    with cluster(None, [Node(2)], verbose=False):
        busy = ray.remote(num_cpus=2)(use).remote()
        wait_for(begun.exists)
        seen: dict[str, Any] = {"may": [wait_for_capacity.can_ever_fit(*found) for found in asked]}
        answer, wait_for_capacity.can_ever_fit = wait_for_capacity.can_ever_fit, can_ever_fit
        task = ray.remote(num_cpus=1)(lambda: "done").remote()
        seen["waited"] = ray.get(wait_for_capacity.wait_any([task], {"CPU": 1}))
        ray.get(busy)
        try:
            wait_for_capacity.wait_any([ray.remote(num_cpus=0, resources={"task": 1})(lambda: 0).remote()], {"task": 1})
        except wait_for_capacity.NoCapacityError as error:
            seen["error"] = str(error)
    return seen


def test_what_others_use_is_waited_for_and_what_is_gone_is_not(tmp_path):
    seen = apart("cluster.test_wait_for_capacity", f"look(pathlib.Path({str(tmp_path)!r}))")
    assert seen["may"] == [True, False, False, False, False, True]
    assert seen["waited"] == "done"
    assert seen["error"] == "no node of the cluster could run it within 1 s; it takes 1 task"


def two_trials_in_the_place_of_one(folder: Path) -> dict[str, Any]:
    """Two trials at a time where but one has room, and the other waits for longer than its start is tried."""
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
    under = Gate(fence.location, fence.token, str(gate.parent))
    shut(gate, WORKER, "trials/*/metrics.jsonl", 1)
    for number in range(2):
        experiment = Experiment.model_validate(
            SPACE["experiment"] | {"seed": number, "train": {"epochs": 2, "batch_size": 16}}
        )
        key = f"{number}-test"
        study.trials[key] = TrialRecord(
            ordinal=number, setting=number, seed=0, sampler="shuffle", objective="simclr", parameters={}
        )
        need = TrialResources(workers=1, cpus_per_worker=1.5, gpus_per_worker=0, threads=1)
        jobs[key] = job_of(key, experiment, store, need, joined=True, fence=under)
    told = []

    class Told(Quiet):
        def poll(self, trial_ids: Sequence[str]) -> None:
            if list(folder.glob("trials/*/metrics.jsonl")):  # one of the two has begun, and waits
                runner.WAITING_SECONDS = 1.0

        def on_waiting(self, number: int) -> None:
            told.append(number)
            threading.Timer(3 * (1 + START_FAILURES), gate.unlink).start()

    runner.WAITING_SECONDS = PATIENCE
    with cluster(None, [Node(2)], verbose=False):
        run_trials(jobs, store=store, scratch=str(folder / ".ray"), study=study, concurrency=2, observer=Told())
    waited = max(record.seconds["startup"] for record in study.trials.values())
    return {
        "status": [[record.status, record.error] for record in study.trials.values()],
        "told": told,
        "tries": waited / 3 / (1 + START_FAILURES),
    }


@pytest.mark.slow
def test_a_trial_without_a_place_waits_for_one_however_long(tmp_path):
    seen = apart("cluster.test_wait_for_capacity", f"two_trials_in_the_place_of_one(pathlib.Path({str(tmp_path)!r}))")
    assert seen["tries"] > 1, "the one that waited would have been given up before"
    assert seen["status"] == [["finished", ""]] * 2
    assert seen["told"] == [1]
