"""Elastic trials: the resources requested from an autoscaler, and the wait for new nodes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from patience import PATIENCE

from ..helpers import apart
from .autoscaled import autoscaled

pytestmark = pytest.mark.ray
pytest.importorskip("ray")


def decisions_of(sizes: list[int], *, times: int) -> list[list[int]]:
    """The number of workers that the policy chooses at each (re)start, with the number that it requests."""
    from ray.train import ScalingConfig
    from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

    from mbcl.orchestration.cluster import elastic_policy

    elastic_policy.SETTLE_SECONDS = 0.5
    elastic_policy.FIRST_REQUEST_SECONDS = PATIENCE  # so that a slow autoscaler still gets the first request
    scaling = ScalingConfig(num_workers=sizes[-1], resources_per_worker={"CPU": 1.5})
    policy = elastic_policy.LargestDivisorScalingPolicy(scaling, sizes)
    policy.after_controller_start(SimpleNamespace(run_id="test"))  # type: ignore[arg-type]
    decisions = [[0, policy._get_num_workers_for_resource_request()]]
    for _ in range(times):
        decision: Any = None
        while not isinstance(decision, ResizeDecision):
            decision = policy.make_decision_for_non_running_worker_group()
        decisions.append([decision.num_workers, policy._get_num_workers_for_resource_request()])
    policy.before_controller_abort()
    return decisions


def decide_on_local_ray() -> list[list[int]]:
    """On a Ray of two CPUs that does not grow."""
    from mbcl.orchestration.cluster.capacity import Node
    from mbcl.orchestration.cluster.connection import cluster

    with cluster(None, [Node(2)], verbose=False):
        return decisions_of([1, 2, 4], times=2)


def decide_on_growing_cluster(folder: str) -> list[list[int]]:
    """On a cluster of a head that can grow by two nodes of two CPUs."""
    import ray

    with autoscaled(Path(folder), {"CPU": 2}, max_workers=2) as address:
        ray.init(address, log_to_driver=False)
        try:
            return decisions_of([1, 2], times=1)
        finally:
            ray.shutdown()


@pytest.mark.slow
def test_scaling_policy_requests_no_more_than_a_smaller_group_uses():
    assert apart("cluster.test_elastic_policy", "decide_on_local_ray()") == [[0, 4], [1, 1], [1, 1]]


def test_scaling_policy_waits_for_nodes_that_boot(tmp_path):
    assert apart("cluster.test_elastic_policy", f"decide_on_growing_cluster({str(tmp_path)!r})") == [[0, 2], [2, 2]]
