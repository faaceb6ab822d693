"""The sizes of random pools, and what a pool is planned from.

Letters: N samples of the data set, M samples of a pool, B samples a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch

from mbcl.plan import Embeddings
from mbcl.samplers._base import Ints, PoolItem


def even_pools(num_samples: int, batch_size: int, batches_a_pool: int | None) -> list[int]:
    """Return M of every pool: ``batches_a_pool`` batches each, fewer in the last; one pool if it is None.

    Example:
        >>> even_pools(3000, 32, 40)
        [1280, 1280, 416]
    """
    num_batches = num_samples // batch_size
    batches_each = num_batches if batches_a_pool is None else min(batches_a_pool, num_batches)
    sizes = [batches_each * batch_size] * (num_batches // batches_each)
    remainder = num_batches % batches_each
    return sizes + [remainder * batch_size] * (remainder > 0)


def shared(group_M: Ints | None) -> Ints | None:
    """Return a pool's groups, or None if no two rows are of one group: then there is nothing to part."""
    return None if group_M is None or len(np.unique(group_M)) == len(group_M) else group_M


@dataclass(frozen=True, eq=False)
class PoolItems(Sequence[PoolItem]):
    """A lazy sequence of the arguments of ``plan_pool``, one item a pool, made at every access and not cached.

    Args:
        embeddings: row p holds data-set position p; on any device.
        pools: the data-set positions of each pool.
        seeds: one per pool.
        group_N: (N,) int64, the group of every sample, whose members should not share a batch; None for no groups. An
            item then has no fourth argument.
    """

    embeddings: Embeddings
    pools: Sequence[Ints]
    seeds: Sequence[int]
    group_N: Ints | None = None

    def __len__(self) -> int:
        assert len(self.pools) == len(self.seeds)
        return len(self.pools)

    @overload
    def __getitem__(self, index: int) -> PoolItem: ...
    @overload
    def __getitem__(self, index: slice) -> PoolItems: ...
    def __getitem__(self, index: int | slice) -> PoolItem | PoolItems:
        if isinstance(index, slice):
            return PoolItems(self.embeddings, self.pools[index], self.seeds[index], self.group_N)
        rows = torch.from_numpy(self.pools[index]).to(self.embeddings.z1.device)
        z1, z2 = (z.detach()[rows].cpu().numpy() for z in (self.embeddings.z1, self.embeddings.z2))
        if self.group_N is None:
            return z1, z2, self.seeds[index]
        return z1, z2, self.seeds[index], self.group_N[self.pools[index]]
