"""``metis``: batches of communities of the graph of moderately near neighbours.

Letters: M samples of a pool, D dimensions, B samples a batch, K samples a community, P = M / K communities, W ranks.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mbcl.errors import ConfigError
from mbcl.functional import check_count
from mbcl.samplers._base import SAMPLERS, FloatArray, PoolPlan
from mbcl.samplers._separation import CHUNK_ELEMENTS, ranking
from mbcl.samplers._sized_pools import SortedPools, pair_rows, unit_rows
from mbcl.seeding import derive, numpy_generator

Array = NDArray[np.floating]
Ints = NDArray[np.int64]

PUBLISHED_CLUSTER = 32
PUBLISHED_SKIP = 30


@SAMPLERS.register("metis")
@dataclass(frozen=True, kw_only=True)
class Metis(SortedPools):
    r"""B3: samples that rank each other high, but not highest, by graph partitioning.

    Every sample i ranks the others j by :math:`\hat u_i \cdot \hat v_j`. Two are joined where each stands in the
    other's ranks ``skip`` to ``skip + width``, counted from 0: the first ones are likely false negatives. METIS cuts
    the graph into communities of about ``cluster`` samples. Surplus samples, those least like their community, move
    to the nearest one that is short, until all are equal. A batch is B / cluster random communities.

    As published, ranks that are left out make no edges, and that is all: two such samples share a batch where others
    join them. If ``skip`` is given they are kept apart in the end as with every sampler, those of this ranking; in
    small pools many are, and little of the loss remains. The time grows as N².

    Needs the extra ``mbcl[metis]``.

    Args:
        batch_size: B, global.
        pool: samples of a random pool; None for the whole data set as one, as published.
        skip: ranks that are left out at the top, and kept out of a sample's batch where possible; None, as published,
            for 30 that are left out only.
        width: ranks that are used after them.
        cluster: samples of a community, at least 2; must divide B. None for 32 where that divides B, otherwise for
            the divisor that is nearest in ratio.
        mix: as for all samplers with embeddings.

    Reference:
        Thirukovalluru et al., Breaking the Batch Barrier (B3) of Contrastive Learning via Smart Batch Mining, NeurIPS
        2025, arXiv 2505.11293. Karypis and Kumar, METIS, SIAM Journal on Scientific Computing 20, 1998.

    Example:
        >>> [Metis(batch_size=batch_size).community for batch_size in (16, 48, 64, 74)]
        [16, 24, 32, 37]
    """

    name: ClassVar[str] = "metis"

    skip: int | None = None
    width: int = 100
    cluster: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("width", self.width)
        if self.cluster is None:
            return
        check_count("cluster", self.cluster, least=2)
        if self.batch_size % self.cluster:
            allowed = ", ".join(map(str, _divisors(self.batch_size)))
            raise ConfigError(
                f"cluster must divide the batch_size {self.batch_size}: allowed are {allowed} or null, "
                f"found {self.cluster}"
            )

    @property
    def community(self) -> int:
        """K, the samples of a community."""
        if self.cluster is not None:
            return self.cluster
        return min(_divisors(self.batch_size), key=lambda divisor: abs(math.log(divisor / PUBLISHED_CLUSTER)))

    @property
    def first(self) -> int:
        """The first rank that makes an edge."""
        return PUBLISHED_SKIP if self.skip is None else self.skip

    def check(self, num_samples: int) -> None:
        """As :meth:`Sampler.check`; refuses where METIS is not installed, warns where no ranks are left to use."""
        super().check(num_samples)
        if importlib.util.find_spec("pymetis") is None:
            raise ConfigError("sampler 'metis': pymetis is not installed; pip install 'mbcl[metis]'")
        largest = self.pool_sizes(num_samples)[0]
        if largest > self.batch_size and largest - 1 <= self.first:
            warnings.warn(
                f"sampler 'metis': skip {self.first} leaves no neighbours in pools of {largest} samples, so batches "
                f"are random; allowed here: skip below {largest - 1}",
                stacklevel=3,
            )

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        """Batches of random communities."""
        num_rows = len(z1_MD)
        ranked_MW = ranking(
            torch.from_numpy(unit_rows(z1_MD)), torch.from_numpy(unit_rows(z2_MD)), self.first + self.width
        )
        graph = mutual(ranked_MW[:, self.first :])
        num_parts = num_rows // self.community
        part_M = partition(graph, num_parts, derive(seed, "metis/partition"))
        part_M = evened(part_M, num_parts, pair_rows(z1_MD, z2_MD))
        rows_PK = np.argsort(part_M, kind="stable").reshape(num_parts, self.community)
        order_P = np.arange(num_parts)
        if self.community < self.batch_size:
            order_P = numpy_generator(seed, "metis/batches").permutation(num_parts)
        neighbours_MP = None if self.skip is None else ranked_MW[:, : self.skip]
        return PoolPlan(rows_PK[order_P].reshape(-1, self.batch_size), None, neighbours_MP)


def _divisors(number: int) -> list[int]:
    """The divisors of a number but 1, ascending."""
    return [divisor for divisor in range(2, number + 1) if number % divisor == 0]


def mutual(ranked_MW: NDArray[np.int32]) -> csr_array:
    """(M, M) symmetric pattern of the pairs that hold each other.

    Args:
        ranked_MW: (M, W) int32, who each row holds; W may be 0.
    """
    num_rows, width = ranked_MW.shape
    starts = np.arange(num_rows + 1) * width
    held = csr_array((np.ones(ranked_MW.size, dtype=np.int8), ranked_MW.ravel(), starts), shape=(num_rows, num_rows))
    both = csr_array(held.multiply(held.T))
    both.sort_indices()
    return both


def partition(graph: csr_array, num_parts: int, seed: int) -> Ints:
    """(M,) int64, the part of each vertex by METIS, of nearly equal sizes and with few edges between them."""
    import pymetis  # an optional extra, which check() asks for

    if num_parts == 1:
        return np.zeros(graph.shape[0], dtype=np.int64)
    # As lists of neighbours: how arrays are passed has changed between versions.
    starts, neighbours = graph.indptr.tolist(), graph.indices.tolist()
    adjacency = [neighbours[start:stop] for start, stop in zip(starts[:-1], starts[1:], strict=True)]
    _, part_M = pymetis.part_graph(num_parts, adjacency=adjacency, options=pymetis.Options(seed=seed % 2**31))
    return np.asarray(part_M, dtype=np.int64)


def evened(part_M: Ints, num_parts: int, x_MD: Array) -> Ints:
    """Move surplus rows to parts that are short, until all have the same size.

    A part gives the rows that are least like its mean. Each goes, most like a short part first, to the short part
    with the mean it is most like.

    Args:
        part_M: (M,) int64 in ``range(num_parts)``, which divides M; parts may be empty.
        num_parts: P.
        x_MD: (M, D) float, how rows are compared.

    Returns:
        (M,) int64, each part M / P times.
    """
    capacity = len(part_M) // num_parts
    count_P = np.bincount(part_M, minlength=num_parts)
    member = csr_array((np.ones(len(part_M), x_MD.dtype), part_M, np.arange(len(part_M) + 1)), (len(part_M), num_parts))
    mean_PD = (member.T @ x_MD) / np.maximum(count_P, 1)[:, None].astype(x_MD.dtype)
    likeness_M = np.einsum("md,md->m", x_MD, mean_PD[part_M])
    # By part, and in a part the least alike last: those from the capacity on are surplus.
    order_M = np.lexsort((-likeness_M, part_M))
    place_M = np.arange(len(part_M)) - np.repeat(np.cumsum(count_P) - count_P, count_P)
    surplus = order_M[place_M >= capacity]
    part_M = part_M.copy()
    short = np.flatnonzero(count_P < capacity)
    if len(short) == 0:
        return part_M
    room = capacity - count_P[short]
    best = np.concatenate([(part @ mean_PD[short].T).max(axis=1) for part in _chunks(x_MD[surplus], len(short))])
    surplus = surplus[np.argsort(-best, kind="stable")]
    full = np.zeros(len(short), dtype=x_MD.dtype)
    taken = 0
    for chunk_mD in _chunks(x_MD[surplus], len(short)):
        for likeness in chunk_mD @ mean_PD[short].T:
            place = int((likeness + full).argmax())
            part_M[surplus[taken]] = short[place]
            taken += 1
            room[place] -= 1
            if room[place] == 0:
                full[place] = -np.inf
    return part_M


def _chunks(x_MD: Array, width: int) -> list[Array]:
    """Rows in pieces whose products with ``width`` others fit in memory."""
    return np.array_split(x_MD, max(1, len(x_MD) * width // CHUNK_ELEMENTS))
