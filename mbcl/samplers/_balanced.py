"""Balanced k-means: clusters of exactly equal size, of many pools at once, on any device.

Letters: P pools, M rows of a pool, D dimensions, K clusters, C capacity: rows of a cluster, M = K * C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.samplers.loops import available
from mbcl.seeding import numpy_generator

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


def distances(x_PMD: Tensor, centre_PKD: Tensor) -> Tensor:
    """(P, M, K) squared Euclidean distances less the rows' own squared lengths, which do not matter to a choice."""
    squared_PK = centre_PKD.square().sum(dim=2)
    return torch.baddbmm(squared_PK[:, None, :], x_PMD, centre_PKD.mT, alpha=-2)


def plus_plus(x_PMD: Tensor, num_clusters: int, seeds: Sequence[int]) -> Tensor:
    """(P, K, D) rows drawn one after the other with a probability that grows with the distance to those before.

    The greedy kind: of 2 + ln K drawn each time, the one that leaves the least sum of squared distances. Without it,
    spectral plans lose 2 to 8 % of their loss.

    Reference:
        Arthur and Vassilvitskii, k-means++, SODA 2007; the greedy kind is that of its implementation and scikit-learn.
    """
    num_pools, num_rows, _ = x_PMD.shape
    trials = 2 + int(math.log(num_clusters))
    drawn = np.stack([numpy_generator(seed, "k-means++").random((num_clusters, trials)) for seed in seeds])
    draw_KPT = torch.from_numpy(drawn).to(x_PMD).transpose(0, 1)
    pools = torch.arange(num_pools, device=x_PMD.device)
    squared_PM = x_PMD.square().sum(dim=2)
    chosen_PK = torch.empty(num_pools, num_clusters, dtype=torch.int64, device=x_PMD.device)
    tried_PT = (draw_KPT[0, :, :1] * num_rows).long().clamp_(max=num_rows - 1)
    nearest_PM1 = torch.full_like(squared_PM[:, :, None], torch.inf)
    for number in range(num_clusters):
        if number:
            total_PM = nearest_PM1[:, :, 0].cumsum(dim=1)
            tried_PT = torch.searchsorted(total_PM, draw_KPT[number] * total_PM[:, -1:], right=True)
            tried_PT.clamp_(max=num_rows - 1)
        product_PMT = torch.bmm(x_PMD, x_PMD[pools[:, None], tried_PT].mT)
        distance_PMT = product_PMT.mul_(-2).add_(squared_PM[:, :, None])
        distance_PMT += squared_PM.gather(1, tried_PT)[:, None, :]
        distance_PMT = torch.minimum(distance_PMT.clamp_(min=0), nearest_PM1)
        best_P = distance_PMT.sum(dim=1).argmin(dim=1)
        chosen_PK[:, number] = tried_PT[pools, best_P]
        nearest_PM1 = distance_PMT[pools, :, best_P][:, :, None]
    return x_PMD[pools[:, None], chosen_PK]


def lloyd(x_PMD: Tensor, centre_PKD: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """At most so many Lloyd steps, fewer when nothing changes.

    Returns:
        (P, K, D) centres; (P,) inertia less the rows' own squared lengths, of the centres before the last step; (P, M)
        the clusters of the last step.
    """
    before_PM = None
    for _ in range(steps):
        cost_PM, cluster_PM = distances(x_PMD, centre_PKD).min(dim=2)
        if before_PM is not None and torch.equal(cluster_PM, before_PM):
            break
        before_PM = cluster_PM
        centre_PKD = recentred(x_PMD, cluster_PM, centre_PKD)
    return centre_PKD, cost_PM.sum(dim=1), cluster_PM


def recentred(x_PMD: Tensor, cluster_PM: Tensor, before_PKD: Tensor) -> Tensor:
    """(P, K, D) means of the clusters; an empty cluster keeps its centre."""
    member_PMK = torch.zeros(*cluster_PM.shape, before_PKD.shape[1], dtype=x_PMD.dtype, device=x_PMD.device)
    member_PMK.scatter_(2, cluster_PM[:, :, None], 1)
    count_PK1 = member_PMK.sum(dim=1)[:, :, None]
    # A product, not index_add: its sums have a fixed order on a GPU, too.
    sum_PKD = torch.bmm(member_PMK.mT, x_PMD)
    return torch.where(count_PK1 > 0, sum_PKD / count_PK1.clamp(min=1), before_PKD)


def greedy_by_regret(cost_PMK: Tensor, capacity: int) -> Tensor:
    """Every row its cheapest cluster with room, in order of regret: second cheapest less cheapest, largest first.

    Args:
        cost_PMK: (P, M, K) float, K at least 2.
        capacity: rows of a cluster, M = K * capacity.

    Returns:
        (P, M) int64.
    """
    if cost_PMK.device.type == "cpu" and available():
        from mbcl.samplers.loops.assignment import fill_in_order, regrets

        found = []
        for cost_MK in cost_PMK.numpy():
            order_M = np.argsort(-regrets(cost_MK), kind="stable")
            found.append(fill_in_order(cost_MK, order_M, capacity))
        return torch.from_numpy(np.stack(found))
    cheapest_PM2 = cost_PMK.topk(2, dim=2, largest=False).values
    regret_PM = cheapest_PM2[:, :, 1] - cheapest_PM2[:, :, 0]
    return fill_together(cost_PMK, regret_PM.argsort(dim=1, descending=True, stable=True), capacity)


def fill_together(cost_PMK: Tensor, order_PM: Tensor, capacity: int) -> Tensor:
    """What :func:`mbcl.samplers.loops.assignment.fill_in_order` gives, by deferred acceptance: all rows ask at once.

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
