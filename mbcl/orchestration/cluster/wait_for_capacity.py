"""Waiting for the capacity of a joined cluster, which others may use and whose nodes may be lost or booting.

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
"""How long a task waits on a cluster that could not run it even when idle."""
POLL_SECONDS = 10.0


class NoCapacityError(MbclError):
    """The cluster has lost the resources that a task needs, and they were not replaced."""


def num_fitting(available: Mapping[str, float], requested: Mapping[str, float]) -> float:
    """Return how many processes fit into a node's available resources; infinity if they request none."""
    counts = [milli(available.get(key, 0)) // milli(amount) for key, amount in requested.items() if amount > 0]
    return min(counts, default=math.inf)


def can_ever_fit(requested: Mapping[str, float], count: int = 1) -> bool:
    """Return whether the idle cluster could run ``count`` processes that request these resources each.

    It counts at its present or its maximum size; the answer is yes while nodes boot.
    """
    draining = draining_nodes()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]
    if _fit(nodes, requested, count) or _fit(autoscaler.max_nodes() or (), requested, count):
        return True
    return autoscaler_status().num_booting > 0


def _fit(nodes: Iterable[Mapping[str, float]], requested: Mapping[str, float], count: int) -> bool:
    return sum(num_fitting(node, requested) for node in nodes) >= count


def wait_any(tasks: Sequence[ray.ObjectRef[T]], requested: Mapping[str, float]) -> ray.ObjectRef[T]:
    """Wait for the first of the tasks, which all request the same resources, while the cluster can ever run them.

    Raises:
        NoCapacityError: if even the idle cluster could not run them for ten minutes; they are cancelled.
    """
    unfit_since: float | None = None
    while True:
        done, _ = ray.wait(list(tasks), num_returns=1, timeout=POLL_SECONDS)
        if done:
            return done[0]
        if can_ever_fit(requested):
            unfit_since = None
            continue
        unfit_since = unfit_since or time.monotonic()
        if time.monotonic() - unfit_since > NO_CAPACITY_SECONDS:
            for task in tasks:
                ray.cancel(task, force=True)
            amounts = ", ".join(f"{amount:g} {key}" for key, amount in requested.items())
            raise NoCapacityError(
                f"no node of the cluster could run it within {NO_CAPACITY_SECONDS:g} s; it takes {amounts}"
            )
