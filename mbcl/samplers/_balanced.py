"""Balanced k-means: clusters of exactly equal size, of many pools at once, on any device.

Letters: P pools, M rows of a pool, D dimensions, K clusters, C capacity: rows of a cluster, M = K * C.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.samplers._lloyd import distances, lloyd, plus_plus, recentred
from mbcl.samplers.kernels import available

LLOYD = 5
ROUNDS = 4


def balanced_kmeans(x_PMD: Tensor, num_clusters: int, seeds: Sequence[int]) -> Tensor:
    """Cut every pool into clusters of equal size with small squared distances to their centres.

    k-means++ seeding, some Lloyd steps without a bound on sizes, then rounds of {assign with a bound, recentre}. The
    assignment is greedy: rows choose their nearest centre with room, in order of regret, the distance to the second
    nearest centre less that to the nearest, largest first.

    Args:
        x_PMD: (P, M, D) float32 or float64, on any device.
        num_clusters: K, must divide M.
        seeds: one per pool, for the seeding.

    Returns:
        (P, M) int64 on the same device, the cluster of each row, each exactly M / K times.
    """
    num_pools, num_rows, _ = x_PMD.shape
    capacity = num_rows // num_clusters
    assert capacity * num_clusters == num_rows, f"{num_clusters} clusters do not divide {num_rows} rows"
    if num_clusters == 1:
        return torch.zeros(num_pools, num_rows, dtype=torch.int64, device=x_PMD.device)
    centre_PKD = plus_plus(x_PMD, num_clusters, seeds)
    centre_PKD, _, _ = lloyd(x_PMD, centre_PKD, LLOYD)
    for number in range(ROUNDS):
        cluster_PM = greedy_by_regret(distances(x_PMD, centre_PKD), capacity)
        if number < ROUNDS - 1:
            centre_PKD = recentred(x_PMD, cluster_PM, centre_PKD)
    return cluster_PM


def greedy_by_regret(cost_PMK: Tensor, capacity: int) -> Tensor:
    """Every row its cheapest cluster with room, in order of regret: second cheapest less cheapest, largest first.

    Args:
        cost_PMK: (P, M, K) float, K at least 2.
        capacity: rows of a cluster, M = K * capacity.

    Returns:
        (P, M) int64.
    """
    if cost_PMK.device.type == "cpu" and available():
        from mbcl.samplers.kernels.assignment import fill_in_order, regrets

        found = []
        for cost_MK in cost_PMK.numpy():
            order_M = np.argsort(-regrets(cost_MK), kind="stable")
            found.append(fill_in_order(cost_MK, order_M, capacity))
        return torch.from_numpy(np.stack(found))
    cheapest_PM2 = cost_PMK.topk(2, dim=2, largest=False).values
    regret_PM = cheapest_PM2[:, :, 1] - cheapest_PM2[:, :, 0]
    return fill_together(cost_PMK, regret_PM.argsort(dim=1, descending=True, stable=True), capacity)


def fill_together(cost_PMK: Tensor, order_PM: Tensor, capacity: int) -> Tensor:
    """What :func:`mbcl.samplers.kernels.assignment.fill_in_order` gives, by deferred acceptance: all rows ask at once.

    Rows ask their cheapest cluster; a cluster keeps the ``capacity`` first in order and turns away all that come
    later, also those that have not asked yet. Since all clusters prefer rows in the same order, the only stable
    matching is the one where each row in turn takes what is left.

    Reference:
        Gale and Shapley, College admissions and the stability of marriage, 1962.
    """
    num_rows, num_clusters = cost_PMK.shape[1:]
    cost_PMK = cost_PMK.clone()
    place_PM = order_PM.argsort(dim=1)
    while True:
        asked_PM = cost_PMK.argmin(dim=2)
        asks_PMK = asked_PM[:, :, None] == torch.arange(num_clusters, device=cost_PMK.device)
        turn_PMK = torch.where(asks_PMK, place_PM[:, :, None], num_rows)
        # The last place that finds room; num_rows where fewer ask than there is room.
        last_PK = turn_PMK.kthvalue(capacity, dim=1).values
        late_PMK = place_PM[:, :, None] > last_PK[:, None, :]
        if not bool((late_PMK & asks_PMK).any()):
            return asked_PM
        cost_PMK.masked_fill_(late_PMK, torch.inf)


def rows_of(cluster_PM: Tensor, batch_size: int) -> Tensor:
    """(P, K, B) int64: the rows of each cluster, ascending."""
    return cluster_PM.argsort(dim=1, stable=True).view(len(cluster_PM), -1, batch_size)


def in_order(rows_KB: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same batches: inside a batch rows ascend, batches are ordered by their first row."""
    rows_KB = np.sort(rows_KB, axis=1)
    return rows_KB[np.argsort(rows_KB[:, 0])].astype(np.int64)
