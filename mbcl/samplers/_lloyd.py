"""The steps of k-means, batched over pools on any device; on a CPU, compiled loops take pool by pool.

Letters: P pools, M rows of a pool, D dimensions, K clusters, T rows tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.samplers._base import Ints
from mbcl.seeding import numpy_generator


def distances(x_PMD: Tensor, centre_PKD: Tensor) -> Tensor:
    """(P, M, K) squared Euclidean distances less each row's squared length, which changes no comparison of centres."""
    squared_PK = centre_PKD.square().sum(dim=2)
    return torch.baddbmm(squared_PK[:, None, :], x_PMD, centre_PKD.mT, alpha=-2)


def tried_rows(num_clusters: int) -> int:
    """T, the candidate rows that greedy k-means++ tries for each centre: 2 + ln K."""
    return 2 + int(math.log(num_clusters))


def plus_plus(x_PMD: Tensor, num_clusters: int, seeds: Sequence[int]) -> Tensor:
    """(P, K, D) initial centres by greedy k-means++.

    Centres are rows, drawn one after the other with a probability proportional to the squared distance to the nearest
    earlier one. The greedy variant draws T = 2 + ln K candidates each time and takes the one that leaves the least sum
    of squared distances. Without it, spectral plans lose 2 to 8 % of their loss.

    Reference:
        Arthur and Vassilvitskii, k-means++, SODA 2007; the greedy variant is that of their implementation and of
        scikit-learn.
    """
    shape = num_clusters, tried_rows(num_clusters)
    draw_PKT = np.stack([numpy_generator(seed, "k-means++").random(shape) for seed in seeds])
    if runs_compiled(x_PMD):
        pools = zip(x_PMD.numpy(), draw_PKT, strict=True)
        return torch.from_numpy(np.stack([x_MD[_plus_plus_compiled(x_MD, draw_KT)] for x_MD, draw_KT in pools]))
    chosen_PK = _plus_plus_batched(x_PMD, torch.from_numpy(draw_PKT).to(x_PMD.device))
    return torch.take_along_dim(x_PMD, chosen_PK[:, :, None], dim=1)


def lloyd(x_PMD: Tensor, centre_PKD: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Run at most ``steps`` Lloyd steps; stop when no row changes its cluster.

    Returns:
        (P, K, D) centres; (P,) float64 inertia of the centres before the last step, less the rows' squared lengths;
        (P, M) int64, the clusters of the last step.
    """
    if runs_compiled(x_PMD) and len(x_PMD) > 1:
        # Pool by pool, since the matrices of one pool fit the CPU's cache.
        results = [lloyd(*pool, steps) for pool in zip(x_PMD.split(1), centre_PKD.split(1), strict=True)]
        centres, inertias, clusters = (torch.cat(parts) for parts in zip(*results, strict=True))
        return centres, inertias, clusters
    before_PM = None
    for _ in range(steps):
        cluster_PM, inertia_P = _nearest(distances(x_PMD, centre_PKD))
        if before_PM is not None and torch.equal(cluster_PM, before_PM):
            break
        before_PM = cluster_PM
        centre_PKD = recentred(x_PMD, cluster_PM, centre_PKD)
    return centre_PKD, inertia_P, cluster_PM


def recentred(x_PMD: Tensor, cluster_PM: Tensor, before_PKD: Tensor) -> Tensor:
    """(P, K, D) means of the clusters; an empty cluster keeps its centre."""
    if runs_compiled(x_PMD):
        from mbcl.samplers.kernels.clustering import means

        pools = zip(x_PMD.numpy(), cluster_PM.numpy(), before_PKD.numpy(), strict=True)
        return torch.from_numpy(np.stack([means(*pool) for pool in pools]))
    member_PMK = torch.zeros(*cluster_PM.shape, before_PKD.shape[1], dtype=x_PMD.dtype, device=x_PMD.device)
    member_PMK.scatter_(2, cluster_PM[:, :, None], 1)
    count_PK1 = member_PMK.sum(dim=1)[:, :, None]
    # A matrix product, not index_add, whose atomic additions on a GPU have no fixed order.
    sum_PKD = torch.bmm(member_PMK.mT, x_PMD)
    return torch.where(count_PK1 > 0, sum_PKD / count_PK1.clamp(min=1), before_PKD)


def runs_compiled(x_PMD: Tensor) -> bool:
    """Whether compiled loops take the pools one by one; otherwise torch takes all of them at once."""
    return x_PMD.device.type == "cpu"


def _nearest(cost_PMK: Tensor) -> tuple[Tensor, Tensor]:
    """(P, M) int64, each row's cheapest cluster, and (P,) float64, the sum of these costs."""
    if runs_compiled(cost_PMK):
        from mbcl.samplers.kernels.clustering import nearest_cluster

        results = [nearest_cluster(cost_MK) for cost_MK in cost_PMK.numpy()]
        clusters, costs = zip(*results, strict=True)
        return torch.from_numpy(np.stack(clusters)), torch.tensor(costs, dtype=torch.float64)
    cost_PM, cluster_PM = cost_PMK.min(dim=2)
    return cluster_PM, cost_PM.sum(dim=1, dtype=torch.float64)


def _plus_plus_compiled(x_MD: NDArray[np.floating], draw_KT: NDArray[np.float64]) -> Ints:
    """(K,) int64, the rows that :func:`plus_plus` takes as the centres of one pool."""
    from mbcl.samplers.kernels.clustering import draw_rows, take_best

    num_rows, num_clusters = len(x_MD), len(draw_KT)
    # The product (T, D) @ (D, M) takes half the time of (M, D) @ (D, T).
    x_DM = np.ascontiguousarray(x_MD.T)
    squared_M = np.square(x_MD).sum(axis=1)
    nearest_M = np.full(num_rows, np.inf, dtype=x_MD.dtype)
    chosen_K = np.empty(num_clusters, dtype=np.int64)
    tried_T = np.minimum((draw_KT[0, :1] * num_rows).astype(np.int64), num_rows - 1)
    for index in range(num_clusters):
        if index:
            tried_T = draw_rows(nearest_M, draw_KT[index])
        chosen_K[index] = take_best(x_MD[tried_T] @ x_DM, squared_M, tried_T, nearest_M)
    return chosen_K


def _plus_plus_batched(x_PMD: Tensor, draw_PKT: Tensor) -> Tensor:
    """(P, K) int64, the rows that :func:`plus_plus` takes as centres, for all pools at once."""
    num_pools, num_rows, _ = x_PMD.shape
    num_clusters = draw_PKT.shape[1]
    pools = torch.arange(num_pools, device=x_PMD.device)
    squared_PM = x_PMD.square().sum(dim=2)
    chosen_PK = torch.empty(num_pools, num_clusters, dtype=torch.int64, device=x_PMD.device)
    tried_PT = (draw_PKT[:, 0, :1] * num_rows).long().clamp_(max=num_rows - 1)
    nearest_PM1 = torch.full_like(squared_PM[:, :, None], torch.inf)
    for index in range(num_clusters):
        if index:
            total_PM = _running_total(nearest_PM1[:, :, 0])
            tried_PT = torch.searchsorted(total_PM, (draw_PKT[:, index] * total_PM[:, -1:]).long(), right=True)
            tried_PT.clamp_(max=num_rows - 1)
        product_PMT = torch.bmm(x_PMD, x_PMD[pools[:, None], tried_PT].mT)
        distance_PMT = product_PMT.mul_(-2).add_(squared_PM[:, :, None])
        distance_PMT += squared_PM.gather(1, tried_PT)[:, None, :]
        distance_PMT = torch.minimum(distance_PMT.clamp_(min=0), nearest_PM1)
        best_P = distance_PMT.sum(dim=1, dtype=torch.float64).argmin(dim=1)
        chosen_PK[:, index] = tried_PT[pools, best_P]
        nearest_PM1 = distance_PMT[pools, :, best_P][:, :, None]
    return chosen_PK


def _running_total(x_PM: Tensor) -> Tensor:
    """(P, M) int64, the cumulative sums of non-negative numbers, in units of 2^-40 of each row's largest.

    Integer sums do not depend on the order of additions, which on a GPU may differ from run to run.
    """
    largest_P1 = x_PM.double().amax(dim=1, keepdim=True)
    steps_PM = (x_PM.double() / torch.where(largest_P1 > 0, largest_P1, 1) * 2**40).round().long()
    return steps_PM.cumsum(dim=1)
