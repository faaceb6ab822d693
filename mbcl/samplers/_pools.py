"""Samplers that plan pools of random samples independently of each other.

Letters: N samples of the data set, M samples of a pool, D dimensions, B samples a batch, S batches of a plan.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from mbcl.errors import PlanError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers._base import FloatArray, PoolItem, PoolMap, PoolPlan, check_batch_size, check_num_samples, serial
from mbcl.seeding import derive, numpy_generator


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, BLAS and OpenMP inside; what was set before is restored.

    The order of a sum depends on the number of threads, and so do the last bits of a pool's affinity. With one thread
    a pool has the same plan wherever it is planned. The setting holds for the whole process while it lasts.
    """
    num_threads = torch.get_num_threads()
    with threadpool_limits(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)


class PoolItems(Sequence[PoolItem]):
    """The arguments of ``plan_pool`` for every pool, each made when it is asked for and not kept.

    Args:
        embeddings: row p holds data-set position p; on any device.
        pools: the data-set positions of each pool.
        seeds: one per pool.
    """

    def __init__(self, embeddings: Embeddings, pools: Sequence[NDArray[np.int64]], seeds: Sequence[int]) -> None:
        assert len(pools) == len(seeds)
        self._embeddings = embeddings
        self._pools = pools
        self._seeds = seeds

    def __len__(self) -> int:
        return len(self._pools)

    @overload
    def __getitem__(self, index: int) -> PoolItem: ...
    @overload
    def __getitem__(self, index: slice) -> PoolItems: ...
    def __getitem__(self, index: int | slice) -> PoolItem | PoolItems:
        if isinstance(index, slice):
            return PoolItems(self._embeddings, self._pools[index], self._seeds[index])
        rows = torch.from_numpy(self._pools[index]).to(self._embeddings.z1.device)
        z1, z2 = (z.detach()[rows].cpu().numpy() for z in (self._embeddings.z1, self._embeddings.z2))
        return z1, z2, self._seeds[index]


@dataclass(frozen=True, kw_only=True)
class PoolSampler:
    """Base of the samplers that plan random pools: cut, plan each, merge in pool order.

    A subclass names itself and gives ``check``, ``plan_length``, ``pool_sizes`` and ``plan_one``.
    """

    name: ClassVar[str]
    needs_embeddings: ClassVar[bool] = True
    distinct: ClassVar[bool] = True

    batch_size: int

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)

    @property
    def covers(self) -> bool:
        """Whether a plan visits every sample but the few that fill no batch or pool."""
        return True

    def check(self, num_samples: int) -> None:
        """As :meth:`Sampler.check`."""
        check_num_samples(self.name, self.batch_size, num_samples)

    @abstractmethod
    def plan_length(self, num_samples: int) -> int:
        """S, the batches of one plan."""

    @abstractmethod
    def pool_sizes(self, num_samples: int) -> list[int]:
        """M of every pool; what their sum lacks to N is left out of the plan."""

    @abstractmethod
    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        """The batches of one pool, a pure function of the arguments, which may be read-only."""

    def plan_pool(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        """The batches of one pool, planned with one thread, so that they are the same in every process.

        Args:
            z1_MD: (M, D) float, un-normalised embeddings of view 1; not written to.
            z2_MD: (M, D), view 2.
            seed: of this pool.

        Raises:
            PlanError: if a batch is not one, which is a bug of the sampler.
        """
        with one_thread():
            planned = self.plan_one(z1_MD, z2_MD, seed)
        if planned.rows.ndim != 2 or planned.rows.shape[1] != self.batch_size:
            raise PlanError(f"{self.name}: a pool's batches have shape {planned.rows.shape}")
        if planned.scores is not None and not np.isfinite(planned.scores).all():
            raise PlanError(f"{self.name}: the score of a batch is not finite")
        return planned

    def plan(
        self,
        num_samples: int,
        embeddings: Embeddings | None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
        round: int = 0,
        map_pools: PoolMap = serial,
    ) -> BatchPlan:
        """As :meth:`Sampler.plan`."""
        self.check(num_samples)
        if embeddings is None:
            raise PlanError(f"sampler {self.name!r} needs embeddings")
        order = numpy_generator(seed, f"sampler/{self.name}/order", epoch, round).permutation(num_samples)
        sizes = self.pool_sizes(num_samples)
        pools = np.split(order[: sum(sizes)].astype(np.int64), np.cumsum(sizes)[:-1])
        seeds = [derive(seed, f"sampler/{self.name}/pool", epoch, round, pool) for pool in range(len(pools))]
        planned = map_pools(self.plan_pool, PoolItems(embeddings.ordered(num_samples), pools, seeds))
        batches = np.concatenate([pool[plan.rows] for pool, plan in zip(pools, planned, strict=True)])
        if len(batches) != self.plan_length(num_samples):
            raise PlanError(f"{self.name}: {len(batches)} batches instead of {self.plan_length(num_samples)}")
        scores = [plan.scores for plan in planned if plan.scores is not None]
        merged = BatchPlan(
            torch.from_numpy(batches),
            self.name,
            seed,
            epoch,
            round,
            torch.from_numpy(np.concatenate(scores)) if scores else None,
        )
        return merged.validate(num_samples, distinct=self.distinct)
