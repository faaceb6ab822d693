"""Batches of several communities: groups of near neighbours that are smaller than a batch.

Letters: M samples of a pool, D dimensions, B samples a batch, K samples a community, G communities, S batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mbcl.errors import ConfigError
from mbcl.functional import check_choice, check_count
from mbcl.samplers._base import Ints
from mbcl.samplers._pools import PoolSampler

TOUR = 4096
"""Most communities of a tour: its similarities take 64 MiB. More are toured part by part, in their order."""


@dataclass(frozen=True, kw_only=True)
class Communities(PoolSampler):
    """Base of the samplers whose batches may consist of several communities of ``community`` neighbours each.

    Args:
        batch_size: B, global.
        community: K, samples of a community; must divide B. 1 gives random batches, B or None whole batches of
            neighbours.
        order: which communities share a batch: ``random`` ones of the whole plan, or ``near`` ones, which follow each
            other on a greedy tour of the communities' means in the pool.
    """

    community: int | None = None
    order: str = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("order", self.order, ("random", "near"))
        if self.community is None:
            return
        check_count("community", self.community)
        if self.batch_size % self.community:
            divisors = [size for size in range(1, self.batch_size + 1) if self.batch_size % size == 0]
            raise ConfigError(
                f"community must divide the batch_size {self.batch_size}: allowed are {', '.join(map(str, divisors))} "
                f"or null, found {self.community}"
            )

    def check(self, num_samples: int) -> None:
        super().check(num_samples)
        if self.order == "near" and self.width == self.batch_size:
            self._warn("order near has no effect: every batch is one community; give a community below the batch_size")

    @property
    def width(self) -> int:
        return self.batch_size if self.community is None else self.community

    @property
    def merged_width(self) -> int:
        return self.batch_size if self.order == "near" else self.width

    def composed(self, rows_GK: Ints, x_MD: NDArray[np.floating]) -> Ints:
        if self.merged_width == rows_GK.shape[1]:
            return rows_GK
        means_GD = x_MD[rows_GK].mean(axis=1)
        parts = np.array_split(np.arange(len(rows_GK)), -(-len(rows_GK) // TOUR))
        order_G = np.concatenate([part[tour(means_GD[part])] for part in parts])
        rows_SB: Ints = rows_GK[order_G].reshape(-1, self.batch_size)
        return rows_SB


def tour(x_GD: NDArray[np.floating]) -> Ints:
    """Return a greedy tour: from the first point, always on to the nearest one that was not visited yet.

    Args:
        x_GD: (G, D) float.

    Returns:
        (G,) int64, a permutation; of equally near points the first.

    Example:
        >>> tour(np.array([[0.0], [5.0], [1.0], [3.0]])).tolist()
        [0, 2, 3, 1]
    """
    square_G = np.einsum("gd,gd->g", x_GD, x_GD)
    # Squared distances from each row less the row's own square, which changes no comparison within the row.
    distance_GG = square_G - 2 * (x_GD @ x_GD.T)
    order = np.zeros(len(x_GD), dtype=np.int64)
    for place in range(1, len(x_GD)):
        distance_GG[:, order[place - 1]] = np.inf
        order[place] = distance_GG[order[place - 1]].argmin()
    return order
