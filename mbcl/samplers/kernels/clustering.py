"""Steps of k-means on matrix products that the caller has computed.

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
    """Return the tried row that leaves the least sum of squared distances, and update ``nearest_M`` with its distances.

    Args:
        product_TM: (T, M) products of the tried rows with all.
        squared_M: (M,) squared lengths.
        tried_T: (T,) row numbers.
        nearest_M: (M,) squared distances to the nearest row taken before, infinite if there is none; updated in place.
    """
    num_tried, num_rows = product_TM.shape
    zero = squared_M.dtype.type(0)
    two = squared_M.dtype.type(2)
    best, best_total = 0, np.inf
    for place in range(num_tried):
        tried_squared = squared_M[tried_T[place]]
        total = 0.0
        for row in range(num_rows):
            distance = squared_M[row] - two * product_TM[place, row] + tried_squared
            total += min(max(distance, zero), nearest_M[row])
        if total < best_total:
            best, best_total = place, total
    tried_squared = squared_M[tried_T[best]]
    for row in range(num_rows):
        distance = squared_M[row] - two * product_TM[best, row] + tried_squared
        nearest_M[row] = min(max(distance, zero), nearest_M[row])
    best_row: int = tried_T[best]
    return best_row


@compiled
def draw_rows(nearest_M: NDArray[np.floating], draw_T: NDArray[np.float64]) -> NDArray[np.int64]:
    """(T,) rows drawn with probabilities proportional to ``nearest_M``, from T numbers in [0, 1)."""
    total_M = np.cumsum(nearest_M.astype(np.float64))
    rows_T: NDArray[np.int64] = np.searchsorted(total_M, draw_T * total_M[-1], side="right")
    return np.minimum(rows_T, len(nearest_M) - 1)


@compiled
def nearest_cluster(cost_MK: NDArray[np.floating]) -> tuple[NDArray[np.int64], float]:
    """(M,) the cheapest cluster of each row, the first of ties; and the sum of these costs."""
    cluster_M = np.empty(len(cost_MK), dtype=np.int64)
    total = 0.0
    for row in range(len(cost_MK)):
        best, best_cost = 0, cost_MK[row, 0]
        for cluster in range(1, cost_MK.shape[1]):
            if cost_MK[row, cluster] < best_cost:
                best, best_cost = cluster, cost_MK[row, cluster]
        cluster_M[row] = best
        total += best_cost
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
        # Through views of the rows: with indices of two dimensions the compiler does not vectorise the loop.
        sum_D, x_D = sum_KD[cluster_M[row]], x_MD[row]
        for column in range(len(x_D)):
            sum_D[column] += x_D[column]
    for cluster in range(len(before_KD)):
        if count_K[cluster] == 0:
            sum_KD[cluster] = before_KD[cluster]
        else:
            sum_KD[cluster] /= before_KD.dtype.type(count_K[cluster])
    return sum_KD
