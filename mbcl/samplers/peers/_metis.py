"""``metis``: batches composed of communities in the graph of moderately near neighbours.

Letters: M samples of a pool, D dimensions, B samples a batch, K samples a community, P = M / K communities, W ranks.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mbcl.errors import ConfigError
from mbcl.functional import check_count
from mbcl.samplers._base import SAMPLERS, FloatArray, Ints, PoolPlan
from mbcl.samplers._normalize import CHUNK_ELEMENTS
from mbcl.samplers._separation import ranking
from mbcl.samplers._sized_pools import SortedPools, pair_rows, unit_rows
from mbcl.seeding import derive, numpy_generator

PUBLISHED_CLUSTER = 32
PUBLISHED_SKIP = 30


@SAMPLERS.register("metis")
@dataclass(frozen=True, kw_only=True)
class Metis(SortedPools):
    r"""B3: graph partitioning puts samples together that rank each other high, but not highest.

    Every sample i ranks the others j by :math:`\hat u_i \cdot \hat v_j`. An edge joins two samples if each is in the
    other's ranks ``skip`` to ``skip + width``, counted from 0: the first ranks are likely false negatives. METIS cuts
    the graph into communities of about ``cluster`` samples. Surplus samples, those least like their community, move
    to the nearest community that is short, until all have the same size. A batch is B / cluster random communities.

    As published, ``skip`` is None: the first ranks make no edges, but a sample and one of its first ranks can still
    share a batch through other samples. If ``skip`` is given, every sample is separated at the end, as with all
    samplers, from the first ``skip`` of its ranking. In small pools these are many, and little of the loss remains. The
    time grows as N².

    Needs the extra ``mbcl[metis]``.

    Cost:
        One forward pass a plan. N²·D products, and a partition of a graph of N·``width`` edges: the slowest of the
        peers.

    When to use:
        To compare with the published method. ``kmeans`` with ``community`` makes batches of the same kind in less time.

    Args:
        batch_size: B, global.
        pool: samples of a random pool; None for the whole data set as one, as published.
        skip: the number of first ranks that make no edges and are kept out of a sample's batch where possible; None,
            as published, for 30 that only make no edges.
        width: the number of next ranks, which make edges.
        cluster: samples of a community, at least 2; must divide B. None for 32 if that divides B, otherwise for
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
        """Raise ConfigError also if ``pymetis`` is not installed."""
        super().check(num_samples)
        if importlib.util.find_spec("pymetis") is None:
            raise ConfigError("sampler 'metis': pymetis is not installed; pip install 'mbcl[metis]'")
        largest = self.pool_sizes(num_samples)[0]
        if largest > self.batch_size and largest - 1 <= self.first:
            self._warn(
                f"skip {self.first} leaves no neighbours in pools of {largest} samples, so batches are random; allowed "
                f"here: skip below {largest - 1}"
            )

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        """Plan one pool; a batch is a random set of communities."""
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
    """Return the divisors of a number except 1, ascending."""
    return [divisor for divisor in range(2, number + 1) if number % divisor == 0]


def mutual(ranked_MW: NDArray[np.int32]) -> csr_array:
    """(M, M) symmetric pattern of the pairs of rows that list each other.

    Args:
        ranked_MW: (M, W) int32, the rows that each row lists; W may be 0.
    """
    num_rows, width = ranked_MW.shape
    starts = np.arange(num_rows + 1) * width
    listed = csr_array((np.ones(ranked_MW.size, dtype=np.int8), ranked_MW.ravel(), starts), shape=(num_rows, num_rows))
    graph = csr_array(listed.multiply(listed.T))
    graph.sort_indices()
    return graph


def partition(graph: csr_array, num_parts: int, seed: int) -> Ints:
    """(M,) int64, the part of each vertex: METIS makes parts of nearly equal size with few edges between them."""
    import pymetis  # an optional extra; check() has refused if it is missing

    if num_parts == 1:
        return np.zeros(graph.shape[0], dtype=np.int64)
    # As lists of neighbours, since pymetis has changed its interface for arrays between versions.
    starts, neighbours = graph.indptr.tolist(), graph.indices.tolist()
    adjacency = [neighbours[start:stop] for start, stop in zip(starts[:-1], starts[1:], strict=True)]
    _, part_M = pymetis.part_graph(num_parts, adjacency=adjacency, options=pymetis.Options(seed=seed % 2**31))
    return np.asarray(part_M, dtype=np.int64)


def evened(part_M: Ints, num_parts: int, x_MD: FloatArray) -> Ints:
    """Move surplus rows to parts that are short, until all have the same size.

    The surplus rows of a part are those least similar to its mean. They move in descending order of their largest
    similarity to the mean of a short part, each to the most similar part that is still short.

    Args:
        part_M: (M,) int64 in ``range(num_parts)``; ``num_parts`` divides M; parts may be empty.
        num_parts: P.
        x_MD: (M, D) float, whose products are the similarities of rows.

    Returns:
        (M,) int64, each part M / P times.
    """
    capacity = len(part_M) // num_parts
    count_P = np.bincount(part_M, minlength=num_parts)
    member = csr_array((np.ones(len(part_M), x_MD.dtype), part_M, np.arange(len(part_M) + 1)), (len(part_M), num_parts))
    mean_PD = (member.T @ x_MD) / np.maximum(count_P, 1)[:, None].astype(x_MD.dtype)
    likeness_M = np.einsum("md,md->m", x_MD, mean_PD[part_M])
    # Sorted by part, and within a part by descending similarity to its mean: rows beyond the capacity are surplus.
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
    num_moved = 0
    for chunk_mD in _chunks(x_MD[surplus], len(short)):
        for likeness in chunk_mD @ mean_PD[short].T:
            place = int((likeness + full).argmax())
            part_M[surplus[num_moved]] = short[place]
            num_moved += 1
            room[place] -= 1
            if room[place] == 0:
                full[place] = -np.inf
    return part_M


def _chunks(x_MD: FloatArray, width: int) -> list[FloatArray]:
    """Split rows into chunks whose products with ``width`` other rows fit in memory."""
    return np.array_split(x_MD, max(1, len(x_MD) * width // CHUNK_ELEMENTS))
