"""``spectral``: even-sized spectral clustering puts samples that raise each other's loss into one batch.

Letters: M samples of a pool, D dimensions, B samples a batch, K batches of the pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

from mbcl.errors import ConfigError, pluralize
from mbcl.functional import affinity, check_count, check_temperature
from mbcl.samplers._balanced import in_order, rows_of
from mbcl.samplers._base import SAMPLERS, FloatArray, Ints, PoolPlan
from mbcl.samplers._communities import Communities
from mbcl.samplers._lloyd import lloyd, plus_plus, runs_compiled, tried_rows
from mbcl.samplers._normalize import unit
from mbcl.samplers._pool_items import even_pools
from mbcl.seeding import derive, numpy_generator

Array = NDArray[np.float64]

RESTARTS = (10, 6)
"""Restarts of k-means in groups below :data:`MANY_ROWS`, and in larger ones, where each costs 1.5 ms and matters less.

With these, the mean of 5 seeds is at least 0.99 of the published loss on every golden case; with 3, down to 0.97.
"""
MANY_ROWS = 512
FEW_ROWS = 64
"""Pools of at most this many rows are embedded together and clustered in one compiled call each."""
SHORT_RUN = 6
"""Lloyd steps after which restarts are compared."""
LONG_RUN = 30
LARGEST_EXPONENT = 75.0
"""e^75 times the samples of the largest group is below the largest float32."""
COST_STEPS = 2.0**46
MAX_GROUP = 20_000
"""Most samples of one group: a dense plan of so many takes several matrices of 3 GB each, and cubic time."""


@SAMPLERS.register("spectral", aliases=("sc_even_kb_loose", "sc_even"))
@dataclass(frozen=True, kw_only=True)
class Spectral(Communities):
    """Even-sized spectral clustering of random groups of k·B samples.

    In each group, samples are vertices of a graph whose weights measure how much two of them raise each other's loss in
    a batch (:func:`mbcl.functional.affinity`). The graph is cut into k clusters of B samples: k leading eigenvectors
    of the normalised affinity, k-means, and an exact assignment with capacity B. Every cluster is a batch.

    The last group has the remaining clusters, if there are fewer. The N mod B samples left out are drawn anew each
    epoch.

    Formula:
        log W_ij = f(Z_ij - Z_ii) + f(Z_ji - Z_ii) + f(Z_ji - Z_jj) + f(Z_ij - Z_jj) with f(x) = log(1 + (B - 1) exp x)
        and Z the cosines of view 1 and view 2 over the temperature. Rows of the k leading eigenvectors of D^(-1/2) W
        D^(-1/2), D the row sums, are clustered by k-means; samples are assigned to the centres at the least total
        distance, B to each. The larger k, the harder.

    Cost:
        One forward pass a plan. A group of M = k·B samples takes dense M × M matrices and k eigenvectors: about 0.1 s
        for 1,280 samples on one core (docs/benchmarks.md). Above 20,000 samples a group is refused.

    When to use:
        To reproduce the published method. ``kmeans`` with ``pool`` = k·B has a similar loss in a tenth of the time,
        ``refined`` a higher one in a half of it. High-loss batches hold many samples of one class: keep false negatives
        apart, or choose a small k.

    Args:
        batch_size: B, global.
        k: batches in a group; None for all samples in one group. If k·B is above the number of samples there is one
            group, with a warning.
        temperature: of the affinity.
        community, order: batches of several communities of so many neighbours, ``random`` or ``near`` ones; None for
            whole batches of neighbours. There is one eigenvector for each community of a group.
        mix, skip: as for all samplers with embeddings.

    Reference:
        Cho et al., Mini-Batch Optimization of Contrastive Loss, arXiv 2307.05906, section 5 and algorithm 2.

    Example:
        >>> Spectral(batch_size=32, k=40).pool_sizes(3000)
        [1280, 1280, 416]
    """

    name: ClassVar[str] = "spectral"
    batched: ClassVar[bool] = True

    k: int | None = 40
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k is not None:
            check_count("k", self.k)
        check_temperature(self.temperature)

    def check(self, num_samples: int) -> None:
        """Raise ConfigError also if a group has more than :data:`MAX_GROUP` samples."""
        super().check(num_samples)
        if self.k is not None and self.k * self.batch_size > num_samples:
            self._warn(
                f"k * batch_size = {self.k} * {self.batch_size} is above the {num_samples} samples planned together, "
                f"which become one group of {pluralize(num_samples // self.batch_size, 'batch')}"
            )
        largest = self.pool_sizes(num_samples)[0]
        if largest > MAX_GROUP:
            raise ConfigError(
                f"sampler 'spectral': a group of {largest} samples is above the {MAX_GROUP} that a dense affinity can "
                f"take; k may be at most {MAX_GROUP // self.batch_size} here"
            )

    def pool_sizes(self, num_samples: int) -> list[int]:
        return even_pools(num_samples, self.batch_size, self.k)

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        """Cut one group into batches; inside a batch rows ascend, batches are ordered by their first row."""
        num_batches = len(z1_MD) // self.width
        if num_batches == 1 or self.width == 1:
            return PoolPlan(np.arange(len(z1_MD), dtype=np.int64).reshape(-1, self.width))
        # torch.tensor copies: the arrays may be read-only.
        u_MD, v_MD = (unit(torch.tensor(z)) for z in (z1_MD, z2_MD))
        n_MM, log_degree_M = normalised_affinity(u_MD, v_MD, temperature=self.temperature, batch_size=self.batch_size)
        x_MK = spectral_embedding(n_MM.numpy(), log_degree_M.numpy(), num_batches)
        centre_KK = kmeans_centres(torch.from_numpy(x_MK)[None], num_batches, [seed])[0].numpy()
        cluster_M = assign_evenly(cdist(x_MK, centre_KK), self.width)
        return PoolPlan(in_order(rows_of(torch.from_numpy(cluster_M)[None], self.width)[0].numpy()))

    def plan_batched(self, z1_PMD: Tensor, z2_PMD: Tensor, seeds: Sequence[int]) -> Tensor:
        num_batches = z1_PMD.shape[1] // self.width
        if num_batches == 1 or self.width == 1:
            rows_GK = torch.arange(z1_PMD.shape[1], device=z1_PMD.device).view(-1, self.width)
            return rows_GK.expand(len(z1_PMD), -1, -1)
        u_PMD, v_PMD = unit(z1_PMD), unit(z2_PMD)
        embedded = []
        groups_a_call = len(u_PMD) if u_PMD.shape[1] <= FEW_ROWS else 1
        for u_pMD, v_pMD in zip(u_PMD.split(groups_a_call), v_PMD.split(groups_a_call), strict=True):
            n_pMM, log_degree_pM = normalised_affinity(
                u_pMD, v_pMD, temperature=self.temperature, batch_size=self.batch_size
            )
            _, q_pMK = torch.linalg.eigh(n_pMM)
            embedded.append(_unscaled(q_pMK[..., -num_batches:], log_degree_pM))
        x_PMK = torch.cat(embedded)
        distance_PMK = torch.cdist(x_PMK, kmeans_centres(x_PMK, num_batches, seeds))
        # The exact assignment takes one chain of moves after the other, so it runs on the host: only distances are
        # copied there, not the embeddings.
        clusters = [assign_evenly(distance_MK, self.width) for distance_MK in distance_PMK.double().cpu().numpy()]
        return rows_of(torch.from_numpy(np.stack(clusters)).to(z1_PMD.device), self.width)


def normalised_affinity(u_MD: Tensor, v_MD: Tensor, *, temperature: float, batch_size: int) -> tuple[Tensor, Tensor]:
    r""":math:`D^{-1/2} W D^{-1/2}` with a zero diagonal, and :math:`\log D`, for the affinity W of :func:`affinity`.

    W is a product of four factors of at least 1. Where the product of two factors is representable in float32, W is
    formed as a product, in a quarter of the time. At low temperatures it is formed in the log domain, and each row is
    shifted before any exponential, so that none overflows.

    Args:
        u_MD: (..., M, D) float, rows of length one, view 1. Leading dimensions are separate pools.
        v_MD: (..., M, D), view 2.
        temperature: of the affinity.
        batch_size: B, at least 2.

    Returns:
        (..., M, M) float32, the normalised affinity, entries in [0, 1]; (..., M) float64, the logarithm of D.
    """
    if 4 / temperature + 2 * math.log(batch_size) < LARGEST_EXPONENT:
        return _by_product(u_MD, v_MD, temperature, batch_size)
    if u_MD.ndim > 2:
        pools = zip(u_MD, v_MD, strict=True)
        results = [normalised_affinity(u, v, temperature=temperature, batch_size=batch_size) for u, v in pools]
        n_MM, log_degree_M = (torch.stack(parts) for parts in zip(*results, strict=True))
        return n_MM, log_degree_M
    log_w_MM = affinity(u_MD, v_MD, temperature=temperature, batch_size=batch_size)
    log_w_MM.fill_diagonal_(-math.inf)
    log_degree_M = log_w_MM.logsumexp(dim=1)
    half_M = log_degree_M / 2
    return (log_w_MM - half_M[:, None] - half_M).exp_().float(), log_degree_M


def _by_product(u_MD: Tensor, v_MD: Tensor, temperature: float, batch_size: int) -> tuple[Tensor, Tensor]:
    """:func:`normalised_affinity` where the product h_ij of the two factors with Z_ij is representable in float32.

    Then W_ij = h_ij h_ji. Each row of h is divided by its largest entry, so that W is representable, too.
    """
    e_MM = (u_MD @ v_MD.mT).float().div_(temperature).exp_()
    scale_M = (batch_size - 1) / e_MM.diagonal(dim1=-2, dim2=-1)
    half_MM = (e_MM * scale_M[..., :, None]).add_(1).mul_(e_MM.mul_(scale_M[..., None, :]).add_(1))
    largest_M = half_MM.amax(dim=-1)
    half_MM.div_(largest_M[..., :, None])
    w_MM = torch.mul(half_MM, half_MM.mT, out=e_MM)
    w_MM.diagonal(dim1=-2, dim2=-1).zero_()
    # Row sums of W divided by row i's largest entry of h: the degree is `largest_M` times this.
    sum_M = (w_MM @ largest_M[..., None])[..., 0]
    root_M = (largest_M / sum_M).sqrt_()
    w_MM.mul_(root_M[..., :, None]).mul_(root_M[..., None, :])
    return w_MM, sum_M.double().log() + largest_M.double().log()


def spectral_embedding(n_MM: NDArray[np.float32], log_degree_M: Array, num_clusters: int) -> NDArray[np.float32]:
    r"""Rows of :math:`D^{-1/2} q` for the leading eigenvectors q of the normalised affinity, up to a common factor.

    As published, rows are not normalised and the first, constant, vector is included. LAPACK computes the eigenvectors
    to the precision of float32, in half the time of float64, at the same plan loss. A looser tolerance costs loss,
    because the spectrum is dense.

    Args:
        n_MM: (M, M) float32, symmetric.
        log_degree_M: (M,) float64.
        num_clusters: K, the number of eigenvectors, at most M.

    Returns:
        (M, K) float32, entries at most about 1 in size.
    """
    num_rows = len(n_MM)
    try:
        index_range = (num_rows - num_clusters, num_rows - 1)
        # OpenBLAS takes a fifth less time with the upper triangle. The transpose, the same matrix, is in Fortran order.
        _, q_MK = scipy.linalg.eigh(n_MM.T, lower=False, subset_by_index=index_range, check_finite=False)
    except scipy.linalg.LinAlgError:
        # On some processors LAPACK's driver for a part of the spectrum fails where many rows are equal; "evd", which
        # computes the whole spectrum, does not.
        _, q_MK = scipy.linalg.eigh(n_MM, driver="evd", check_finite=False)
        q_MK = q_MK[:, -num_clusters:]
    return _unscaled(torch.from_numpy(q_MK), torch.from_numpy(log_degree_M)).contiguous().numpy()


def _unscaled(q_MK: Tensor, log_degree_M: Tensor) -> Tensor:
    """Divide the eigenvectors' rows by the square roots of the degrees, scaled so that the largest factor is 1."""
    lowest = log_degree_M.amin(dim=-1, keepdim=True)
    return q_MK * ((lowest - log_degree_M) / 2).exp().to(q_MK.dtype)[..., None]


def kmeans_centres(x_PMK: Tensor, num_clusters: int, seeds: Sequence[int]) -> Tensor:
    """(P, C, K) centres of the best of several restarts of k-means for each pool.

    All restarts take :data:`SHORT_RUN` Lloyd steps. The best then runs to convergence, for :data:`LONG_RUN` more steps
    at most.

    Args:
        x_PMK: (P, M, K) float, on any device.
        num_clusters: C.
        seeds: one per pool.
    """
    num_pools, num_rows, num_columns = x_PMK.shape
    restarts = RESTARTS[num_rows >= MANY_ROWS]
    if num_rows <= FEW_ROWS and runs_compiled(x_PMK):
        return _centres_of_few(x_PMK, num_clusters, seeds, restarts)
    streams = [derive(seed, "restart", restart) for seed in seeds for restart in range(restarts)]
    x_RMK = x_PMK.repeat_interleave(restarts, dim=0)
    centre_RCK, inertia_R, _ = lloyd(x_RMK, plus_plus(x_RMK, num_clusters, streams), SHORT_RUN)
    best_P = inertia_R.view(num_pools, restarts).argmin(dim=1)
    pools = torch.arange(num_pools, device=x_PMK.device)
    best_PCK = centre_RCK.view(num_pools, restarts, num_clusters, num_columns)[pools, best_P]
    return lloyd(x_PMK, best_PCK, LONG_RUN)[0]


def _centres_of_few(x_PMK: Tensor, num_clusters: int, seeds: Sequence[int], restarts: int) -> Tensor:
    """:func:`kmeans_centres` of small pools, in one compiled call each."""
    from mbcl.samplers.kernels.restarts import best_of_restarts

    shape = restarts, num_clusters, tried_rows(num_clusters)
    draws = [numpy_generator(seed, "k-means++ of all restarts").random(shape) for seed in seeds]
    pools = zip(x_PMK.double().numpy(), draws, strict=True)
    centres = [best_of_restarts(np.ascontiguousarray(x_MK), draw, SHORT_RUN, LONG_RUN) for x_MK, draw in pools]
    return torch.from_numpy(np.stack(centres)).to(x_PMK.dtype)


def assign_evenly(cost_MC: Array, capacity: int) -> Ints:
    """Assign ``capacity`` rows to each cluster at the least total cost (exact).

    Args:
        cost_MC: (M, C) float, at least 0 and finite, M = C * capacity; as published, the distance, not squared.
        capacity: rows of each cluster.

    Returns:
        (M,) int64, the cluster of each row.
    """
    from mbcl.samplers.kernels.transport import transport

    # Integer costs, since with floating point the algorithm can cycle among near-ties. 2^46 steps, since distances of
    # neighbouring rows of the spectral embedding differ little: 2^30 lose 2.7 % of the loss on noisy embeddings.
    largest = float(cost_MC.max()) or 1.0
    return np.asarray(transport(np.round(cost_MC * (COST_STEPS / largest)).astype(np.int64), capacity))
