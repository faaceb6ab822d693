"""The number of workers with which a trial with a range of workers starts: as many as fit now or are booting.

Ray Train asks the policy before it starts a worker group: at the beginning, and again after the loss of a worker. A
running group keeps its size.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.train import ScalingConfig

from mbcl.orchestration.cluster.connection import BOOT_SECONDS, FIRST_REQUEST_SECONDS
from mbcl.orchestration.cluster.ray_internals import (
    ScalingPolicy,
    autoscaler_status,
    draining_nodes,
    free_resources_by_node,
    placement_groups,
)
from mbcl.orchestration.cluster.wait_for_capacity import num_fitting

SETTLE_SECONDS = 5.0
"""How long to wait for the largest size: Ray reports released resources with a delay."""
POLL_SECONDS = 0.5
CONNECT_SECONDS = 2.0
"""Timeout of a connection to a node. Ray itself detects a lost node after half a minute."""


class LargestDivisorScalingPolicy(ScalingPolicy):
    """Chooses the largest allowed worker group that fits on the cluster.

    Args:
        scaling_config: Ray Train's, with the largest size.
        sizes: numbers of workers that divide the trial's batch evenly.
    """

    def __init__(self, scaling_config: ScalingConfig, sizes: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self._sizes = sorted(sizes)
        self._since: float | None = None

    def choose_size(self, resources_per_worker: Mapping[str, float]) -> int | None:
        """Return the largest size that fits, or the smallest, which Ray then waits for; None while more may fit."""
        if self._since is None:  # at the beginning, or after a loss
            self._since = time.monotonic()
            self.request_nodes_for(self._sizes[-1])
        num_free = num_free_slots(resources_per_worker)
        size = max((size for size in self._sizes if size <= num_free), default=self._sizes[0])
        if size < self._sizes[-1] and _may_grow(time.monotonic() - self._since):
            time.sleep(POLL_SECONDS)
            return None
        self._since = None
        self.request_nodes_for(size)
        return size


def _may_grow(waited: float) -> bool:
    """Return whether the capacity may still grow for a trial that has waited ``waited`` seconds."""
    if waited <= SETTLE_SECONDS:
        return True
    if waited > BOOT_SECONDS:
        return False
    status = autoscaler_status()
    return status.present and (waited <= FIRST_REQUEST_SECONDS or status.num_booting > 0)


def num_free_slots(resources_per_worker: Mapping[str, float]) -> int:
    """Return how many workers fit on the cluster now, without nodes that are draining or unreachable.

    The reservations of the calling actor count as free: it releases them before it reserves again.
    """
    draining = draining_nodes()
    free = free_resources_by_node()
    own = _own_reservations()
    total = 0
    for node in ray.nodes():
        node_id = node["NodeID"]
        if not node["Alive"] or node_id in draining or not _reachable(node):
            continue
        node_free, node_own = free.get(node_id, {}), own.get(node_id, {})
        available = {key: node_free.get(key, 0) + node_own.get(key, 0) for key in resources_per_worker}
        total += int(num_fitting(available, resources_per_worker))
    return total


def _own_reservations() -> dict[str, dict[str, float]]:
    """Return by node the resources in placement groups that this actor has created."""
    own_id = ray.get_runtime_context().get_actor_id()
    total: dict[str, dict[str, float]] = {}
    for group in placement_groups():
        if group.creator_actor_id == own_id:
            for node_id, resources in group.reserved.items():
                node = total.setdefault(node_id, {})
                for key, amount in resources.items():
                    node[key] = node.get(key, 0) + amount
    return total


def _reachable(node: Mapping[str, Any]) -> bool:
    """Return whether a node's raylet accepts a connection."""
    try:
        address = node["NodeManagerAddress"], node["NodeManagerPort"]
        socket.create_connection(address, timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
