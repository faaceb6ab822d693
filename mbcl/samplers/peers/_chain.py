"""``chain``: batches cut from a walk between the two sides of the pairs, from neighbour to neighbour.

Letters: M samples of a pool, D dimensions, B samples a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mbcl.functional import check_number
from mbcl.samplers._base import SAMPLERS, FloatArray, Ints, PoolPlan
from mbcl.samplers._sized_pools import SortedPools, unit_rows

TABLE_ROWS = 4096
"""Pools of at most this many samples are walked with a table of all similarities: 64 MiB, twice."""


@SAMPLERS.register("chain")
@dataclass(frozen=True, kw_only=True)
class Chain(SortedPools):
    r"""Batches cut from a walk from side one to a neighbour on side two and back, which visits each sample once.

    From the first side of sample i (an image, say) the walk goes on to the sample j whose second side (its text) is the
    ``quantile`` neighbour: of the samples that were not visited, sorted by :math:`\hat u_i \cdot \hat v_j`, the one at
    this share of them. From the second side of j it goes on to the first side of a sample in the same way, and so on.
    The first sample of a random pool is the start. Every B consecutive samples are a batch.

    Cost:
        One forward pass a plan. M² similarities a pool, about 10 ms for 1,280 samples.

    When to use:
        For pairs of two kinds, such as images and texts: the walk alternates between the sides, so it needs no mean of
        both. ``quantile`` below 1 takes semi-hard neighbours where the nearest are often false negatives.

    Args:
        batch_size: B, global.
        pool: samples of a random pool; None for the whole data set as one, in time that grows as N².
        quantile: in [0, 1]: 1 for the nearest, as in GRIT-VLP; less for semi-hard neighbours, as in SyncMask, which are
            less often false negatives; 0 for the farthest. ``planner.schedule.quantile`` changes it over the epochs.
        mix, skip: as for all samplers with embeddings.

    Reference:
        Byun et al., GRIT-VLP: Grouped Mini-batch Sampling for Efficient Vision and Language Pre-training, ECCV 2022,
        arXiv 2208.04060; Song et al., SyncMask, CVPR 2024, arXiv 2404.01156.

    Example:
        >>> Chain(batch_size=32).pool_sizes(3000)
        [1280, 1280, 416]
    """

    name: ClassVar[str] = "chain"

    pool: int | None = 1280
    quantile: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("quantile", self.quantile, least=0.0, most=1.0)

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        """Plan one pool; batches are in the order of the walk."""
        return PoolPlan(walk(unit_rows(z1_MD), unit_rows(z2_MD), self.quantile).reshape(-1, self.batch_size))


def walk(u_MD: NDArray[np.floating], v_MD: NDArray[np.floating], quantile: float) -> Ints:
    """Return the order in which a walk from row 0 visits all rows.

    Args:
        u_MD: (M, D) float, unit rows of side one.
        v_MD: (M, D), side two.
        quantile: in [0, 1], of the rows not visited, by similarity to the last one's other side.

    Returns:
        (M,) int64, a permutation.

    Example:
        >>> u, v = np.eye(3), np.eye(3)[[0, 2, 1]]
        >>> walk(u, v, 1.0).tolist(), walk(u[[0, 2, 1]], v[[0, 1, 2]], 0.5).tolist()
        ([0, 1, 2], [0, 1, 2])
    """
    num_rows = len(u_MD)
    tables = None
    if num_rows <= TABLE_ROWS:
        table_MM = u_MD @ v_MD.T
        tables = table_MM, np.ascontiguousarray(table_MM.T)
    visited_M = np.zeros(num_rows, dtype=u_MD.dtype)
    order_M = np.zeros(num_rows, dtype=np.int64)
    for place in range(1, num_rows):
        last, side = order_M[place - 1], (place - 1) % 2
        visited_M[last] = -np.inf
        if tables is not None:
            similarity_M = tables[side][last] + visited_M
        else:
            similarity_M = (v_MD @ u_MD[last] if side == 0 else u_MD @ v_MD[last]) + visited_M
        # Those visited come first in ascending order.
        rank = place + round(quantile * (num_rows - place - 1))
        if rank == num_rows - 1:
            order_M[place] = similarity_M.argmax()
        else:
            order_M[place] = similarity_M.argpartition(rank)[rank]
    return order_M
