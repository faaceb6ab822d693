"""What a killed sweep leaves reserved on a cluster that goes on without it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from .conftest import ROOT, apart

pytestmark = pytest.mark.ray
pytest.importorskip("ray")

TRIES = 20


def reserve(address: str) -> None:
    """A job whose actor makes one placement group after another, until somebody kills the job."""
    import ray
    from ray.util.placement_group import placement_group

    ray.init(address, log_to_driver=False)

    @ray.remote(num_cpus=0)
    class Maker:
        def work(self) -> None:
            while True:
                placement_group([{"CPU": 0.001}])

    maker = Maker.remote()
    ray.get(maker.__ray_ready__.remote())
    print("ready", flush=True)
    ray.get(maker.work.remote())


def hold(address: str) -> None:
    """A job whose actor has a placement group, until its input ends."""
    import ray
    from ray.util.placement_group import placement_group

    ray.init(address, log_to_driver=False)

    @ray.remote(num_cpus=0)
    class Maker:
        def __init__(self) -> None:
            assert placement_group([{"CPU": 0.5}]).wait(30)

    maker = Maker.remote()
    ray.get(maker.__ray_ready__.remote())
    print("ready", flush=True)
    sys.stdin.read()


def left_by_a_killed_job(address: str) -> int:
    """Kill such a job, and return how many groups there are when all of its processes have ended."""
    from mbcl.orchestration.janitor import groups_of_actors

    job = [sys.executable, "-c", f"from tests.orchestration.test_janitor import *; reserve({address!r})"]
    with subprocess.Popen(job, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    time.sleep(2)
    return len(groups_of_actors())


def kill_and_join() -> dict[str, int]:
    """Kill jobs on a cluster until one leaves something behind, then join it as a sweep does; in its own process."""
    import ray
    from ray.cluster_utils import Cluster

    from mbcl.orchestration import cluster as module
    from mbcl.orchestration.janitor import groups_of_actors

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        ray.init(nodes.address, log_to_driver=False)
        left = next((found for _ in range(TRIES) if (found := left_by_a_killed_job(nodes.address))), 0)
        ray.shutdown()
        other = [sys.executable, "-c", f"from tests.orchestration.test_janitor import *; hold({nodes.address!r})"]
        pipe = subprocess.PIPE
        with subprocess.Popen(other, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as job:
            assert job.stdout is not None
            assert job.stdout.readline() == b"ready\n"
            with module.cluster(nodes.address, [], verbose=False):
                end = time.monotonic() + 30
                while len(groups_of_actors()) > 1 and time.monotonic() < end:
                    time.sleep(0.1)
                time.sleep(1)
                kept = len(groups_of_actors())
            job.communicate(b"\n")
        return {"left": left, "kept": kept}
    finally:
        nodes.shutdown()


def test_what_a_killed_sweep_left_reserved_is_given_back_and_nobody_elses():
    seen = apart("test_janitor", "kill_and_join()")
    assert seen["left"] > 0, "the killed job left nothing behind, so that nothing is shown"
    assert seen["kept"] == 1
