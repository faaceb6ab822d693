"""Assignments of rows to clusters of bounded size.

Letters: M rows, K clusters, C capacity.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mbcl.samplers.kernels.compiler import compiled


@compiled
def regrets(cost_MK: NDArray[np.floating]) -> NDArray[np.floating]:
    """(M,) the second smallest entry of each row less the smallest."""
    regret_M = np.empty(len(cost_MK), dtype=cost_MK.dtype)
    for row in range(len(cost_MK)):
        first, second = np.inf, np.inf
        for cost in cost_MK[row]:
            if cost < first:
                first, second = cost, first
            elif cost < second:
                second = cost
        regret_M[row] = second - first
    return regret_M


@compiled
def fill_in_order(cost_MK: NDArray[np.floating], order_M: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """(M,) the cluster of each row: rows take their cheapest cluster with room, one after the other in ``order_M``."""
    num_rows, num_clusters = cost_MK.shape
    room_K = np.full(num_clusters, capacity)
    cluster_M = np.empty(num_rows, dtype=np.int64)
    for row in order_M:
        best = -1
        for cluster in range(num_clusters):
            if room_K[cluster] > 0 and (best < 0 or cost_MK[row, cluster] < cost_MK[row, best]):
                best = cluster
        cluster_M[row] = best
        room_K[best] -= 1
    return cluster_M
