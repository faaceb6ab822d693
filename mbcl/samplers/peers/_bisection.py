"""``bisection``: recursive halving along the principal direction, down to single batches.

Letters: M samples of a pool, D dimensions, B samples a batch, S batches of the pool, n samples of a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from mbcl.functional import check_count
from mbcl.samplers._base import SAMPLERS, FloatArray, Ints, PoolPlan
from mbcl.samplers._communities import Communities
from mbcl.samplers._direction import principal_direction
from mbcl.samplers._sized_pools import SortedPools, pair_rows
from mbcl.seeding import numpy_generator


@SAMPLERS.register("bisection")
@dataclass(frozen=True, kw_only=True)
class Bisection(Communities, SortedPools):
    """Batches of similar samples at a low cost: recursive halving along the principal direction.

    Samples are compared by the sum of their views' normalised embeddings. A part of S batches is split at the
    projection that leaves S // 2 batches below it. The direction is approximate: a few power steps on some samples.
    A data set of 50,000 is planned in about a second, and the time grows as N log N.

    Formula:
        A part of S batches is sorted by x_i · d, with x_i the sum of the normalised views and d the principal direction
        of the part; S // 2 batches are below the cut.

    Cost:
        One forward pass a plan. N·D products a level, log2(N / B) levels: 50,000 samples in about a second. No N × N
        matrix.

    When to use:
        Where planning has to be cheap at any N. Batches are less hard than those of ``kmeans``: 0.81 of the loss of
        ``spectral`` on the same pools (docs/benchmarks.md).

    Args:
        batch_size: B, global.
        pool: samples of a random pool; None for the whole data set as one.
        power: power steps for a direction.
        sample: samples of a part from which its direction is estimated, at most.
        community, order: batches of several communities of so many neighbours, ``random`` or ``near`` ones; None for
            whole batches of neighbours.
        mix, skip: as for all samplers with embeddings.

    Reference:
        Principal direction divisive partitioning (Boley, Data Mining and Knowledge Discovery 2, 1998), with equal
        sizes.

    Example:
        >>> Bisection(batch_size=32).pool_sizes(3000)
        [2976]
    """

    name: ClassVar[str] = "bisection"
    compares_sides: ClassVar[bool] = False

    power: int = 4
    sample: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("power", self.power)
        check_count("sample", self.sample, least=2)

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        """Plan one pool; batches are in the order of the tree's leaves."""
        rng = numpy_generator(seed, "bisection")
        rows_M = bisected(pair_rows(z1_MD, z2_MD), self.width, self.power, self.sample, rng)
        return PoolPlan(rows_M.reshape(-1, self.width))


def bisected(x_MD: FloatArray, leaf: int, power: int, sample: int, rng: np.random.Generator) -> Ints:
    """Return the row numbers in the order of the tree's leaves, in which every part is consecutive.

    Args:
        x_MD: (M, D) float, M a multiple of ``leaf``; sorted in place into the order that is returned.
        leaf: rows of a leaf.
        power: steps for a direction.
        sample: rows from which a direction is estimated, at most.
        rng: draws samples and starting directions.

    Returns:
        (M,) int64; equal projections stay in order.
    """
    rows_M = np.arange(len(x_MD))
    # The bounds of a part are counted in leaves. A stack instead of recursion: memory is that of one branch.
    parts = [(0, len(x_MD) // leaf)]
    while parts:
        start, stop = parts.pop()
        if stop - start < 2:
            continue
        part = slice(start * leaf, stop * leaf)
        order_n = np.argsort(x_MD[part] @ direction_of(x_MD[part], power, sample, rng), kind="stable")
        # The rows of a part are moved together, so that the next products read contiguous memory.
        x_MD[part] = x_MD[part][order_n]
        rows_M[part] = rows_M[part][order_n]
        middle = start + (stop - start) // 2
        parts += [(middle, stop), (start, middle)]
    return rows_M


def direction_of(x_nD: FloatArray, power: int, sample: int, rng: np.random.Generator) -> FloatArray:
    """(D,) the principal direction of at most ``sample`` rows drawn at random, from a random start."""
    if len(x_nD) > sample:
        x_nD = x_nD[rng.choice(len(x_nD), sample, replace=False)]
    start_D = torch.from_numpy(rng.standard_normal(x_nD.shape[1]))
    return principal_direction(torch.from_numpy(x_nD), start_D, power).numpy()
