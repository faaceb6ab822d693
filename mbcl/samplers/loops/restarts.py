"""k-means of few rows from start to end: with a dozen rows, calls take longer than their arithmetic.

Letters: M rows, D dimensions, K clusters, R restarts, T rows tried.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mbcl.samplers.loops.clustering import draw_rows, means, nearest_cluster, take_best
from mbcl.samplers.loops.compiler import compiled

Array = NDArray[np.floating]


@compiled
def best_of_restarts(x_MD: Array, draw_RKT: Array, short_run: int, long_run: int) -> Array:
    """(K, D) centres: greedy k-means++ and a short run of Lloyd steps for every restart, a long run for the best.

    Args:
        x_MD: (M, D) float64.
        draw_RKT: (R, K, T) float64, random numbers in [0, 1).
        short_run: Lloyd steps after which restarts are compared.
        long_run: most steps of the best after that.
    """
    num_rows = len(x_MD)
    num_clusters = draw_RKT.shape[1]
    squared_M = np.square(x_MD).sum(axis=1)
    product_MM = x_MD @ x_MD.T
    best_KD = x_MD[:num_clusters].copy()
    least = np.inf
    for draw_KT in draw_RKT:
        nearest_M = np.full(num_rows, np.inf)
        centre_KD: Array = np.empty((num_clusters, x_MD.shape[1]))
        tried_T = np.minimum((draw_KT[0, :1] * num_rows).astype(np.int64), num_rows - 1)
        for number in range(num_clusters):
            if number:
                tried_T = draw_rows(nearest_M, draw_KT[number])
            centre_KD[number] = x_MD[take_best(product_MM[tried_T], squared_M, tried_T, nearest_M)]
        centre_KD, inertia = _steps(x_MD, centre_KD, short_run)
        if inertia < least:
            least = inertia
            best_KD = centre_KD
    best_KD, _ = _steps(x_MD, best_KD, long_run)
    return best_KD


@compiled
def _steps(x_MD: Array, centre_KD: Array, steps: int) -> tuple[Array, float]:
    """Lloyd steps until nothing changes, and the inertia before the last, less the rows' own squared lengths."""
    before_M = np.full(len(x_MD), -1)
    inertia = np.inf
    for _ in range(steps):
        cost_MK = np.square(centre_KD).sum(axis=1) - 2 * (x_MD @ centre_KD.T)
        cluster_M, inertia = nearest_cluster(cost_MK)
        if np.all(cluster_M == before_M):
            break
        before_M = cluster_M
        centre_KD = means(x_MD, cluster_M, centre_KD)
    return centre_KD, inertia
