"""Steps of k-means whose products of matrices were formed before.

Letters: M rows, D dimensions, K clusters, T rows tried.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mbcl.samplers.kernels.compiler import compiled


@compiled
def take_best(
    product_TM: NDArray[np.floating],
    squared_M: NDArray[np.floating],
    tried_T: NDArray[np.int64],
    nearest_M: NDArray[np.floating],
) -> int:
    """The tried row that leaves the least sum of squared distances; ``nearest_M`` becomes what it leaves.

    Args:
        product_TM: (T, M) products of the tried rows with all.
        squared_M: (M,) squared lengths.
        tried_T: (T,) row numbers.
        nearest_M: (M,) squared distances to the nearest row taken before, infinite if there is none.
    """
    num_tried, num_rows = product_TM.shape
    zero = squared_M.dtype.type(0)
    two = squared_M.dtype.type(2)
    best, least = 0, np.inf
    for place in range(num_tried):
        own = squared_M[tried_T[place]]
        total = 0.0
        for row in range(num_rows):
            distance = squared_M[row] - two * product_TM[place, row] + own
            total += min(max(distance, zero), nearest_M[row])
        if total < least:
            best, least = place, total
    own = squared_M[tried_T[best]]
    for row in range(num_rows):
        distance = squared_M[row] - two * product_TM[best, row] + own
        nearest_M[row] = min(max(distance, zero), nearest_M[row])
    taken: int = tried_T[best]
    return taken


@compiled
def draw_rows(nearest_M: NDArray[np.floating], draw_T: NDArray[np.float64]) -> NDArray[np.int64]:
    """(T,) rows drawn with a probability in proportion to ``nearest_M``, from numbers in [0, 1)."""
    total_M = np.cumsum(nearest_M.astype(np.float64))
    rows_T: NDArray[np.int64] = np.searchsorted(total_M, draw_T * total_M[-1], side="right")
    return np.minimum(rows_T, len(nearest_M) - 1)


@compiled
def nearest_cluster(cost_MK: NDArray[np.floating]) -> tuple[NDArray[np.int64], float]:
    """(M,) the cheapest cluster of each row, of equal ones the first, and the sum of these costs."""
    cluster_M = np.empty(len(cost_MK), dtype=np.int64)
    total = 0.0
    for row in range(len(cost_MK)):
        best, least = 0, cost_MK[row, 0]
        for cluster in range(1, cost_MK.shape[1]):
            if cost_MK[row, cluster] < least:
                best, least = cluster, cost_MK[row, cluster]
        cluster_M[row] = best
        total += least
    return cluster_M, total


@compiled
def means(
    x_MD: NDArray[np.floating], cluster_M: NDArray[np.int64], before_KD: NDArray[np.floating]
) -> NDArray[np.floating]:
    """(K, D) means of the clusters; an empty cluster keeps its centre."""
    sum_KD = np.zeros_like(before_KD)
    count_K = np.zeros(len(before_KD), dtype=np.int64)
    for row in range(len(x_MD)):
        count_K[cluster_M[row]] += 1
        # Views: with plain indices the loop is not vectorised.
        sum_D, x_D = sum_KD[cluster_M[row]], x_MD[row]
        for column in range(len(x_D)):
            sum_D[column] += x_D[column]
    for cluster in range(len(before_KD)):
        if count_K[cluster] == 0:
            sum_KD[cluster] = before_KD[cluster]
        else:
            sum_KD[cluster] /= before_KD.dtype.type(count_K[cluster])
    return sum_KD
