"""Every assumption about Ray's private API, one test each, so that an upgrade fails by the name of what has changed.

These tests run with each supported version of Ray; CONTRIBUTING says how.
"""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, wait_for

from ..helpers import apart

pytest.importorskip("ray")

import ray  # noqa: E402
import ray.exceptions  # noqa: E402
import ray.train  # noqa: E402
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError  # noqa: E402
from ray.train.v2._internal.execution import callback, failure_handling, scaling_policy  # noqa: E402

from mbcl.orchestration.cluster import ray_environment, ray_internals  # noqa: E402

PACKAGE = Path(ray.__file__).parent


def test_ray_train_names_are_those_of_its_second_version():
    from ray.train.v2.api import config
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    assert ray.train.FailureConfig is config.FailureConfig
    assert ray.train.ScalingConfig is config.ScalingConfig
    assert ray.train.RunConfig is config.RunConfig
    assert ray.train.torch.TorchTrainer is TorchTrainer
    assert issubclass(ray.train.WorkerGroupError, ray.train.TrainingFailedError)
    assert issubclass(ray.train.ControllerError, ray.train.TrainingFailedError)
    assert "controller_failure_limit" in inspect.signature(ray.train.FailureConfig).parameters


def test_errors_carry_what_the_policies_read():
    error = ValueError("bug")
    assert ray.train.WorkerGroupError("message", {1: error}).worker_failures == {1: error}
    timeout = WorkerGroupStartupTimeoutError(2)
    assert ray.train.ControllerError(timeout).controller_failure is timeout
    assert isinstance(timeout, ray_internals.LOST_WORKER_ERRORS)
    assert issubclass(ray.exceptions.RayActorError, ray_internals.LOST_WORKER_ERRORS)


def test_the_default_failure_policy_counts_in_two_attributes():
    policy = failure_handling.DefaultFailurePolicy(ray.train.FailureConfig(max_failures=1))
    assert (policy._worker_group_failures, policy._controller_failures) == (0, 0)
    error = ray.train.WorkerGroupError("message", {0: ray.exceptions.RayActorError()})
    assert policy.make_decision(error) == failure_handling.FailureDecision.RETRY
    assert policy._worker_group_failures == 1
    policy._worker_group_failures = 0
    assert policy.make_decision(error) == failure_handling.FailureDecision.RETRY
    assert policy.make_decision(error) == failure_handling.FailureDecision.RAISE
    assert callable(policy._is_retryable_error)


def test_the_default_scaling_policy_asks_for_nodes_through_two_hooks():
    policy = scaling_policy.FixedScalingPolicy(ray.train.ScalingConfig(num_workers=3))
    assert policy._get_num_workers_for_resource_request() == 3
    assert callable(policy._send_resource_request)
    assert callable(policy._maybe_send_resource_request)
    scaling = ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1.5})
    assert scaling._resources_per_worker_not_none == {"CPU": 1.5}
    decision = scaling_policy.ResizeDecision(num_workers=2, resources_per_worker={"CPU": 1})
    assert decision.num_workers == 2
    assert isinstance(policy, callback.ControllerCallback)


def test_the_trainer_makes_its_callbacks_and_starts_its_controller_in_two_methods():
    trainer = ray_internals.LeanTorchTrainer(lambda: None)
    names = [type(each).__name__ for each in trainer._create_default_callbacks()]
    assert names
    assert not set(names) & set(ray_internals.LeanTorchTrainer.UNUSED_CALLBACKS)
    source = inspect.getsource(ray.train.torch.TorchTrainer.fit)
    assert "_initialize_and_run_controller" in source
    for policy in ("failure_policy", "scaling_policy"):
        assert f"{policy}=" in source


VARIABLES = (
    ray_environment.ENV_ALL | ray_environment.ENV_LOCAL | ray_environment.ENV_CLUSTER | ray_environment.ENV_DRIVER
)


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_ray_reads_the_environment_variable(name):
    if name.startswith("RAY_idle_"):  # a setting of the raylet, in C++
        raylet = PACKAGE / "core" / "src" / "ray" / "raylet" / "raylet"
        assert name.removeprefix("RAY_").encode() in raylet.read_bytes()
    else:
        assert _mentions(name)


@pytest.mark.parametrize("name", [ray_environment.JOB_CONFIG_VARIABLE, ray_environment.WORKING_DIR_FOLDER])
def test_ray_uses_the_name(name):
    assert _mentions(name)


@functools.cache
def _sources() -> str:
    return "\n".join(file.read_text() for file in PACKAGE.rglob("*.py"))


def _mentions(name: str) -> bool:
    """Whether Ray's Python files contain a name."""
    return name in _sources()


def test_ray_status_is_a_command():
    command = [str(Path(sys.executable).parent / "ray"), "status", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "--address" in result.stdout


def seen_on_two_nodes() -> dict[str, Any]:
    """What the functions return on a cluster of a head and one node; in a process of its own."""
    from ray.cluster_utils import Cluster
    from ray.util.placement_group import placement_group

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = nodes.add_node(num_cpus=2).node_id
    try:
        ray.init(nodes.address, log_to_driver=False)

        @ray.remote(num_cpus=0)
        class Maker:
            def make(self, cpus: float) -> str:
                group = placement_group([{"CPU": cpus}])
                return group.id.hex()

        own = placement_group([{"CPU": 1}], strategy="PACK")
        assert own.wait(PATIENCE)
        maker = Maker.remote()
        held, waiting = ray.get([maker.make.remote(1), maker.make.remote(64)])
        wait_for(lambda: len([group for group in ray_internals.placement_groups() if group.created]) == 2)
        groups = {group.id: group for group in ray_internals.placement_groups()}
        free = wait_for(
            lambda: (
                (found := ray_internals.free_resources_by_node())
                and sum(node.get("CPU", 0) for node in found.values()) == 1
                and found
            )
        )
        seen: dict[str, Any] = {
            "own": groups[own.id.hex()].__dict__,
            "held": groups[held].__dict__,
            "waiting": groups[waiting].__dict__,
            "maker": maker._actor_id.hex(),
            "job": ray.get_runtime_context().get_job_id(),
            "jobs": sorted(ray_internals.live_jobs()),
            "free": free,
            "second": second,
            "now": time.time(),
            "alive": ray_internals.actor_is_dead(maker._actor_id.hex()),
            "status": ray_internals.autoscaler_status().__dict__,
            "node_types": ray_internals.autoscaler_node_types(),
        }
        ray.kill(maker)
        wait_for(lambda: ray_internals.actor_is_dead(maker._actor_id.hex()))
        dead = {group.id: group for group in ray_internals.placement_groups()}
        seen["dead"] = dead[held].creator_dead
        dead[held].remove()
        dead[waiting].remove()
        wait_for(lambda: set(group.id for group in ray_internals.placement_groups()) == {own.id.hex()})
        ray_internals.drain_this_node(3600, second)
        seen["draining"] = sorted(wait_for(ray_internals.draining_nodes))
        ray.shutdown()
        return seen
    finally:
        nodes.shutdown()


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    return apart("cluster.test_ray_internals", "seen_on_two_nodes()")


@pytest.mark.ray
def test_a_group_of_a_process_has_no_actor_as_its_maker(seen):
    assert seen["own"]["creator_actor_id"] == ""
    assert seen["own"]["job_id"] == seen["job"]


@pytest.mark.ray
def test_a_group_of_an_actor_names_it_and_its_job(seen):
    assert seen["held"]["creator_actor_id"] == seen["waiting"]["creator_actor_id"] == seen["maker"]
    assert seen["held"]["job_id"] == seen["job"]
    assert not seen["held"]["detached"]


@pytest.mark.ray
def test_a_group_that_waits_is_not_created_and_reserves_nothing(seen):
    assert (seen["held"]["created"], seen["waiting"]["created"]) == (True, False)
    assert sum(node["CPU"] for node in seen["held"]["reserved"].values()) == 1
    assert seen["waiting"]["reserved"] == {}
    assert 0 <= seen["now"] - seen["waiting"]["requested_at"] < 2 * PATIENCE


@pytest.mark.ray
def test_the_death_of_a_maker_is_known(seen):
    assert not seen["alive"]
    assert not seen["held"]["creator_dead"]
    assert seen["dead"]


@pytest.mark.ray
def test_free_resources_are_known_by_node(seen):
    assert len(seen["free"]) == 2
    assert seen["second"] in seen["free"]


@pytest.mark.ray
def test_live_jobs_are_known(seen):
    assert seen["jobs"] == [seen["job"]]


@pytest.mark.ray
def test_a_drained_node_is_known(seen):
    assert seen["draining"] == [seen["second"]]


@pytest.mark.ray
def test_a_cluster_without_an_autoscaler_boots_nothing(seen):
    assert seen["status"]["num_booting"] == 0
    assert seen["node_types"] == []
