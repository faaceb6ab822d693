"""``gcbs``: a bandwidth-reducing order of the graph of the most similar pairs, cut into batches.

Letters: M samples of a pool, D dimensions, B samples a batch, R sampled rows, C sampled columns, m rows of a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from mbcl.errors import ConfigError
from mbcl.functional import check_count, check_number
from mbcl.samplers._base import SAMPLERS, FloatArray, PoolPlan
from mbcl.samplers._sized_pools import SortedPools, unit_rows
from mbcl.seeding import numpy_generator

PUBLISHED_QUANTILE = 0.999
SAMPLE_SIDE = 2048
"""Rows and columns of similarities from which the quantile is estimated; up to this many samples it is exact."""
CHUNK_ELEMENTS = 2**23
MAX_EDGES = 2**27
"""Most edges of a pool's graph, which then takes about 2 GB."""


@SAMPLERS.register("gcbs")
@dataclass(frozen=True, kw_only=True)
class GCBS(SortedPools):
    r"""Global contrastive batch sampling: batches of consecutive vertices in a bandwidth-reducing order of a graph.

    The graph joins samples i and j where :math:`\hat u_i \cdot \hat v_j` or :math:`\hat u_j \cdot \hat v_i` is above a
    quantile of all similarities. Its reverse Cuthill-McKee order brings joined samples near each other, and every B
    consecutive ones are a batch. The time grows as N², the memory with the number of edges.

    The published quantile keeps N/1000 pairs a sample. That is too few in small pools, where most of these pairs are a
    sample with itself; a ``degree`` of 10 to 50 is better there.

    Cost:
        One forward pass a plan. N²·D products; a graph of N·``degree`` edges.

    When to use:
        To compare with the published method, or where neighbourhoods are long chains rather than clusters. Give a
        ``degree`` in pools.

    Args:
        batch_size: B, global.
        pool: samples of a random pool; None for the whole data set as one, as published.
        quantile: share of the similarities that are dropped, in [0, 1); None for the published 0.999.
        degree: instead of ``quantile``, the mean number of similarities kept for a sample: a quantile of 1 - degree/M.
        mix, skip: as for all samplers with embeddings.

    Reference:
        Sachidananda et al., Global Selection of Contrastive Batches via Optimization on Sample Permutations, ICML
        2023, arXiv 2210.12874.

    Example:
        >>> GCBS(batch_size=32, degree=10).quantile_of(1000)
        0.99
    """

    name: ClassVar[str] = "gcbs"

    quantile: float | None = None
    degree: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantile is not None and self.degree is not None:
            raise ConfigError(
                f"quantile and degree say the same: give one, found quantile {self.quantile} and degree {self.degree}"
            )
        if self.quantile is not None:
            check_number("quantile", self.quantile, least=0.0, below=1.0)
        if self.degree is not None:
            check_count("degree", self.degree)

    def quantile_of(self, num_samples: int) -> float:
        """Return the share of similarities that are dropped in a pool of ``num_samples`` samples."""
        if self.degree is not None:
            return 1 - min(self.degree, num_samples) / num_samples
        return PUBLISHED_QUANTILE if self.quantile is None else self.quantile

    def check(self, num_samples: int) -> None:
        """Raise ConfigError also if a graph has more than :data:`MAX_EDGES` edges."""
        largest = self.pool_sizes(num_samples)[0] if num_samples >= self.batch_size else 0
        if (1 - self.quantile_of(max(1, largest))) * largest**2 > MAX_EDGES:
            raise ConfigError(
                f"sampler 'gcbs': quantile {self.quantile_of(largest):g} keeps {1 - self.quantile_of(largest):.2g} of "
                f"{largest}² similarities, above the {MAX_EDGES} that a pool can hold; allowed here: degree up to "
                f"{MAX_EDGES // largest}"
            )
        super().check(num_samples)
        if self.degree is not None and self.degree >= largest:
            self._warn(
                f"degree {self.degree} keeps all similarities of a pool of {largest} samples, so the graph orders "
                "nothing; meant are 10 to 50"
            )

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        """Plan one pool; batches are in the order of the graph."""
        u_MD, v_MD = unit_rows(z1_MD), unit_rows(z2_MD)
        rng = numpy_generator(seed, "gcbs/sample")
        threshold = similarity_quantile(u_MD, v_MD, self.quantile_of(len(u_MD)), rng)
        pairs = most_similar_pairs(u_MD, v_MD, threshold, (1 - self.quantile_of(len(u_MD))) * len(u_MD) ** 2)
        order_M = reverse_cuthill_mckee(csr_array(pairs + pairs.T), symmetric_mode=True)
        return PoolPlan(order_M.astype(np.int64).reshape(-1, self.batch_size))


def similarity_quantile(u_MD: FloatArray, v_MD: FloatArray, quantile: float, rng: np.random.Generator) -> float:
    """Return the quantile of all products of a row of ``u_MD`` and a row of ``v_MD``, estimated in large pools.

    Args:
        u_MD: (M, D) float, rows of length one.
        v_MD: (M, D) float, rows of length one.
        quantile: in [0, 1).
        rng: draws the sample of rows of each side.
    """
    num_rows = len(u_MD)
    if num_rows > SAMPLE_SIDE:
        # Independent draws of rows and columns, so that pairs of a sample with itself are as rare as among all pairs.
        u_MD = u_MD[rng.choice(num_rows, SAMPLE_SIDE, replace=False)]
        v_MD = v_MD[rng.choice(num_rows, SAMPLE_SIDE, replace=False)]
    return float(np.quantile(u_MD @ v_MD.T, quantile))


def most_similar_pairs(u_MD: FloatArray, v_MD: FloatArray, threshold: float, expected: float) -> csr_array:
    """(M, M) pattern of the products of rows above a threshold, about ``expected`` of them.

    The last bits of a product depend on the shape of the matrix product, so products equal to the threshold up to
    rounding are ties. Ties are left out, unless fewer than half of the expected products are above them; then all ties
    are kept. This happens where samples occur several times, since their largest similarities are equal. Where all
    similarities are equal the ties may exceed :data:`MAX_EDGES`; they are left out then.
    """
    rounding = 2 * math.sqrt(u_MD.shape[1]) * float(np.finfo(u_MD.dtype).eps)
    above = similar_pairs(u_MD, v_MD, threshold + rounding)
    if above is not None and above.nnz >= expected / 2:
        return above
    with_ties = similar_pairs(u_MD, v_MD, threshold - rounding)
    pattern = above if with_ties is None else with_ties
    return csr_array((len(u_MD), len(u_MD)), dtype=np.int8) if pattern is None else pattern


def similar_pairs(u_MD: FloatArray, v_MD: FloatArray, threshold: float) -> csr_array | None:
    """(M, M) pattern of the products of rows above a threshold; None if there are more than :data:`MAX_EDGES`."""
    num_rows = len(u_MD)
    rows, columns, count = [], [], 0
    chunk = max(1, CHUNK_ELEMENTS // num_rows)
    for start in range(0, num_rows, chunk):
        above = np.flatnonzero(u_MD[start : start + chunk] @ v_MD.T > threshold)
        count += len(above)
        if count > MAX_EDGES:
            return None
        row, column = np.divmod(above, num_rows)
        rows.append((row + start).astype(np.int32))
        columns.append(column.astype(np.int32))
    row, column = np.concatenate(rows), np.concatenate(columns)
    return csr_array((np.ones(len(row), dtype=np.int8), (row, column)), shape=(num_rows, num_rows))
