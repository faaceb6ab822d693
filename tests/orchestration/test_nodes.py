"""Nodes that are announced to go, and go: on a cluster of three nodes, all on this machine."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, wait_for

from mbcl.config.experiment import Experiment
from mbcl.engine import checkpoint as checkpoints
from mbcl.io.ownership import claim
from mbcl.io.store import LocalStore
from mbcl.orchestration.cluster import spot_notices

from .helpers import SPACE, WORKER, Gate, Quiet, alone, apart, assert_as_alone, job_of, shut

pytest.importorskip("ray")

EPOCHS = 3
EXPERIMENT = Experiment.model_validate(
    SPACE["experiment"]
    | {
        # An epoch of 67 steps, as a node that will go is asked about after 25 of them.
        "data": {"name": "digits", "max_samples": 600},
        # A low rate: what two workers round otherwise than one grows with it, over hundreds of steps in float64, too.
        "optimizer": {"name": "lars", "lr": 0.003},
        "train": {"epochs": EPOCHS, "batch_size": 8, "keep_checkpoints": 2 * EPOCHS, "precision": "float64"},
    }
)
TRIAL = "0-test"
SOON = {
    # Ray notices a lost node after half a minute, and looks every five seconds for one that will go.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
}


class Told(Gate):
    """A claim whose gate ``told`` opens by itself for a worker that knows of a node that will go."""

    def is_shut(self, path: Path) -> bool:
        if not super().is_shut(path):
            return False
        from ray.train.v2._internal.execution.context import get_train_context

        return path.name != "told" or get_train_context().preemption_context.preemption_info is None


def lose_a_node(folder: Path, *, announced: bool) -> dict[str, Any]:
    """Run a trial on two nodes of one worker each, one of which goes within the second epoch; in its own process."""
    os.environ.update(SOON)
    from ray.cluster_utils import Cluster

    from mbcl.orchestration.cluster import connection as module
    from mbcl.orchestration.cluster.capacity import resolve_resources
    from mbcl.orchestration.search_space.resources_block import Resources
    from mbcl.orchestration.tune.run_trials import run_trials
    from mbcl.study.record import StudyRecord, TrialRecord

    store = LocalStore(folder)
    trial = store.child(f"trials/{TRIAL}")
    seen: dict[str, Any] = {}
    fence, gates = claim(store), folder / "gates"
    shut(gates / "told", WORKER, f"trials/{TRIAL}/metrics.jsonl", 1)
    shut(gates / "within", WORKER, f"trials/{TRIAL}/checkpoints/*_step_*/manifest.json")
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
            seen["within"] = json.loads((within[0].parent / "meta.json").read_text())
        nodes.remove_node(workers[0], allow_graceful=False)
        for gate in gates.iterdir():
            gate.unlink()

    attack = ThreadPoolExecutor(1)
    try:
        with module.cluster(nodes.address, [], verbose=False) as found:
            asked = Resources(workers={"min": 1, "max": 2}, cpus_per_worker=1.5)
            need = resolve_resources(asked, found.nodes, drivers=found.drivers)
            under = Told(fence.location, fence.token, str(gates))
            more = {"placement": found.placement, "sizes": (1, 2), "fence": under, "joined": True}
            job = job_of(TRIAL, EXPERIMENT, store, need, **more)
            record = TrialRecord(ordinal=0, setting=0, seed=0, sampler="shuffle", objective="simclr", parameters={})
            study = StudyRecord(name="", space_digest="", metric="", mode="max", created="", trials={TRIAL: record})
            attacked = attack.submit(within_the_second_epoch)
            run_trials({TRIAL: job}, store=store, scratch=job.scratch, study=study, concurrency=1, observer=Quiet())
        attacked.result()
    finally:
        nodes.shutdown()
    return seen | {"record": record.model_dump(mode="json"), "need": job.resources.workers}


@pytest.mark.ray
@pytest.mark.parametrize("announced", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_trial_goes_on_with_the_workers_that_still_fit(tmp_path, announced):
    seen = apart("test_nodes", f"lose_a_node(pathlib.Path({str(tmp_path / 'cluster')!r}), announced={announced})")
    assert seen["need"] == 2
    assert (seen["record"]["status"], seen["record"]["error"]) == ("finished", "")
    store = LocalStore(tmp_path / "cluster" / "trials" / TRIAL)
    assert checkpoints.load(store, "epoch_000001").meta["workers"] == 2
    assert checkpoints.latest(store).meta["workers"] == 1
    if announced:
        assert (seen["within"]["workers"], seen["within"]["epoch"]) == (2, 1), "the notice led to a checkpoint"
    assert_as_alone(seen["record"]["metrics"], alone(EXPERIMENT, tmp_path / "alone"))
    rows = [json.loads(line) for line in (store.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))


class Metadata(BaseHTTPRequestHandler):
    """The address at which a cloud tells a machine about itself."""

    going = False

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer("a-token")

    def do_GET(self) -> None:
        if self.path == "/latest/meta-data/spot/instance-action":
            assert self.headers["X-aws-ec2-metadata-token"] == "a-token"
            when = datetime.now(UTC) + timedelta(seconds=100)
            text = json.dumps({"action": "terminate", "time": f"{when:%Y-%m-%dT%H:%M:%SZ}"})
            self._answer(text if self.going else None)
        elif self.path == "/computeMetadata/v1/instance/preempted":
            assert self.headers["Metadata-Flavor"] == "Google"
            self._answer("TRUE" if self.going else "FALSE")

    def _answer(self, text: str | None) -> None:
        self.send_response(200 if text is not None else 404)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def metadata(monkeypatch):
    monkeypatch.setattr(spot_notices, "ANSWER_SECONDS", PATIENCE)

    class Own(Metadata): ...

    server = HTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Own, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("cloud", "seconds"), [(spot_notices.aws, 100), (spot_notices.google, 30)])
def test_the_notice_of_a_cloud_is_passed_on_once_ray_takes_it(metadata, cloud, seconds):
    from ray.exceptions import AuthenticationError, RaySystemError, RpcError

    handler, address = metadata
    assert cloud(address) is None
    handler.going = True
    told: list[float] = []
    troubles = [ConnectionError("no Ray yet"), RpcError("unavailable"), RaySystemError("x"), AuthenticationError("x")]

    def tell(left: float) -> None:
        told.append(left)
        if troubles:
            raise troubles.pop()

    start = time.monotonic()
    spot_notices.watch(lambda: cloud(address), tell, poll=0.01)
    assert len(told) == 5
    # The notice of AWS names a whole second.
    assert seconds - 1 - (time.monotonic() - start) <= told[0] <= seconds


def test_a_machine_without_such_an_address_is_asked_again(metadata):
    looks = []

    def look() -> float | None:
        looks.append(1)
        return spot_notices.aws("http://127.0.0.1:1") if len(looks) < 3 else 5.0

    spot_notices.watch(look, looks.append, poll=0.01)
    assert looks == [1, 1, 1, 5.0]
