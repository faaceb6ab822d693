"""Whether a joined cluster can ever run what waits: others may use it, nodes may be lost for good or boot.

Ray itself waits without limit and without a message.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import ray

from mbcl.errors import MbclError
from mbcl.orchestration.cluster import autoscaler
from mbcl.orchestration.cluster.capacity import milli
from mbcl.orchestration.cluster.ray_internals import autoscaler_status, draining_nodes

T = TypeVar("T")

NO_CAPACITY_SECONDS = 600.0
"""How long a task waits on a cluster that could not run it even if it were idle."""
POLL_SECONDS = 10.0


class NoCapacityError(MbclError):
    """The cluster has lost what a task needs, and nothing takes its place."""


def num_fitting(available: Mapping[str, float], requested: Mapping[str, float]) -> float:
    """How many processes fit into a node's available resources; infinity for those that request none."""
    counts = [milli(available.get(key, 0)) // milli(amount) for key, amount in requested.items() if amount > 0]
    return min(counts, default=math.inf)


def can_ever_fit(requested: Mapping[str, float], count: int = 1) -> bool:
    """Whether the idle cluster could hold so many processes: as it is, as it can grow, or as it boots just now.

    Args:
        requested: what each process needs, by resource.
        count: of processes.
    """
    draining = draining_nodes()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]
    if _fit(nodes, requested, count) or _fit(autoscaler.max_nodes() or (), requested, count):
        return True
    return autoscaler_status().num_booting > 0


def _fit(nodes: Iterable[Mapping[str, float]], requested: Mapping[str, float], count: int) -> bool:
    return sum(num_fitting(node, requested) for node in nodes) >= count


def wait_any(tasks: Sequence[ray.ObjectRef[T]], requested: Mapping[str, float]) -> ray.ObjectRef[T]:
    """Wait until one of the tasks is done, as long as the cluster can ever run them.

    Args:
        tasks: with the same resources.
        requested: these resources.

    Raises:
        NoCapacityError: if the cluster could not run them for ten minutes; they are cancelled.
    """
    since: float | None = None
    while True:
        done, _ = ray.wait(list(tasks), num_returns=1, timeout=POLL_SECONDS)
        if done:
            return done[0]
        if can_ever_fit(requested):
            since = None
            continue
        since = since or time.monotonic()
        if time.monotonic() - since > NO_CAPACITY_SECONDS:
            for task in tasks:
                ray.cancel(task, force=True)
            amounts = ", ".join(f"{amount:g} {key}" for key, amount in requested.items())
            raise NoCapacityError(
                f"no node of the cluster could run it within {NO_CAPACITY_SECONDS:g} s; it takes {amounts}"
            )
