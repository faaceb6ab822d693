"""The announced and the sudden loss of a node, on a cluster of three nodes, all on this machine."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, wait_for

from mbcl.config.experiment import Experiment
from mbcl.engine import checkpoint as checkpoints
from mbcl.io.ownership import claim
from mbcl.io.store import LocalStore
from mbcl.orchestration.cluster import spot_notices

from .helpers import (
    SPACE,
    WORKER,
    Gate,
    SilentObserver,
    apart,
    assert_same_metrics,
    close_gate,
    job_of,
    train_without_ray,
)

pytest.importorskip("ray")

EPOCHS = 3
EXPERIMENT = Experiment.model_validate(
    SPACE["experiment"]
    | {
        # An epoch has 67 steps; preemption is checked after 25 of them.
        "data": {"name": "digits", "max_samples": 600},
        # A low rate: rounding differences between two workers and one grow with it, in float64, too.
        "optimizer": {"name": "lars", "lr": 0.003},
        "train": {"epochs": EPOCHS, "batch_size": 8, "keep_checkpoints": 2 * EPOCHS, "precision": "float64"},
    }
)
TRIAL = "0-test"
SOON = {
    # By default Ray detects a lost node after half a minute, and polls for preemption every five seconds.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
}


class PreemptionGate(Gate):
    """A claim whose gate ``notified`` opens for a worker that knows of a preemption."""

    def is_closed(self, path: Path) -> bool:
        if not super().is_closed(path):
            return False
        from ray.train.v2._internal.execution.context import get_train_context

        return path.name != "notified" or get_train_context().preemption_context.preemption_info is None


def run_and_lose_a_node(folder: Path, *, announced: bool) -> dict[str, Any]:
    """Run a trial on two nodes of one worker each, one of which is lost in the second epoch."""
    os.environ.update(SOON)
    from ray.cluster_utils import Cluster

    from mbcl.orchestration.cluster import connection as module
    from mbcl.orchestration.cluster.capacity import resolve_resources
    from mbcl.orchestration.search_space.resources_block import Resources
    from mbcl.orchestration.tune.run_trials import run_trials
    from mbcl.study.record import StudyRecord, TrialRecord

    store = LocalStore(folder)
    trial = store.child(f"trials/{TRIAL}")
    results: dict[str, Any] = {}
    fence, gates = claim(store), folder / "gates"
    close_gate(gates / "notified", WORKER, f"trials/{TRIAL}/metrics.jsonl", 1)
    close_gate(gates / "within", WORKER, f"trials/{TRIAL}/checkpoints/*_step_*/manifest.json")
    nodes = Cluster(
        initialize_head=True,
        connect=False,
        head_node_args={"num_cpus": 0, "resources": {"driver": 1000}, "include_dashboard": False},
    )
    workers = [nodes.add_node(num_cpus=2, resources={"task": 2}) for _ in range(2)]

    def within_the_second_epoch() -> None:
        wait_for(lambda: trial.exists("metrics.jsonl"))
        if announced:
            spot_notices.drain(PATIENCE, workers[0].node_id)
            begun = folder / "trials" / TRIAL / "checkpoints"
            within = wait_for(lambda: list(begun.glob("epoch_000001_step_*/manifest.json")))
            results["within"] = json.loads((within[0].parent / "meta.json").read_text())
        nodes.remove_node(workers[0], allow_graceful=False)
        for gate in gates.iterdir():
            gate.unlink()

    attack = ThreadPoolExecutor(1)
    try:
        with module.cluster(nodes.address, [], verbose=False) as info:
            resources = Resources(workers={"min": 1, "max": 2}, cpus_per_worker=1.5)
            need = resolve_resources(resources, info.nodes, drivers=info.drivers)
            gate_fence = PreemptionGate(fence.location, fence.token, str(gates))
            options = {"placement": info.placement, "sizes": (1, 2), "fence": gate_fence, "joined": True}
            job = job_of(TRIAL, EXPERIMENT, store, need, **options)
            record = TrialRecord(ordinal=0, setting=0, seed=0, sampler="shuffle", objective="simclr", parameters={})
            study = StudyRecord(name="", space_digest="", metric="", mode="max", created="", trials={TRIAL: record})
            attacked = attack.submit(within_the_second_epoch)
            run_trials(
                {TRIAL: job}, store=store, scratch=job.scratch, study=study, concurrency=1, observer=SilentObserver()
            )
        attacked.result()
    finally:
        nodes.shutdown()
    return results | {"record": record.model_dump(mode="json"), "need": job.resources.workers}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("announced", [True, False])
def test_trial_continues_with_fewer_workers_after_the_loss_of_a_node(tmp_path, announced):
    results = apart(
        "test_nodes", f"run_and_lose_a_node(pathlib.Path({str(tmp_path / 'cluster')!r}), announced={announced})"
    )
    assert results["need"] == 2
    assert (results["record"]["status"], results["record"]["error"]) == ("finished", "")
    store = LocalStore(tmp_path / "cluster" / "trials" / TRIAL)
    assert checkpoints.load(store, "epoch_000001").meta["workers"] == 2
    assert checkpoints.latest(store).meta["workers"] == 1
    if announced:
        assert (results["within"]["workers"], results["within"]["epoch"]) == (2, 1), "the notice led to a checkpoint"
    assert_same_metrics(results["record"]["metrics"], train_without_ray(EXPERIMENT, tmp_path / "alone"))
    rows = [json.loads(line) for line in (store.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
