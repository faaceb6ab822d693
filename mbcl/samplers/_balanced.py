"""Balanced k-means: clusters of exactly equal size, of many pools at once, on any device.

Letters: P pools, M rows of a pool, D dimensions, K clusters, C capacity: rows of a cluster, M = K * C.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mbcl.samplers._base import Ints
from mbcl.samplers._lloyd import distances, lloyd, plus_plus, recentred, runs_compiled

LLOYD = 5
ROUNDS = 4


def balanced_kmeans(x_PMD: Tensor, num_clusters: int, seeds: Sequence[int]) -> Tensor:
    """Cut every pool into clusters of equal size with small squared distances to their centres.

    k-means++ seeding, some Lloyd steps without a bound on sizes, then rounds of {assign with a bound, recentre}. The
    assignment is greedy: each row takes its nearest centre that still has room, in descending order of regret. The
    regret of a row is its distance to the second nearest centre less that to the nearest.

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
    for iteration in range(ROUNDS):
        cluster_PM = greedy_by_regret(distances(x_PMD, centre_PKD), capacity)
        if iteration < ROUNDS - 1:
            centre_PKD = recentred(x_PMD, cluster_PM, centre_PKD)
    return cluster_PM


def greedy_by_regret(cost_PMK: Tensor, capacity: int) -> Tensor:
    """Assign each row to its cheapest cluster with room, rows of the largest regret (second cheapest - cheapest) first.

    Args:
        cost_PMK: (P, M, K) float, K at least 2.
        capacity: rows of a cluster, M = K * capacity.

    Returns:
        (P, M) int64.
    """
    if runs_compiled(cost_PMK):
        from mbcl.samplers.kernels.assignment import fill_in_order, regrets

        clusters = []
        for cost_MK in cost_PMK.numpy():
            order_M = np.argsort(-regrets(cost_MK), kind="stable")
            clusters.append(fill_in_order(cost_MK, order_M, capacity))
        return torch.from_numpy(np.stack(clusters))
    cheapest_PM2 = cost_PMK.topk(2, dim=2, largest=False).values
    regret_PM = cheapest_PM2[:, :, 1] - cheapest_PM2[:, :, 0]
    return fill_together(cost_PMK, regret_PM.argsort(dim=1, descending=True, stable=True), capacity)


def fill_together(cost_PMK: Tensor, order_PM: Tensor, capacity: int) -> Tensor:
    """The result of :func:`mbcl.samplers.kernels.assignment.fill_in_order`, by deferred acceptance (Gale and Shapley).

    All rows propose to their cheapest cluster at once. A cluster keeps the ``capacity`` proposers that are first in
    the order and rejects all later rows, also those that have not proposed to it yet. Since all clusters prefer rows
    in the same order, the only stable matching is that of serial choice, each row in turn taking the best cluster left.

    Reference:
        Gale and Shapley, College admissions and the stability of marriage, 1962.
    """
    num_rows, num_clusters = cost_PMK.shape[1:]
    cost_PMK = cost_PMK.clone()
    place_PM = order_PM.argsort(dim=1)
    while True:
        proposal_PM = cost_PMK.argmin(dim=2)
        proposes_PMK = proposal_PM[:, :, None] == torch.arange(num_clusters, device=cost_PMK.device)
        turn_PMK = torch.where(proposes_PMK, place_PM[:, :, None], num_rows)
        # The place of the last row that is kept; num_rows where fewer rows propose than the cluster has room for.
        last_PK = turn_PMK.kthvalue(capacity, dim=1).values
        late_PMK = place_PM[:, :, None] > last_PK[:, None, :]
        if not bool((late_PMK & proposes_PMK).any()):
            return proposal_PM
        cost_PMK.masked_fill_(late_PMK, torch.inf)


def rows_of(cluster_PM: Tensor, batch_size: int) -> Tensor:
    """(P, K, B) int64: the rows of each cluster, ascending."""
    return cluster_PM.argsort(dim=1, stable=True).view(len(cluster_PM), -1, batch_size)


def in_order(rows_KB: Ints) -> Ints:
    """Sort the rows of each batch in ascending order, and the batches by their first row."""
    rows_KB = np.sort(rows_KB, axis=1)
    return rows_KB[np.argsort(rows_KB[:, 0])].astype(np.int64)
