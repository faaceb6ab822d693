"""Trials that may have fewer workers than the most: what is asked of an autoscaler, and what is waited for."""

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


def decided(sizes: list[int], *, times: int) -> list[list[int]]:
    """What the policy decides at the beginning and after losses, each with what it then has requested."""
    from ray.train import ScalingConfig
    from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

    from mbcl.orchestration.cluster import elastic_policy

    elastic_policy.SETTLE_SECONDS = 0.5
    elastic_policy.FIRST_REQUEST_SECONDS = PATIENCE  # a slow autoscaler is still asked
    scaling = ScalingConfig(num_workers=sizes[-1], resources_per_worker={"CPU": 1.5})
    policy = elastic_policy.LargestDivisorScalingPolicy(scaling, sizes)
    policy.after_controller_start(SimpleNamespace(run_id="test"))  # type: ignore[arg-type]
    found = [[0, policy._get_num_workers_for_resource_request()]]
    for _ in range(times):
        decision: Any = None
        while not isinstance(decision, ResizeDecision):
            decision = policy.make_decision_for_non_running_worker_group()
        found.append([decision.num_workers, policy._get_num_workers_for_resource_request()])
    policy.before_controller_abort()
    return found


def alone() -> list[list[int]]:
    """On a Ray of two CPUs that does not grow."""
    from mbcl.orchestration.cluster.capacity import Node
    from mbcl.orchestration.cluster.connection import cluster

    with cluster(None, [Node(2)], verbose=False):
        return decided([1, 2, 4], times=2)


def growing(folder: str) -> list[list[int]]:
    """On a cluster of the head alone that can have two nodes of two CPUs."""
    import ray

    with autoscaled(Path(folder), {"CPU": 2}, max_workers=2) as address:
        ray.init(address, log_to_driver=False)
        try:
            return decided([1, 2], times=1)
        finally:
            ray.shutdown()


@pytest.mark.slow
def test_no_room_is_asked_for_that_a_smaller_group_does_not_use():
    assert apart("cluster.test_elastic_policy", "alone()") == [[0, 4], [1, 1], [1, 1]]


def test_a_trial_waits_for_the_nodes_that_boot_for_it(tmp_path):
    assert apart("cluster.test_elastic_policy", f"growing({str(tmp_path)!r})") == [[0, 2], [2, 2]]
