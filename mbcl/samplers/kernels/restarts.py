"""The whole of k-means in one call, for few rows: with a dozen rows, the calls take longer than their arithmetic.

Letters: M rows, D dimensions, K clusters, R restarts, T rows tried.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mbcl.samplers.kernels.clustering import draw_rows, means, nearest_cluster, take_best
from mbcl.samplers.kernels.compiler import compiled

Array = NDArray[np.floating]


@compiled
def best_of_restarts(x_MD: Array, draw_RKT: Array, short_run: int, long_run: int) -> Array:
    """(K, D) centres: greedy k-means++ and a short run of Lloyd steps for every restart, a long run for the best.

    Args:
        x_MD: (M, D) float64.
        draw_RKT: (R, K, T) float64, random numbers in [0, 1).
        short_run: Lloyd steps after which restarts are compared.
        long_run: Lloyd steps of the best restart after that, at most.
    """
    num_rows, num_columns = x_MD.shape
    num_restarts, num_clusters, _ = draw_RKT.shape
    squared_M = np.empty(num_rows)
    product_MM = np.empty((num_rows, num_rows))
    for row in range(num_rows):
        for other in range(num_rows):
            product_MM[row, other] = _product(x_MD[row], x_MD[other])
        squared_M[row] = product_MM[row, row]
    best_KD: Array = np.empty((num_clusters, num_columns))
    best_inertia = np.inf
    for restart in range(num_restarts):
        nearest_M = np.full(num_rows, np.inf)
        centre_KD: Array = np.empty((num_clusters, num_columns))
        tried_T = np.empty(1, dtype=np.int64)
        tried_T[0] = min(int(draw_RKT[restart, 0, 0] * num_rows), num_rows - 1)
        for number in range(num_clusters):
            if number:
                tried_T = draw_rows(nearest_M, draw_RKT[restart, number])
            centre_KD[number] = x_MD[take_best(product_MM[tried_T], squared_M, tried_T, nearest_M)]
        centre_KD, inertia = _steps(x_MD, centre_KD, short_run)
        if inertia < best_inertia:
            best_inertia = inertia
            best_KD = centre_KD
    best_KD, _ = _steps(x_MD, best_KD, long_run)
    return best_KD


@compiled
def _product(x_D: Array, y_D: Array) -> float:
    total = 0.0
    for column in range(len(x_D)):
        total += x_D[column] * y_D[column]
    return total


@compiled
def _steps(x_MD: Array, centre_KD: Array, steps: int) -> tuple[Array, float]:
    """Run Lloyd steps until no row changes its cluster; return centres and inertia.

    The inertia is that of the centres before the last step, less the rows' squared lengths.
    """
    num_rows, num_clusters = len(x_MD), len(centre_KD)
    before_M = np.full(num_rows, -1)
    cost_MK = np.empty((num_rows, num_clusters))
    inertia = np.inf
    for _ in range(steps):
        for cluster in range(num_clusters):
            squared = _product(centre_KD[cluster], centre_KD[cluster])
            for row in range(num_rows):
                cost_MK[row, cluster] = squared - 2 * _product(x_MD[row], centre_KD[cluster])
        cluster_M, inertia = nearest_cluster(cost_MK)
        if np.all(cluster_M == before_M):
            break
        before_M = cluster_M
        centre_KD = means(x_MD, cluster_M, centre_KD)
    return centre_KD, inertia
