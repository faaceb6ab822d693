"""Bases of the samplers whose pools are given by a number of samples.

Letters: N samples of the data set, M samples of a pool, B samples a batch, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.errors import ConfigError, pluralize
from mbcl.functional import check_count
from mbcl.samplers._balanced import in_order
from mbcl.samplers._base import FloatArray, Ints, PoolPlan
from mbcl.samplers._normalize import CHUNK_ROWS, pair_sum, unit
from mbcl.samplers._pool_items import even_pools
from mbcl.samplers._pools import PoolSampler


@dataclass(frozen=True, kw_only=True)
class SizedPools(PoolSampler):
    """Base of the samplers that plan random pools of about ``pool`` samples, or the whole data set as one pool.

    A pool has ``pool // B`` batches; the last pool has the remaining batches, if there are fewer.

    Args:
        batch_size: B, global.
        pool: samples of a pool, at least B; None for all samples in one pool. If it is larger than the data set there
            is one pool, with a warning.
    """

    pool: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool is None:
            return
        check_count("pool", self.pool)
        if self.pool < self.batch_size:
            raise ConfigError(f"pool must be at least the batch_size {self.batch_size}, or null, found {self.pool}")

    def check(self, num_samples: int) -> None:
        super().check(num_samples)
        if self.pool is not None and self.pool > num_samples:
            self._warn(
                f"pool {self.pool} is above the {num_samples} samples planned together, which become one pool of "
                f"{pluralize(num_samples // self.batch_size, 'batch')}"
            )

    def pool_sizes(self, num_samples: int) -> list[int]:
        batches_a_pool = None if self.pool is None else self.pool // self.batch_size
        return even_pools(num_samples, self.batch_size, batches_a_pool)


@dataclass(frozen=True, kw_only=True)
class SortedPools(SizedPools):
    """Base of the samplers whose ``plan_one`` orders batches by similarity, similar ones next to each other.

    Parting samples needs that order, since it exchanges them between consecutive batches. Training needs a random one,
    so :meth:`plan_pool` sorts the batches by their first row.
    """

    def plan_pool(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int, group_M: Ints | None = None) -> PoolPlan:
        """Plan a pool, then sort: inside a batch rows ascend, batches are ordered by their first row.

        The rows of a pool are in random order, so this order of batches is random, too.
        """
        planned = super().plan_pool(z1_MD, z2_MD, seed, group_M)
        return PoolPlan(in_order(planned.rows), None, planned.neighbours)


def unit_rows(z_MD: FloatArray) -> NDArray[np.floating]:
    """(M, D): :func:`mbcl.samplers._normalize.unit` of an array that may be read-only."""
    return _in_chunks(unit, z_MD)


def pair_rows(z1_MD: FloatArray, z2_MD: FloatArray) -> NDArray[np.floating]:
    """(M, D): :func:`mbcl.samplers._normalize.pair_sum` of arrays that may be read-only."""
    return _in_chunks(pair_sum, z1_MD, z2_MD)


def _in_chunks(function: Callable[..., Tensor], *arrays_MD: FloatArray) -> NDArray[np.floating]:
    """Apply a function of rows in chunks of a few thousand rows, so that its temporary copies are small."""

    def rows(part: slice) -> NDArray[np.floating]:
        # torch.tensor copies: the arrays may be read-only.
        return function(*(torch.tensor(array_MD[part]) for array_MD in arrays_MD)).numpy()

    num_rows = len(arrays_MD[0])
    result_MD = np.empty((num_rows, rows(slice(1)).shape[1]), dtype=arrays_MD[0].dtype)
    for start in range(0, num_rows, CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        result_MD[part] = rows(part)
    return result_MD
