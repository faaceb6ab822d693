"""``kmeans`` and ``refined``: batches of similar samples by balanced k-means, and harder ones by swaps between them.

Letters: N samples of the data set, P pools, M samples of a pool, D dimensions, B samples a batch, K batches of a pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.errors import ConfigError
from mbcl.functional import check_count, check_temperature
from mbcl.plan import Embeddings
from mbcl.samplers._balanced import balanced_kmeans, in_order, rows_of
from mbcl.samplers._base import SAMPLERS, FloatArray, Ints, PoolPlan
from mbcl.samplers._communities import Communities
from mbcl.samplers._conflicts import Conflicts
from mbcl.samplers._grouping import grouped
from mbcl.samplers._normalize import joined, unit
from mbcl.samplers._separation import nearest, separate
from mbcl.samplers._sized_pools import SizedPools
from mbcl.samplers._swaps import refine
from mbcl.samplers._swaps_batched import refine_batched

MAX_BLOCK = 20_000
"""Samples of a block in which swaps are searched, at most: four matrices of 1.6 GB each."""
MAX_DISTANCES = 2**28
"""Most distances from a block's samples to the centres of its batches: a matrix of 1 GiB, of which several exist."""


@dataclass(frozen=True, kw_only=True)
class BlockSampler(Communities, SizedPools):
    """Base of the samplers that cut a pool into blocks of similar samples and plan each block independently."""

    batched: ClassVar[bool] = True
    takes_groups: ClassVar[bool] = True

    pool: int | None = 1280
    block: int = 1280

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("block", self.block)
        distances = self.block_size**2 // self.width
        if distances > MAX_DISTANCES:
            raise ConfigError(
                f"block {self.block} with batch_size {self.batch_size} needs {distances} distances to cluster centres, "
                f"above {MAX_DISTANCES}; allowed: block up to {math.isqrt(MAX_DISTANCES * self.width)}"
            )

    @property
    def block_size(self) -> int:
        """Samples of a block: whole batches, at least two."""
        return max(2, self.block // self.batch_size) * self.batch_size

    def planned_pools(self, num_samples: int) -> int:
        """The blocks of all pools, each of which is planned independently."""
        return sum(-(-size // self.block_size) for size in self.pool_sizes(num_samples))

    def apart_within(self, num_samples: int) -> int:
        """The samples of a block, at most: the set in which a sample's ``skip`` nearest are found."""
        return min(super().apart_within(num_samples), self.block_size)

    def cut(self, embeddings: Embeddings, pool: Ints, seed: int) -> list[Ints]:
        """Cut a pool into blocks of similar samples, on the embeddings' device."""
        if len(pool) <= self.block_size:
            return [pool]
        return grouped(embeddings, pool, self.block_size, self.batch_size, seed)

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int, group_M: Ints | None = None) -> PoolPlan:
        """Plan one block; inside a batch rows ascend, batches are ordered by their first row."""
        # torch.tensor copies: the arrays may be read-only.
        u_MD, v_MD = (unit(torch.tensor(z)) for z in (z1_MD, z2_MD))
        rows_KB, neighbours = self.plan_block(u_MD, v_MD, seed, group_M)
        return PoolPlan(in_order(rows_KB), None, neighbours)

    def plan_block(
        self, u_MD: Tensor, v_MD: Tensor, seed: int, group_M: Ints | None = None
    ) -> tuple[Ints, NDArray[np.int32] | None]:
        """Return (K, B) row numbers, and (M, skip) neighbours if the batches already separate them, else None."""
        if self.width == 1:
            return np.arange(len(u_MD))[:, None], None
        cluster_M = balanced_kmeans(joined(u_MD, v_MD)[None], len(u_MD) // self.width, [seed])[0]
        return rows_of(cluster_M[None], self.width)[0].numpy(), None

    def plan_batched(self, z1_PMD: Tensor, z2_PMD: Tensor, seeds: Sequence[int]) -> Tensor:
        u_PMD, v_PMD = unit(z1_PMD), unit(z2_PMD)
        if self.width == 1:
            return torch.arange(u_PMD.shape[1], device=u_PMD.device)[:, None].expand(len(u_PMD), -1, -1)
        cluster_PM = balanced_kmeans(joined(u_PMD, v_PMD), u_PMD.shape[1] // self.width, seeds)
        return rows_of(cluster_PM, self.width)


@SAMPLERS.register("kmeans")
@dataclass(frozen=True, kw_only=True)
class KMeans(BlockSampler):
    """Batches of similar samples: balanced k-means of the sum of a sample's two normalised views.

    k-means++, Lloyd steps, then rounds of {greedy assignment with capacity B in order of regret; recentre}. It is about
    a hundred times as fast as the published spectral planner (docs/benchmarks.md), at a similar loss.

    Formula:
        Minimise the sum of the squared distances of x_i, the sum of the normalised views of sample i, to the mean of
        the batch of i, over all partitions into batches of exactly B samples. The larger the pool, the harder.

    Cost:
        One forward pass a plan. About 10 ms a pool of 1,280 on one core, below a second for 50,000 samples as one pool;
        time is near-linear in N (docs/benchmarks.md).

    When to use:
        The first choice for hard batches, and for large data sets. ``pool`` sets how hard they are: begin with four
        batches a pool, and see whether the report prefers more. Keep false negatives apart by ``apart`` or
        ``relative_margin`` where the data have any.

    Args:
        batch_size: B, global.
        pool: samples of a random pool; None for the whole data set as one, which gives the highest losses.
        block: larger pools are first cut into blocks of at most this many similar samples.
        community, order: batches of several communities of so many neighbours, ``random`` or ``near`` ones; None for
            whole batches of neighbours.
        mix, skip: as for all samplers with embeddings; a sample's nearest are searched in its block.

    Reference:
        k-means++: Arthur and Vassilvitskii, SODA 2007; Lloyd, IEEE Transactions on Information Theory 28, 1982. The
        assignment with capacities is of mbcl.

    Example:
        >>> KMeans(batch_size=32).pool_sizes(3000)
        [1280, 1280, 416]
    """

    name: ClassVar[str] = "kmeans"
    compares_sides: ClassVar[bool] = False


@SAMPLERS.register("refined")
@dataclass(frozen=True, kw_only=True)
class Refined(BlockSampler):
    """``kmeans``, then swaps of samples between its batches that raise the mean NT-Xent, for a number of sweeps.

    Every swap's exact change of the loss is computed, so no swap lowers it; see :mod:`mbcl.samplers._swaps`. With
    ``skip``, neighbours are separated first, and no swap increases the number of neighbours that share a batch.

    Formula:
        Up to a constant the mean NT-Xent of a partition is the mean of log s_a over all anchors a, with s_a the sum of
        exp(similarity / temperature) over the batch of a. Two samples of different batches are swapped if that raises
        it.

    Cost:
        One forward pass a plan. About 40 ms a pool of 1,280 on one core, 2 s for 50,000 samples as one pool; four
        tables of block × block similarities (docs/benchmarks.md).

    When to use:
        Where the loss of the batches is to be as high as possible: it is 1.15 times that of ``spectral`` on the same
        pools. The hardest batches are not the best to train on, so choose ``pool`` by the report, and keep false
        negatives apart.

    Args:
        batch_size: B, global.
        pool: samples of a random pool; None for the whole data set as one, which gives the highest losses. The loss of
            the batches grows smoothly with it. The hardest batches are not the best to train on.
        block: larger pools are first cut into blocks of at most this many similar samples, and swaps stay within one.
        sweeps: passes over the samples; in each pass every sample tries to move to a better batch. 0 for no swaps.
        temperature: of the loss; below 1/170, swaps are judged at 1/170.
        community, order: batches of several communities of so many neighbours, ``random`` or ``near`` ones; None for
            whole batches of neighbours.
        mix, skip: as for all samplers with embeddings; a sample's nearest are searched in its block.

    Reference:
        The swaps are of mbcl: Kernighan and Lin's exchanges (Bell System Technical Journal 49, 1970) under this loss.

    Example:
        >>> Refined(batch_size=32, pool=None).pool_sizes(3000)
        [2976]
    """

    name: ClassVar[str] = "refined"

    sweeps: int = 2
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("sweeps", self.sweeps, least=0)
        check_temperature(self.temperature)
        if self.block_size > MAX_BLOCK:
            raise ConfigError(
                f"sampler 'refined': blocks of {self.block_size} samples are above the {MAX_BLOCK} among which swaps "
                f"can be searched; allowed: block up to {MAX_BLOCK}, batch_size up to {MAX_BLOCK // 2}"
            )

    def plan_block(
        self, u_MD: Tensor, v_MD: Tensor, seed: int, group_M: Ints | None = None
    ) -> tuple[Ints, NDArray[np.int32] | None]:
        rows_KB, neighbours = super().plan_block(u_MD, v_MD, seed)
        apart_MM = None
        if self.separates or group_M is not None:
            rows_KB, conflicts = self._parted(u_MD, v_MD, torch.from_numpy(rows_KB), group_M)
            neighbours, apart_MM = conflicts.neighbours_MP, conflicts.dense()
        if len(rows_KB) == 1 or self.sweeps == 0 or self.width == 1:
            return rows_KB, neighbours
        rows_KB = refine(u_MD, v_MD, rows_KB, temperature=self.temperature, sweeps=self.sweeps, apart_MM=apart_MM)
        return rows_KB, neighbours

    def plan_batched(self, z1_PMD: Tensor, z2_PMD: Tensor, seeds: Sequence[int]) -> Tensor:
        rows_PKB = super().plan_batched(z1_PMD, z2_PMD, seeds)
        if rows_PKB.shape[1] == 1 or self.width == 1:
            return rows_PKB
        u_PMD, v_PMD = unit(z1_PMD), unit(z2_PMD)
        apart_PMM = None
        if self.separates:
            parted = [self._parted(*pool) for pool in zip(u_PMD, v_PMD, rows_PKB, strict=True)]
            rows_PKB = torch.stack([torch.from_numpy(rows) for rows, _ in parted]).to(u_PMD.device)
            pairs_PMM = np.stack([conflicts.dense() for _, conflicts in parted])
            apart_PMM = torch.from_numpy(pairs_PMM).to(u_PMD.device)
        return refine_batched(
            u_PMD, v_PMD, rows_PKB, temperature=self.temperature, sweeps=self.sweeps, apart_PMM=apart_PMM
        )

    def _parted(
        self, u_MD: Tensor, v_MD: Tensor, rows_KB: Tensor, group_M: Ints | None = None
    ) -> tuple[Ints, Conflicts]:
        """Part samples that should not share a batch where possible; return the batches and what was to be parted."""
        neighbours_MP = nearest(u_MD, v_MD, self.skip) if self.skip else None
        u_MD, v_MD = u_MD.cpu(), v_MD.cpu()
        conflicts = Conflicts(neighbours_MP, self.margin, u_MD, v_MD, group_M)
        return separate(in_order(rows_KB.cpu().numpy()), conflicts, (u_MD + v_MD).numpy()), conflicts
