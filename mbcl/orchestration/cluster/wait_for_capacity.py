"""Whether a joined cluster has room for what waits: others may use it, nodes may be lost for good, and some may boot.

Ray itself waits for ever, and says nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence

import ray
from ray._private.state import state  # noqa: TID251

from mbcl.errors import MbclError
from mbcl.orchestration.cluster import autoscaler
from mbcl.orchestration.cluster.capacity import milli

NO_CAPACITY_SECONDS = 600.0
"""How long a task waits on a cluster that has no room for it, not even if nothing else ran there."""
POLL_SECONDS = 10.0


class NoCapacityError(MbclError):
    """The cluster has lost what a task needs, and nothing takes its place."""


def num_fitting(there: Mapping[str, float], asked: Mapping[str, float]) -> float:
    """How many processes fit into a node's resources; infinity for those that ask for nothing."""
    counts = [milli(there.get(key, 0)) // milli(amount) for key, amount in asked.items() if amount > 0]
    return min(counts, default=math.inf)


def can_ever_fit(asked: Mapping[str, float], count: int = 1) -> bool:
    """Whether so many processes may find room some time, whatever uses the cluster now.

    Args:
        asked: what each needs, by resource.
        count: how many there are.
    """
    leaving = state.get_draining_nodes()
    there = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    return (
        _fit(there, asked, count)
        or _fit(autoscaler.max_nodes() or (), asked, count)
        or autoscaler.num_booting_nodes() > 0
    )


def _fit(nodes: Iterable[Mapping[str, float]], asked: Mapping[str, float], count: int) -> bool:
    return sum(num_fitting(node, asked) for node in nodes) >= count


def wait_any(tasks: Sequence[ray.ObjectRef], asked: Mapping[str, float]) -> ray.ObjectRef:
    """Wait for one of some tasks, as long as the cluster has room for them or may get it.

    Args:
        tasks: which reserve the same.
        asked: what each reserves, by resource.

    Raises:
        NoCapacityError: if there has been none for ten minutes; the tasks are cancelled.
    """
    lacking: float | None = None
    while True:
        done, _ = ray.wait(list(tasks), num_returns=1, timeout=POLL_SECONDS)
        if done:
            return done[0]
        if can_ever_fit(asked):
            lacking = None
            continue
        lacking = lacking or time.monotonic()
        if time.monotonic() - lacking > NO_CAPACITY_SECONDS:
            for task in tasks:
                ray.cancel(task, force=True)
            words = ", ".join(f"{amount:g} {key}" for key, amount in asked.items())
            raise NoCapacityError(
                f"no node of the cluster could run it within {NO_CAPACITY_SECONDS:g} s; it takes {words}"
            )
