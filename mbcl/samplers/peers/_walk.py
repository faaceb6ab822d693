"""``walk``: batches gathered by random walks over a graph of near neighbours among random candidates.

Letters: M samples of a pool, D dimensions, B samples a batch, S batches, C candidates, K neighbours, P forbidden ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from mbcl.errors import ConfigError
from mbcl.functional import check_count, check_number
from mbcl.samplers._base import SAMPLERS, FloatArray, PoolPlan
from mbcl.samplers._separation import nearest
from mbcl.samplers._sized_pools import SortedPools, pair_rows
from mbcl.seeding import numpy_generator

Array = NDArray[np.floating]
Ints = NDArray[np.int64]

NOBODY = np.zeros(0, dtype=np.int64)
STEPS_A_PLACE = 6
"""Steps of a walk for each place of a batch, after which the rest is drawn at random. With every sample used once, the
neighbours of most have been used towards the end of a plan."""


@SAMPLERS.register("walk")
@dataclass(frozen=True, kw_only=True)
class Walk(SortedPools):
    """BatchSampler: every batch is what a random walk with restart meets on a proximity graph.

    A sample's neighbours in the graph are the ``neighbours`` most similar of ``candidates`` random samples, drawn anew
    every ``refresh`` batches. Few candidates keep batches moderate: with all of a class rarely among them, neighbours
    are only somewhat similar. A walk starts at a random sample, and before each step to a random neighbour it returns
    there with probability ``alpha``, until B different samples are met. Samples are compared by the sum of
    their views' normalised embeddings.

    Args:
        batch_size: B, global.
        pool: samples of a random pool; None for the whole data set as one, as published.
        candidates: random samples among which neighbours are found; all, if a pool has no more.
        neighbours: of a sample in the graph, at most ``candidates``.
        alpha: probability of a restart before each step in the first epoch.
        alpha_end: the same from epoch ``alpha_epochs`` on; linear between.
        alpha_epochs: over which the probability changes.
        refresh: batches after which candidates are drawn again.
        unique: whether every sample is used exactly once; a walk that finds too few new ones is then filled at random.
            Otherwise, as published, samples may come in several batches and others in none.
        mix: as for all samplers with embeddings.
        skip: as for all samplers with embeddings. Where samples repeat they cannot be exchanged; there the ``skip``
            nearest of a sample are no neighbours in the graph, and a walk does not collect what is too near to a
            sample it has.

    Reference:
        Yang et al., BatchSampler: Sampling Mini-Batches for Contrastive Learning in Vision, Language, and Graphs, KDD
        2023, arXiv 2306.03355.

    Example:
        >>> walk = Walk(batch_size=32)
        >>> [round(walk.at_epoch(epoch).alpha, 3) for epoch in (0, 50, 100, 400)]
        [0.2, 0.125, 0.05, 0.05]
    """

    name: ClassVar[str] = "walk"

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
        """Whether samples are used once."""
        return self.unique

    @property
    def covers_all(self) -> bool:
        """Whether samples are used once."""
        return self.unique

    def at_epoch(self, epoch: int) -> Walk:
        """The same sampler with this epoch's probability of a restart in all epochs."""
        share = min(1.0, epoch / self.alpha_epochs)
        alpha = self.alpha + share * (self.alpha_end - self.alpha)
        return dataclasses.replace(self, alpha=alpha, alpha_end=alpha)

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        """Batches in the order of the walks, with the restart probability of the first epoch."""
        x_MD, rng = pair_rows(z1_MD, z2_MD), numpy_generator(seed, "walk")
        nearest_MP = None
        if self.skip and not self.unique:
            nearest_MP = nearest(torch.tensor(z1_MD), torch.tensor(z2_MD), self.skip)
        graph = ProximityGraph(x_MD, self.candidates, self.neighbours, rng, nearest_MP)
        # A plan without repeats is the base's to keep apart.
        near = [NOBODY] * len(x_MD) if nearest_MP is None else both_ways(nearest_MP)
        free_M = np.ones(len(x_MD), dtype=np.bool_)
        batches = []
        for number in range(len(x_MD) // self.batch_size):
            if number and number % self.refresh == 0:
                graph.forget()
            batches.append(gather(graph, free_M, near, self.batch_size, self.alpha, rng))
            if self.unique:
                free_M[batches[-1]] = False
        return PoolPlan(np.stack(batches), None, nearest_MP)

    def _separated(self, planned: PoolPlan, z1_MD: Tensor, z2_MD: Tensor) -> PoolPlan:
        """As the base, but walks that may repeat samples have kept them apart themselves."""
        return super()._separated(planned, z1_MD, z2_MD) if self.unique else planned


class ProximityGraph:
    """Who is near whom among random candidates, found when it is asked for.

    Args:
        x_MD: (M, D) float, compared by their products.
        candidates: C, of a row; at most M - 1 are drawn.
        neighbours: K, kept of them.
        rng: draws candidates.
        nearest_MP: (M, P) int32, of each row those that cannot be its neighbours, or None.
    """

    def __init__(
        self,
        x_MD: Array,
        candidates: int,
        neighbours: int,
        rng: np.random.Generator,
        nearest_MP: NDArray[np.int32] | None = None,
    ) -> None:
        self._x_MD = x_MD
        self._candidates = min(candidates, len(x_MD) - 1)
        self._neighbours = neighbours
        self._rng = rng
        self._nearest_MP = nearest_MP
        self._found: dict[int, Ints] = {}

    def forget(self) -> None:
        """Draw candidates again."""
        self._found.clear()

    def neighbours(self, row: int) -> Ints:
        """(at most K,) int64 rows, in no order; the same ones until they are forgotten."""
        if row not in self._found:
            others = self._rng.choice(len(self._x_MD) - 1, self._candidates, replace=False, shuffle=False)
            others += others >= row
            if self._nearest_MP is not None:
                others = others[~np.isin(others, self._nearest_MP[row])]
            self._found[row] = top(self._x_MD, row, others, self._neighbours)
        return self._found[row]


def top(x_MD: Array, row: int, others: Ints, count: int) -> Ints:
    """Those ``count`` of ``others`` whose products with a row are largest; all, if there are no more."""
    if len(others) <= count:
        return others
    # take: a third faster than an index for many rows.
    return others[np.argpartition(x_MD.take(others, axis=0) @ x_MD[row], -count)[-count:]]


def both_ways(nearest_MP: NDArray[np.int32]) -> list[Ints]:
    """Of each row those that it is too near to, or that are too near to it."""
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
) -> Ints:
    """One batch of different rows, met on a walk with restart from a random free one.

    Args:
        graph: that is walked on, also over rows that are not free.
        free_M: (M,) which rows may be collected, at least B.
        near: of each row those that should not be collected beside it.
        batch_size: B.
        alpha: probability of a restart before each step.
        rng: draws the walk, and who fills the batch after too many steps.

    Returns:
        (B,) int64 in the order of collection.
    """
    batch: list[int] = []
    may_M = free_M.copy()

    def collect(row: int) -> None:
        batch.append(row)
        may_M[row] = False
        may_M[near[row]] = False

    start = here = int(rng.choice(np.flatnonzero(free_M)))
    collect(start)
    for restart, draw in rng.random((STEPS_A_PLACE * batch_size, 2)).tolist():
        if len(batch) == batch_size:
            break
        # A restart and the step after it are one: the start itself is in the batch already.
        around = graph.neighbours(start if restart < alpha else here)
        here = int(around[int(draw * len(around))]) if len(around) else start
        if may_M[here]:
            collect(here)
    for row in rng.permutation(np.flatnonzero(may_M)).tolist() if len(batch) < batch_size else ():
        if len(batch) < batch_size and may_M[row]:
            collect(row)
    if len(batch) < batch_size:
        # Nobody is left who is not too near.
        rest = np.setdiff1d(np.flatnonzero(free_M), batch)
        batch += rng.choice(rest, batch_size - len(batch), replace=False).tolist()
    return np.array(batch, dtype=np.int64)
