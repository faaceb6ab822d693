"""How many workers a trial begins with, where it may have fewer than the most: those that fit, or that boot for it.

Ray Train asks this policy before it starts a worker group: at the beginning, and again after a loss. A group that runs
keeps its size.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray._private.state import state  # noqa: TID251
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]  # noqa: TID251
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, NoopDecision, ResizeDecision  # noqa: TID251
from ray.train.v2.api.config import ScalingConfig

from mbcl.orchestration.cluster import autoscaler
from mbcl.orchestration.cluster.connection import BOOT_SECONDS, FIRST_REQUEST_SECONDS
from mbcl.orchestration.cluster.wait_for_capacity import num_fitting

SETTLE_SECONDS = 5.0
"""How long it is waited for the most workers before fewer are taken: what others gave back is known a moment later."""
POLL_SECONDS = 0.5
REACH_SECONDS = 2.0
"""How long a node may take to accept a connection. Ray itself notices a lost one after half a minute."""


class LargestDivisorScalingPolicy(FixedScalingPolicy):
    """A worker group of the largest allowed size that the cluster has room for.

    Args:
        scaling_config: Ray Train's, with the largest size.
        sizes: those that share the trial's batch evenly.
    """

    def __init__(self, scaling_config: ScalingConfig, sizes: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self._sizes = sorted(sizes)
        self._size = self._sizes[-1]
        self._since: float | None = None

    def _get_num_workers_for_resource_request(self) -> int:
        # An autoscaler boots nodes for all that is requested, and holds them as long as it is.
        return self._size

    def make_decision_for_non_running_worker_group(self) -> ResizeDecision | NoopDecision:
        """The size to start with; the smallest where not even that fits now, for which Ray then waits.

        Nothing is decided as long as nodes boot that may make room for more workers.
        """
        if self._since is None:  # at the beginning, or after a loss
            self._since = time.monotonic()
            self._request(self._sizes[-1])
        self._maybe_send_resource_request()
        asked = self.scaling_config._resources_per_worker_not_none
        free = num_free_slots(asked)
        size = max((size for size in self._sizes if size <= free), default=self._sizes[0])
        if size < self._sizes[-1] and _may_grow(time.monotonic() - self._since):
            time.sleep(POLL_SECONDS)
            return NoopDecision()
        self._since = None
        self._request(size)
        return ResizeDecision(num_workers=size, resources_per_worker=asked)

    def _request(self, size: int) -> None:
        """Let the autoscaler know for how many workers it is to make room from now on."""
        if size != self._size:
            self._size = size
            self._send_resource_request()


def _may_grow(waited: float) -> bool:
    """Whether more room may come to a trial that has waited for so many seconds."""
    if waited <= SETTLE_SECONDS:
        return True
    if waited > BOOT_SECONDS or not autoscaler.is_present():
        return False
    return waited <= FIRST_REQUEST_SECONDS or autoscaler.num_booting_nodes() > 0


def num_free_slots(asked: Mapping[str, float]) -> int:
    """For how many workers the cluster has room, nodes that go or cannot be reached left out.

    What the calling actor has reserved itself counts as free: it gives that back before it reserves anew.

    Args:
        asked: what a worker needs, by resource.
    """
    leaving = state.get_draining_nodes()
    free = ray._private.state.available_resources_per_node()  # noqa: TID251
    own = _own_reservations()
    total = 0
    for node in ray.nodes():
        name = node["NodeID"]
        if not node["Alive"] or name in leaving or not _reachable(node):
            continue
        there = free.get(name, {})
        mine = own.get(name, {})
        total += int(num_fitting({key: there.get(key, 0) + mine.get(key, 0) for key in asked}, asked))
    return total


def _own_reservations() -> dict[str, dict[str, float]]:
    """By node, what the placement groups hold that this actor has made."""
    me = ray.get_runtime_context().get_actor_id()
    held: dict[str, dict[str, float]] = {}
    for content in state._connect_and_get_accessor().get_placement_group_table():
        found = PlacementGroupTableData.FromString(content)
        if found.state == PlacementGroupTableData.REMOVED or ray.ActorID(found.creator_actor_id).hex() != me:
            continue
        for bundle in found.bundles:
            there = held.setdefault(bundle.node_id.hex(), {})
            for key, amount in bundle.unit_resources.items():
                there[key] = there.get(key, 0) + amount
    return held


def _reachable(node: Mapping[str, Any]) -> bool:
    """Whether a node's raylet accepts a connection."""
    try:
        address = node["NodeManagerAddress"], node["NodeManagerPort"]
        socket.create_connection(address, timeout=REACH_SECONDS).close()
    except OSError:
        return False
    return True
