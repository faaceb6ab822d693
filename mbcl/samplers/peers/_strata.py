"""``strata``: stratified batches, each from one of a few clusters.

Letters: M samples of a pool, D dimensions, B samples a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from mbcl.functional import check_count
from mbcl.samplers._base import SAMPLERS, FloatArray, Ints, PoolPlan
from mbcl.samplers._lloyd import lloyd, plus_plus
from mbcl.samplers._sized_pools import SortedPools, pair_rows
from mbcl.seeding import derive, numpy_generator

LLOYD = 25


@SAMPLERS.register("strata")
@dataclass(frozen=True, kw_only=True)
class Strata(SortedPools):
    """Stratified batches: k-means finds a few strata, and every batch is random within one of them.

    Strata may have any size. Their remainders, after whole batches are cut, are pooled and make the last batches.
    Samples are compared by the sum of their views' normalised embeddings.

    Formula:
        With k clusters of x_i, the sums of the normalised views, a batch is B random samples of one cluster.

    Cost:
        One forward pass a plan. N·k·D products a Lloyd step, 25 steps at most: as cheap as ``kmeans``.

    When to use:
        Where data consist of a few topics that are not known. Batches are mildly hard: half the loss of ``spectral`` on
        the same pools (docs/benchmarks.md). Where sources are known, ``plan(together=ids)`` says so.

    Args:
        batch_size: B, global.
        pool: samples of a random pool; None for the whole data set as one, as published.
        k: number of strata; at most the samples of a pool are used.
        mix, skip: as for all samplers with embeddings.

    Reference:
        Merrick, Embedding And Clustering Your Data Can Improve Contrastive Pretraining, arXiv 2407.18887.

    Example:
        >>> Strata(batch_size=32).k
        10
    """

    name: ClassVar[str] = "strata"
    compares_sides: ClassVar[bool] = False

    k: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("k", self.k)

    def check(self, num_samples: int) -> None:
        super().check(num_samples)
        largest = max(self.pool_sizes(num_samples))
        if self.k > largest:
            self._warn(
                f"k {self.k} is above the {largest} samples of a pool, so every sample is a stratum and batches are "
                "random"
            )

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        """Plan one pool; batches are in the order of the strata, those of the remainders last."""
        stratum_M = strata(pair_rows(z1_MD, z2_MD), min(self.k, len(z1_MD)), derive(seed, "strata/k-means"))
        return PoolPlan(stratified(stratum_M, self.batch_size, numpy_generator(seed, "strata/batches")))


def strata(x_MD: NDArray[np.floating], k: int, seed: int) -> Ints:
    """(M,) int64, the cluster of each row by k-means without restarts."""
    x_PMD = torch.from_numpy(x_MD)[None]
    _, _, cluster_PM = lloyd(x_PMD, plus_plus(x_PMD, k, [seed]), LLOYD)
    return cluster_PM[0].numpy()


def stratified(stratum_M: Ints, batch_size: int, rng: np.random.Generator) -> Ints:
    """Cut random batches within strata, then random batches of the pooled remainders.

    Args:
        stratum_M: (M,) int64, the stratum of each row; M is a multiple of ``batch_size``.
        batch_size: B.
        rng: draws the permutations.

    Returns:
        (M // B, B) int64 row numbers.
    """
    whole, remainders = [], []
    for stratum in np.unique(stratum_M):
        members = rng.permutation(np.flatnonzero(stratum_M == stratum))
        end = len(members) // batch_size * batch_size
        whole.append(members[:end])
        remainders.append(members[end:])
    return np.concatenate([*whole, rng.permutation(np.concatenate(remainders))]).reshape(-1, batch_size)
