"""The exact assignment of rows to clusters of bounded size: a transportation problem.

Letters: M rows, K clusters, C capacity, M = K * C.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mbcl.samplers.kernels.compiler import compiled

Ints = NDArray[np.int64]
FAR = 2**62


@compiled
def transport(cost_MK: Ints, capacity: int) -> Ints:
    """Assign ``capacity`` rows to each cluster at the least total cost.

    Successive shortest paths. At first every row is in its cheapest cluster, which is optimal without the bound on
    sizes. Each step then takes the cheapest chain of moves from a cluster that is too large to one that is too small,
    which makes the first one row smaller and the last one row larger. Every step keeps the assignment optimal for its
    sizes, and there are at most M steps. Costs are integers, so that ties cannot make the algorithm cycle.

    Args:
        cost_MK: (M, K) int64, at least 0, below 2^62 / (2 K).
        capacity: C.

    Returns:
        (M,) int64.

    Reference:
        Ahuja, Magnanti and Orlin, Network Flows, 1993, section 9.7.
    """
    num_rows, num_clusters = cost_MK.shape
    cluster_M = np.empty(num_rows, dtype=np.int64)
    size_K = np.zeros(num_clusters, dtype=np.int64)
    members_KM = np.empty((num_clusters, num_rows), dtype=np.int64)
    for row in range(num_rows):
        best = 0
        for cluster in range(1, num_clusters):
            if cost_MK[row, cluster] < cost_MK[row, best]:
                best = cluster
        cluster_M[row] = best
        members_KM[best, size_K[best]] = row
        size_K[best] += 1
    # The cost of the cheapest move from cluster to cluster, and the row that moves.
    move_KK = np.empty((num_clusters, num_clusters), dtype=np.int64)
    mover_KK = np.empty((num_clusters, num_clusters), dtype=np.int64)
    for source in range(num_clusters):
        _find_moves(source, cost_MK, members_KM, size_K, move_KK, mover_KK)
    for crowded in range(num_clusters):
        while size_K[crowded] > capacity:
            before_K, target = _cheapest_chain(crowded, move_KK, size_K, capacity)
            while target != crowded:
                source = before_K[target]
                _move(mover_KK[source, target], source, target, members_KM, size_K, cluster_M)
                _find_moves(target, cost_MK, members_KM, size_K, move_KK, mover_KK)
                target = source
            _find_moves(crowded, cost_MK, members_KM, size_K, move_KK, mover_KK)
    return cluster_M


@compiled
def _find_moves(source: int, cost_MK: Ints, members_KM: Ints, size_K: Ints, move_KK: Ints, mover_KK: Ints) -> None:
    """Update the cheapest move from one cluster to every other, in ``move_KK`` and ``mover_KK``."""
    move_KK[source] = FAR
    mover_KK[source] = -1
    for place in range(size_K[source]):
        row = members_KM[source, place]
        current_cost = cost_MK[row, source]
        for target in range(len(move_KK)):
            if cost_MK[row, target] - current_cost < move_KK[source, target]:
                move_KK[source, target] = cost_MK[row, target] - current_cost
                mover_KK[source, target] = row


@compiled
def _cheapest_chain(start: int, move_KK: Ints, size_K: Ints, capacity: int) -> tuple[Ints, int]:
    """Find the cheapest chain of moves from a cluster to one with room (Bellman-Ford): predecessors, and its end."""
    num_clusters = len(move_KK)
    cost_K = np.full(num_clusters, FAR)
    before_K = np.full(num_clusters, -1)
    cost_K[start] = 0
    changed = True
    while changed:
        changed = False
        for source in range(num_clusters):
            if cost_K[source] == FAR:
                continue
            for target in range(num_clusters):
                if target != source and move_KK[source, target] < FAR:
                    cost = cost_K[source] + move_KK[source, target]
                    if cost < cost_K[target]:
                        cost_K[target] = cost
                        before_K[target] = source
                        changed = True
    end = -1
    for cluster in range(num_clusters):
        if size_K[cluster] < capacity and cost_K[cluster] < FAR and (end < 0 or cost_K[cluster] < cost_K[end]):
            end = cluster
    return before_K, end


@compiled
def _move(row: int, source: int, target: int, members_KM: Ints, size_K: Ints, cluster_M: Ints) -> None:
    """Move a row from one cluster to another."""
    for place in range(size_K[source]):
        if members_KM[source, place] == row:
            members_KM[source, place] = members_KM[source, size_K[source] - 1]
            break
    size_K[source] -= 1
    members_KM[target, size_K[target]] = row
    size_K[target] += 1
    cluster_M[row] = target
