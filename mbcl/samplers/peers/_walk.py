"""``walk``: batches collected by random walks on a graph of near neighbours among random candidates.

Letters: M samples of a pool, D dimensions, B samples a batch, S batches, C candidates, K neighbours, P forbidden ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from mbcl.errors import ConfigError
from mbcl.functional import check_count, check_number
from mbcl.samplers._base import SAMPLERS, FloatArray, Ints, PoolPlan
from mbcl.samplers._separation import nearest
from mbcl.samplers._sized_pools import SortedPools, pair_rows, unit_rows
from mbcl.seeding import numpy_generator

Fits = Callable[[Sequence[int], int], bool]

NOBODY = np.zeros(0, dtype=np.int64)
STEPS_A_PLACE = 6
"""Most steps of a walk for each place of a batch; then the remaining places are filled at random. The limit matters
towards the end of a plan that uses every sample once, when the neighbours of most samples have been used."""


@SAMPLERS.register("walk")
@dataclass(frozen=True, kw_only=True)
class Walk(SortedPools):
    """BatchSampler: every batch is the set of samples that a random walk with restart visits on a proximity graph.

    A sample's neighbours in the graph are the ``neighbours`` most similar of ``candidates`` random samples, drawn anew
    every ``refresh`` batches. Few candidates keep batches moderately hard: they contain few samples of a class, so
    neighbours are only somewhat similar. A walk starts at a random sample. Before each step to a random neighbour it
    returns to the start with probability ``alpha``. It ends when it has visited B different samples. Samples are
    compared by the sum of their views' normalised embeddings.

    Cost:
        One forward pass a plan. ``candidates``·D products for each sample that a walk steps from, once in ``refresh``
        batches.

    When to use:
        For moderately hard batches with few pairs of one class; samples may repeat, so an epoch misses some. ``unique``
        makes a partition of it.

    Args:
        batch_size: B, global.
        pool: samples of a random pool; None for the whole data set as one, as published.
        candidates: random samples among which neighbours are found; all, if a pool has no more.
        neighbours: neighbours of a sample in the graph, at most ``candidates``.
        alpha: probability of a restart before each step in the first epoch.
        alpha_end: the same from epoch ``alpha_epochs`` on; linear between.
        alpha_epochs: epochs over which the probability changes.
        refresh: batches after which candidates are drawn again.
        unique: whether every sample is used exactly once; a batch whose walk visits too few unused samples is then
            filled at random. Otherwise, as published, samples may be in several batches and others in none.
        mix: as for all samplers with embeddings.
        skip, relative_margin, absolute_margin: as for all samplers with embeddings. Repeated samples cannot be
            exchanged; therefore, unless ``unique``, the ``skip`` nearest of a sample are no neighbours in the graph,
            and a walk does not collect a sample that should not share a batch with a collected one.

    Reference:
        Yang et al., BatchSampler: Sampling Mini-Batches for Contrastive Learning in Vision, Language, and Graphs, KDD
        2023, arXiv 2306.03355.

    Example:
        >>> walk = Walk(batch_size=32)
        >>> [round(walk.at_epoch(epoch).alpha, 3) for epoch in (0, 50, 100, 400)]
        [0.2, 0.125, 0.05, 0.05]
    """

    name: ClassVar[str] = "walk"
    compares_sides: ClassVar[bool] = False
    takes_groups: ClassVar[bool] = True

    candidates: int = 1000
    neighbours: int = 100
    alpha: float = 0.2
    alpha_end: float = 0.05
    alpha_epochs: int = 100
    refresh: int = 100
    unique: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("candidates", "neighbours", "alpha_epochs", "refresh"):
            check_count(name, getattr(self, name))
        for name in ("alpha", "alpha_end"):
            check_number(name, getattr(self, name), least=0.0, most=1.0)
        if self.neighbours > self.candidates:
            raise ConfigError(
                f"neighbours must be at most the candidates, found neighbours {self.neighbours} and candidates "
                f"{self.candidates}"
            )
        if not isinstance(self.unique, bool):
            raise ConfigError(f"unique must be true or false, found {self.unique!r}")

    @property
    def no_repeats(self) -> bool:
        return self.unique

    @property
    def covers_all(self) -> bool:
        return self.unique

    def at_epoch(self, epoch: int) -> Walk:
        """Return a copy of the sampler with this epoch's probability of a restart in all epochs."""
        share = min(1.0, epoch / self.alpha_epochs)
        alpha = self.alpha + share * (self.alpha_end - self.alpha)
        return dataclasses.replace(self, alpha=alpha, alpha_end=alpha)

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int, group_M: Ints | None = None) -> PoolPlan:
        """Plan one pool; batches are in the order of the walks, ``alpha`` is the probability of a restart."""
        x_MD, rng = pair_rows(z1_MD, z2_MD), numpy_generator(seed, "walk")
        nearest_MP = None
        if self.skip and not self.unique:
            nearest_MP = nearest(torch.tensor(z1_MD), torch.tensor(z2_MD), self.skip)
        graph = ProximityGraph(x_MD, self.candidates, self.neighbours, rng, nearest_MP)
        # In a plan without repeats, the base class separates neighbours afterwards.
        near = [NOBODY] * len(x_MD) if nearest_MP is None else both_ways(nearest_MP)
        fits = None
        if not self.unique and (self.margin or group_M is not None):
            fits = self._fits(z1_MD, z2_MD, group_M)
        free_M = np.ones(len(x_MD), dtype=np.bool_)
        batches = []
        for batch_number in range(len(x_MD) // self.batch_size):
            if batch_number and batch_number % self.refresh == 0:
                graph.forget()
            batches.append(gather(graph, free_M, near, self.batch_size, self.alpha, rng, fits))
            if self.unique:
                free_M[batches[-1]] = False
        return PoolPlan(np.stack(batches), None, nearest_MP)

    def _fits(self, z1_MD: FloatArray, z2_MD: FloatArray, group_M: Ints | None) -> Fits:
        """Return the function that says whether a row may join others by groups and margins."""
        u_MD, v_MD = (torch.from_numpy(unit_rows(z_MD)) for z_MD in (z1_MD, z2_MD))

        def fits(batch: Sequence[int], row: int) -> bool:
            if group_M is not None and bool((group_M[batch] == group_M[row]).any()):
                return False
            if not self.margin:
                return True
            rows = torch.tensor(batch)
            of_others = self.margin.exceeded(u_MD[rows], v_MD[rows], v_MD[row : row + 1])
            return not bool(of_others.any() | self.margin.exceeded(u_MD[[row]], v_MD[[row]], v_MD[rows]).any())

        return fits

    def _separated(self, planned: PoolPlan, z1_MD: Tensor, z2_MD: Tensor, group_M: Ints | None = None) -> PoolPlan:
        """Part samples only if ``unique``: otherwise the walks have done so already."""
        return super()._separated(planned, z1_MD, z2_MD, group_M) if self.unique else planned


@dataclass(eq=False)
class ProximityGraph:
    """The graph of nearest neighbours among random candidates, built lazily row by row and cached.

    Args:
        x_MD: (M, D) float, whose products are the similarities of rows.
        num_candidates: C, the candidates of a row; at most M - 1 are drawn.
        num_neighbours: K, the most similar of them.
        rng: draws candidates.
        nearest_MP: (M, P) int32, for each row the rows that cannot be its neighbours, or None.
    """

    x_MD: FloatArray
    num_candidates: int
    num_neighbours: int
    rng: np.random.Generator
    nearest_MP: NDArray[np.int32] | None = None
    _cache: dict[int, Ints] = field(default_factory=dict)

    def forget(self) -> None:
        """Clear the cache, so that candidates are drawn again."""
        self._cache.clear()

    def neighbours(self, row: int) -> Ints:
        """(at most K,) int64, the neighbours of a row in any order; the same until :meth:`forget`."""
        if row not in self._cache:
            num_others = len(self.x_MD) - 1
            others = self.rng.choice(num_others, min(self.num_candidates, num_others), replace=False, shuffle=False)
            others += others >= row
            if self.nearest_MP is not None:
                others = others[~np.isin(others, self.nearest_MP[row])]
            self._cache[row] = top(self.x_MD, row, others, self.num_neighbours)
        return self._cache[row]


def top(x_MD: FloatArray, row: int, others: Ints, count: int) -> Ints:
    """Return the ``count`` of ``others`` with the largest products with a row, in any order; all if there are fewer."""
    if len(others) <= count:
        return others
    # ``take`` is a third faster than indexing for many rows.
    return others[np.argpartition(x_MD.take(others, axis=0) @ x_MD[row], -count)[-count:]]


def both_ways(nearest_MP: NDArray[np.int32]) -> list[Ints]:
    """Return for each row the rows that are among its nearest, or that have it among theirs."""
    num_rows, count = nearest_MP.shape
    row = np.repeat(np.arange(num_rows), count)
    pairs = csr_array((np.ones(len(row), dtype=np.int8), (row, nearest_MP.ravel())), shape=(num_rows, num_rows))
    pairs = csr_array(pairs + pairs.T)
    return [part.astype(np.int64) for part in np.split(pairs.indices, pairs.indptr[1:-1])]


def gather(
    graph: ProximityGraph,
    free_M: NDArray[np.bool_],
    near: Sequence[Ints],
    batch_size: int,
    alpha: float,
    rng: np.random.Generator,
    fits: Fits | None = None,
) -> Ints:
    """Collect one batch of different rows on a random walk with restart from a random free row.

    Args:
        graph: the graph of the walk, which also visits rows that are not free.
        free_M: (M,) bool, which rows may be collected, at least B.
        near: for each row the rows that should not share a batch with it.
        batch_size: B.
        alpha: probability of a restart before each step.
        rng: draws the walk, and the rows that fill the batch after too many steps.
        fits: whether a row may join those of a batch; None for every row.

    Returns:
        (B,) int64 in the order of collection.
    """
    batch: list[int] = []
    allowed_M = free_M.copy()

    def collect(row: int) -> None:
        batch.append(row)
        allowed_M[row] = False
        allowed_M[near[row]] = False

    start = current = int(rng.choice(np.flatnonzero(free_M)))
    collect(start)
    for restart, draw in rng.random((STEPS_A_PLACE * batch_size, 2)).tolist():
        if len(batch) == batch_size:
            break
        # A restart and the step after it are one iteration, since the start itself is in the batch already.
        neighbours = graph.neighbours(start if restart < alpha else current)
        current = int(neighbours[int(draw * len(neighbours))]) if len(neighbours) else start
        if allowed_M[current] and (fits is None or fits(batch, current)):
            collect(current)
    for row in rng.permutation(np.flatnonzero(allowed_M)).tolist() if len(batch) < batch_size else ():
        if len(batch) < batch_size and allowed_M[row] and (fits is None or fits(batch, row)):
            collect(row)
    if len(batch) < batch_size:
        # All other free rows are too near to a collected one: fill up with any of them.
        remaining = np.setdiff1d(np.flatnonzero(free_M), batch)
        batch += rng.choice(remaining, batch_size - len(batch), replace=False).tolist()
    return np.array(batch, dtype=np.int64)
