"""The adapter to Ray's private API: the only file that imports it; it exports plain functions and dataclasses.

Ray may change these names in any release. Each assumption has a test in
``tests/orchestration/cluster/test_ray_internals.py``, so that after an upgrade a failing test names what has changed.
``pyproject.toml`` states the range of versions for which these tests have passed.

The functions query the cluster that this process is connected to, so they need ``ray.init``; the classes do not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.experimental.internal_kv import _internal_kv_get
from ray.train import ControllerError, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import RayTrainError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, NoopDecision, ResizeDecision
from ray.util.placement_group import PlacementGroup, remove_placement_group

LOST_WORKER_ERRORS: tuple[type[Exception], ...] = (ray.exceptions.RayError, RayTrainError)
"""The errors that Ray raises for a process that died or is unreachable."""

NodeResources = dict[str, float]
"""Amounts by resource, such as ``{"CPU": 8.0, "GPU": 1.0}``."""


@dataclass(frozen=True)
class PlacementGroupInfo:
    """A placement group that has not been removed, from the table of the GCS.

    Args:
        id: id in hex.
        job_id: id of the job that created it, in hex.
        creator_actor_id: id of the actor that created it, in hex; empty if a driver process or a task did.
        creator_dead: whether the GCS marked it when its creator died.
        detached: whether it outlives its creator on purpose.
        created: whether its resources are reserved; otherwise it waits for them.
        requested_at: time of the request in seconds since the epoch.
        reserved: resources by node id, in hex; empty while it waits.
    """

    id: str
    job_id: str
    creator_actor_id: str
    creator_dead: bool
    detached: bool
    created: bool
    requested_at: float
    reserved: dict[str, NodeResources]

    def remove(self) -> None:
        """Remove the group, which releases its resources."""
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(self.id)))


def placement_groups() -> list[PlacementGroupInfo]:
    """Return the placement groups of all jobs, also waiting ones. Ray's public API for this needs the dashboard."""
    table = state._connect_and_get_accessor().get_placement_group_table()
    groups = map(PlacementGroupTableData.FromString, table)
    return [_group_info(group) for group in groups if group.state != PlacementGroupTableData.REMOVED]


def _group_info(group: Any) -> PlacementGroupInfo:
    creator = ray.ActorID(group.creator_actor_id)
    reserved: dict[str, NodeResources] = {}
    for bundle in group.bundles:
        if bundle.node_id:
            node = reserved.setdefault(bundle.node_id.hex(), {})
            for key, amount in bundle.unit_resources.items():
                node[key] = node.get(key, 0) + amount
    return PlacementGroupInfo(
        id=group.placement_group_id.hex(),
        job_id=group.creator_job_id.hex(),
        creator_actor_id="" if creator.is_nil() else creator.hex(),
        creator_dead=group.creator_actor_dead,
        detached=group.is_detached,
        created=group.state == PlacementGroupTableData.CREATED,
        requested_at=group.stats.creation_request_received_ns / 1e9,
        reserved=reserved,
    )


def live_jobs() -> set[str]:
    """Return the ids of the jobs that have not ended, in hex."""
    return {str(job["JobID"]) for job in state.job_table() if not job["IsDead"]}


def actor_is_dead(actor_id: str) -> bool:
    """Return whether an actor is dead and will not be restarted."""
    return bool(state.actor_table(actor_id).get("State") == "DEAD")


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that are being drained, in hex."""
    return set(state.get_draining_nodes())


def free_resources_by_node() -> dict[str, NodeResources]:
    """Return by node id, in hex, the resources that no task, actor or placement group has reserved."""
    return {node: dict(free) for node, free in state.available_resources_per_node().items()}


def drain_this_node(seconds: float, node_id: str = "") -> None:
    """Drain the node with this id in hex, by default this node: announce that it will be preempted in ``seconds``.

    Raises:
        ConnectionError: if Ray rejects the notice.
    """
    context = ray.get_runtime_context()
    deadline_ms = int((time.time() + seconds) * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    client = GcsClient(address=context.gcs_address)
    node_id = node_id or context.get_node_id()
    accepted, message = client.drain_node(node_id, reason, "the node is taken away", deadline_ms)
    if not accepted:
        raise ConnectionError(f"Ray does not take the notice: {message}")


@dataclass(frozen=True)
class NodeType:
    """A type of node that an autoscaler can start.

    Args:
        resources: the resources of one node.
        max_count: maximum number of nodes; -1 for no limit.
    """

    resources: NodeResources
    max_count: int


def autoscaler_node_types() -> list[NodeType]:
    """Return the types of nodes that the autoscaler can start; empty if it does not report them."""
    config = state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return [NodeType(dict(group.resources), group.max_count) for group in groups]


@dataclass(frozen=True)
class AutoscalerStatus:
    """The state that the autoscaler of a cluster, version 1 or 2, reports.

    Args:
        present: whether the cluster has an autoscaler.
        num_booting: number of nodes that were requested and are not up.
    """

    present: bool
    num_booting: int


def autoscaler_status() -> AutoscalerStatus:
    """Return the state of the cluster's autoscaler."""
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        num_booting = len(status.pending_nodes) + sum(launch.count for launch in status.pending_launches)
        return AutoscalerStatus(True, num_booting)
    content = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    status_v1 = json.loads(content) if content else {}
    report = status_v1.get("autoscaler_report") or {}
    num_booting = len(report.get("pending_nodes", ())) + sum(report.get("pending_launches", {}).values())
    return AutoscalerStatus(bool(status_v1), num_booting)


class LeanTorchTrainer(TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer without two callbacks, whose processes cost 2 CPU-seconds each, and with replaceable policies.

    Ray Data is not used. Ray's cleaner of placement groups needs the dashboard;
    :func:`~mbcl.orchestration.cluster.orphaned_groups.remove_orphaned_groups` replaces it.
    """

    UNUSED_CALLBACKS = ("PlacementGroupCleanerCallback", "DatasetsCallback")

    policies: Mapping[str, Any] = {}
    """Replacements of Ray Train's policies under the keys ``failure_policy`` and ``scaling_policy``."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        names = {type(callback).__name__ for callback in callbacks}
        missing = [name for name in self.UNUSED_CALLBACKS if name not in names]
        assert not missing, f"this version of Ray Train has no {missing}; see pyproject.toml for those that fit"
        return [callback for callback in callbacks if type(callback).__name__ not in self.UNUSED_CALLBACKS]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        for name, policy in self.policies.items():
            assert name in options, f"this version of Ray Train has no {name}; see pyproject.toml for those that fit"
            options[name] = policy
        return super()._initialize_and_run_controller(**options)


class FailurePolicy(DefaultFailurePolicy):
    """Ray Train's policy, which counts failures, with three decisions that a subclass overrides."""

    def waits_for_capacity(self) -> bool:
        """Return whether a timeout of starting workers is retried without counting it."""
        return False

    def has_progressed(self) -> bool:
        """Return whether training has progressed since the last failure, which resets the counts."""
        return False

    def retries(self, worker_errors: Mapping[int, BaseException]) -> bool:
        """Return whether a failure of workers, given by rank, is retried within the limits."""
        return True

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Decide whether to retry or to raise; called by Ray Train's controller."""
        if isinstance(training_failed_error, ControllerError):
            timed_out = isinstance(training_failed_error.controller_failure, WorkerGroupStartupTimeoutError)
            if timed_out and self.waits_for_capacity():
                return FailureDecision.RETRY
        if self.has_progressed():
            self._worker_group_failures = self._controller_failures = 0
        return super().make_decision(training_failed_error)

    def _is_retryable_error(self, training_failed_error: TrainingFailedError) -> bool:
        if isinstance(training_failed_error, WorkerGroupError):
            if not self.retries(training_failed_error.worker_failures):
                return False
        return bool(super()._is_retryable_error(training_failed_error))


class ScalingPolicy(FixedScalingPolicy):
    """A policy that chooses the size of a worker group before it starts; a running group keeps its size.

    Args:
        scaling_config: Ray Train's configuration, with the largest size.
    """

    def __init__(self, scaling_config: ScalingConfig) -> None:
        super().__init__(scaling_config)
        self._requested_size = scaling_config.num_workers

    def choose_size(self, resources_per_worker: Mapping[str, float]) -> int | None:
        """Return the number of workers to start now; None to be called again at once."""
        raise NotImplementedError

    def request_nodes_for(self, size: int) -> None:
        """Request nodes for ``size`` workers from the autoscaler from now on."""
        if size != self._requested_size:
            self._requested_size = size
            self._send_resource_request()  # type: ignore[no-untyped-call]

    def _get_num_workers_for_resource_request(self) -> int:
        # The autoscaler boots nodes for the requested resources, and keeps them while they are requested.
        return int(self._requested_size)

    def make_decision_for_non_running_worker_group(self) -> ResizeDecision | NoopDecision:
        """Start a group or wait; called by Ray Train's controller at the beginning and after the loss of a worker."""
        self._maybe_send_resource_request()  # type: ignore[no-untyped-call]
        resources = self.scaling_config._resources_per_worker_not_none
        size = self.choose_size(resources)
        if size is None:
            return NoopDecision()
        return ResizeDecision(num_workers=size, resources_per_worker=resources)
