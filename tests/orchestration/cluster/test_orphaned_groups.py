"""Placement groups that a killed study leaves on a cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from patience import PATIENCE, wait_for

from ..helpers import ROOT, apart, line_of, ray_processes

pytestmark = pytest.mark.ray
pytest.importorskip("ray")


def make_groups(address: str) -> None:
    """A job whose actor makes one placement group after another, until the job is killed."""
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


def hold_a_group(address: str) -> None:
    """A job whose actor has a placement group, until its input ends."""
    import ray
    from ray.util.placement_group import placement_group

    ray.init(address, log_to_driver=False)

    @ray.remote(num_cpus=0)
    class Maker:
        def __init__(self) -> None:
            assert placement_group([{"CPU": 0.5}]).wait(PATIENCE)

    maker = Maker.remote()
    ray.get(maker.__ray_ready__.remote())
    print("ready", flush=True)
    sys.stdin.read()


def num_groups_after_a_kill(address: str) -> int:
    """Kill such a job, and return how many groups there are when all of its processes have ended."""
    import ray
    from ray._private.state import state

    from mbcl.orchestration.cluster.orphaned_groups import actor_groups

    job = line_of("cluster.test_orphaned_groups", f"make_groups({address!r})")
    with subprocess.Popen(job, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.3)  # at some moment of its work
        process.send_signal(signal.SIGKILL)
    own_job = ray.get_runtime_context().get_job_id()
    wait_for(lambda: all(job["IsDead"] for job in state.job_table() if job["JobID"] != own_job))
    wait_for(lambda: not ray_processes("ray::Maker"))
    return len(actor_groups())


def kill_and_join() -> dict[str, int]:
    """Kill jobs on a cluster until one leaves groups behind, then join it as a study does."""
    import ray
    from ray.cluster_utils import Cluster

    from mbcl.orchestration.cluster import connection as module
    from mbcl.orchestration.cluster.orphaned_groups import actor_groups, remove_orphaned_groups

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        ray.init(nodes.address, log_to_driver=False)
        left = wait_for(lambda: num_groups_after_a_kill(nodes.address))  # Ray itself removes most of them
        ray.shutdown()
        other = line_of("cluster.test_orphaned_groups", f"hold_a_group({nodes.address!r})")
        pipe = subprocess.PIPE
        with subprocess.Popen(other, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as job:
            assert job.stdout is not None
            assert job.stdout.readline() == b"ready\n"
            with module.cluster(nodes.address, [], verbose=False):
                wait_for(lambda: len(actor_groups()) <= 1)
                assert remove_orphaned_groups() == 0
                remaining = len(actor_groups())
            job.communicate(b"\n")
        return {"left": left, "kept": remaining}
    finally:
        nodes.shutdown()


@pytest.mark.slow
def test_remove_orphaned_groups_frees_those_of_a_killed_sweep_only():
    groups = apart("cluster.test_orphaned_groups", "kill_and_join()")
    assert groups["left"] > 0, "the killed job left no group behind, so the test shows nothing"
    assert groups["kept"] == 1
