"""Base of the samplers that plan pools of random samples independently of each other.

Letters: N samples of the data set, M samples of a pool, D dimensions, B samples a batch, S batches of a plan.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.errors import PlanError
from mbcl.functional import check_count, check_number
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers._balanced import in_order
from mbcl.samplers._base import BaseSampler, FloatArray, Ids, Ints, PoolMap, PoolPlan, check_widths, serial
from mbcl.samplers._conflicts import Conflicts, Margin
from mbcl.samplers._groups import NO_GROUPS, Groups
from mbcl.samplers._merging import merged
from mbcl.samplers._normalize import joined, pair_sum, unit
from mbcl.samplers._pool_items import PoolItems, shared
from mbcl.samplers._separation import nearest, separate
from mbcl.samplers._threads import planning_thread
from mbcl.seeding import derive, numpy_generator

DEVICE_ELEMENTS = 2**28
"""Pairs of samples, summed over the pools that are planned in one call on a device: 1 GiB for one float32 a pair."""


@dataclass(frozen=True, kw_only=True)
class PoolSampler(BaseSampler):
    """Base of the samplers that plan with embeddings: cut pools, plan each, merge in pool order, apply skip and mix.

    A subclass has a ``name``, implements ``pool_sizes`` and ``plan_one``, and may override ``plan_length`` and
    ``check``. If it can plan many pools at once on a device, it also implements ``plan_batched``.

    Args:
        batch_size: B, global.
        mix: share of the places of each batch whose samples are permuted among all batches of the plan, in [0, 1].
        skip: the number of nearest samples of its pool that are kept out of a sample's batch where possible, as likely
            false negatives. Pairs that still share a batch are counted (``BatchPlan.conflicts``). None is allowed only
            for samplers whose default it is.
        relative_margin: sample j should not share a batch with i unless the similarity s_ij of i's first view and j's
            second is below ``s_ii - relative_margin * |s_ii|``, in [0, 1]; None for no such limit.
        absolute_margin: the same with the limit s_ii - absolute_margin, in [0, 2]; None for no such limit.
    """

    needs_embeddings: ClassVar[bool] = True
    takes_groups: ClassVar[bool] = False
    """Whether :meth:`plan_one` takes the groups of the pool's rows, (M,) int64, as a fourth argument."""
    compares_sides: ClassVar[bool] = True
    """Whether similarities of one side and the other are used, for which both need one width."""
    batched: ClassVar[bool] = False
    """Whether :meth:`plan_batched` is implemented: then embeddings on a GPU are planned on it."""

    mix: float = 0.0
    skip: int | None = 0
    relative_margin: float | None = None
    absolute_margin: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("mix", self.mix, least=0.0, most=1.0)
        for margin, most in (("relative_margin", 1.0), ("absolute_margin", 2.0)):
            if getattr(self, margin) is not None:
                check_number(margin, getattr(self, margin), least=0.0, most=most)
        if self.skip is not None or type(self).skip is not None:
            check_count("skip", self.skip, least=0)

    def check(self, num_samples: int) -> None:
        """Check that the samples fill a batch; warn if every pool is a single batch or ``skip`` is too large."""
        super().check(num_samples)
        sizes = self.pool_sizes(num_samples)
        if len(sizes) > 1 and max(sizes) == self.batch_size:
            self._warn(f"every pool is a single batch of {self.batch_size} samples, so batches are random")
        within = self.apart_within(num_samples)
        possible = within - self.batch_size
        if self.skip and self.skip > possible > 0:
            self._warn(
                f"skip {self.skip} names so many of the {within} samples planned together that neighbours must share "
                f"batches; allowed here for parting all: at most {possible}, and in practice far less"
            )

    @property
    def margin(self) -> Margin:
        """The limit of a negative's similarity; false if there is none."""
        return Margin(self.relative_margin, self.absolute_margin)

    @property
    def needs_one_width(self) -> bool:
        """Whether both sides of the embeddings need one width."""
        return self.compares_sides or bool(self.margin)

    @property
    def separates(self) -> bool:
        """Whether some samples are kept out of each other's batches, whatever their groups."""
        return bool(self.skip) or bool(self.margin)

    @property
    def width(self) -> int:
        """The samples of a batch that :meth:`plan_one` makes: B, or fewer if batches are composed of several."""
        return self.batch_size

    @property
    def merged_width(self) -> int:
        """The samples of a batch that :meth:`plan_pool` makes: B, or fewer if the plan is composed of all pools'."""
        return self.batch_size

    def composed(self, rows_GK: Ints, x_MD: NDArray[np.floating]) -> Ints:
        """Compose (S, B) batches of the (G, K) ones of :meth:`plan_one`, or leave them to be composed of all pools'.

        ``x_MD`` are the sums of both views' unit rows.
        """
        return rows_GK

    @abstractmethod
    def pool_sizes(self, num_samples: int) -> list[int]:
        """Return M of every pool; if their sum is below N, the plan leaves out the remainder."""

    def apart_within(self, num_samples: int) -> int:
        """Return the most samples that :meth:`plan_pool` gets, among which a sample's ``skip`` nearest are found."""
        return max(self.pool_sizes(num_samples), default=0)

    def planned_pools(self, num_samples: int) -> int:
        """Return the number of pools that :meth:`plan_pools` plans independently, and so can plan in parallel."""
        return len(self.pool_sizes(num_samples))

    def cut(self, embeddings: Embeddings, pool: Ints, seed: int) -> list[Ints]:
        """Cut one random pool into the pools that are planned: by default the pool itself, uncut.

        Args:
            embeddings: row p holds data-set position p.
            pool: (M,) data-set positions.
            seed: of this pool.
        """
        return [pool]

    @abstractmethod
    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        """Plan the batches of one pool: a pure function of the arguments, which may be read-only arrays."""

    def at_epoch(self, epoch: int) -> PoolSampler:
        """Return the sampler that plans this epoch's pools: itself, unless a parameter changes over the epochs."""
        return self

    def plan_batched(self, z1_PMD: Tensor, z2_PMD: Tensor, seeds: Sequence[int]) -> Tensor:
        """Plan the batches of P pools of one size in one call, on the embeddings' device.

        Args:
            z1_PMD: (P, M, D) float, un-normalised embeddings of view 1.
            z2_PMD: (P, M, D), view 2.
            seeds: one per pool.

        Returns:
            (P, G, K) int64 row numbers within each pool, on the same device; K is :attr:`width`, and G is M // K.
        """
        raise NotImplementedError

    def plan_pool(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int, group_M: Ints | None = None) -> PoolPlan:
        """Plan the batches of one pool with one thread, so that they are the same in every process.

        Args:
            z1_MD: (M, D) float, un-normalised embeddings of view 1; not written to.
            z2_MD: (M, D), view 2.
            seed: of this pool.
            group_M: (M,) int64, the groups of the rows, whose members should not share a batch; None for no groups.

        Raises:
            PlanError: if a batch has another size than B, a row is not one of the pool's, or a score is not finite,
                which is a bug of the sampler.
        """
        group_M = shared(group_M)
        with planning_thread():
            groups = (group_M,) if self.takes_groups else ()
            planned = self.plan_one(z1_MD, z2_MD, seed, *groups)
            rows = np.asarray(planned.rows)
            if rows.dtype.kind not in "iu" or (rows.size and not 0 <= rows.min() <= rows.max() < len(z1_MD)):
                raise PlanError(f"{self.name}: a pool's batches have rows that are not in 0..{len(z1_MD) - 1}")
            # torch.tensor copies: the arrays may be read-only.
            if self.width < self.merged_width:
                x_MD = pair_sum(torch.tensor(z1_MD), torch.tensor(z2_MD)).numpy()
                planned = replace(planned, rows=self.composed(planned.rows, x_MD))
            if self.separates or group_M is not None:
                planned = self._separated(planned, torch.tensor(z1_MD), torch.tensor(z2_MD), group_M)
        if planned.rows.ndim != 2 or planned.rows.shape[1] != self.merged_width:
            raise PlanError(f"{self.name}: a pool's batches have shape {planned.rows.shape}")
        if planned.scores is not None and not np.isfinite(planned.scores).all():
            raise PlanError(f"{self.name}: the score of a batch is not finite")
        return planned

    def _separated(self, planned: PoolPlan, z1_MD: Tensor, z2_MD: Tensor, group_M: Ints | None = None) -> PoolPlan:
        """Part samples of a pool's plan that should not share a batch; the plan may have found the neighbours."""
        neighbours_MP = planned.neighbours
        if neighbours_MP is None and self.skip:
            neighbours_MP = nearest(z1_MD, z2_MD, self.skip)
        u_MD, v_MD = unit(z1_MD).cpu(), unit(z2_MD).cpu()
        conflicts = Conflicts(neighbours_MP, self.margin, u_MD, v_MD, group_M)
        # No scores: those of the plan belong to the batches before the exchanges.
        return PoolPlan(separate(planned.rows, conflicts, joined(u_MD, v_MD).numpy()), None, neighbours_MP)

    def plan(
        self,
        num_samples: int,
        embeddings: Embeddings | None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
        round: int = 0,
        map_pools: PoolMap = serial,
        apart: Ids | None = None,
        together: Ids | None = None,
    ) -> BatchPlan:
        groups = Groups.of(num_samples, apart, together)
        rounds = range(round, round + 1)
        return self.plan_rounds(
            num_samples, embeddings, seed=seed, epoch=epoch, rounds=rounds, map_pools=map_pools, groups=groups
        )[0]

    def plan_rounds(
        self,
        num_samples: int,
        embeddings: Embeddings | None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
        rounds: Sequence[int] = (0,),
        map_pools: PoolMap = serial,
        groups: Groups = NO_GROUPS,
    ) -> list[BatchPlan]:
        """Make the plans of several rounds of an epoch, their pools in one map, each equal to that of :meth:`plan`.

        The arguments are those of :meth:`plan`, except ``rounds``, the numbers of the rounds, counted from 0, and
        ``groups``, the numbered ids of ``apart`` and ``together``.
        """
        groups.check(self, num_samples)
        if embeddings is None:
            raise PlanError(f"sampler {self.name!r} needs embeddings")
        check_widths(self, embeddings.widths)
        embeddings = embeddings.ordered(num_samples)
        keys = [(epoch, number) for number in rounds]
        pools_of = [self._pools(num_samples, embeddings, seed, key, groups) for key in keys]
        seeds = [
            derive(seed, f"sampler/{self.name}/pool", *key, pool)
            for key, pools in zip(keys, pools_of, strict=True)
            for pool in range(len(pools))
        ]
        all_pools = [pool for pools in pools_of for pool in pools]
        apart = () if groups.apart is None else (groups.apart,)
        planned = iter(self.at_epoch(epoch).plan_pools(embeddings, all_pools, seeds, map_pools, *apart))
        return [
            merged(self, embeddings, pools, list(islice(planned, len(pools))), seed, key, groups)
            for key, pools in zip(keys, pools_of, strict=True)
        ]

    def plan_pools(
        self,
        embeddings: Embeddings,
        pools: Sequence[Ints],
        seeds: Sequence[int],
        map_pools: PoolMap = serial,
        group_N: Ints | None = None,
    ) -> Sequence[PoolPlan]:
        """Plan every pool: on the embeddings' device if the sampler can, else on the host by ``map_pools``.

        Args:
            embeddings: row p holds data-set position p.
            pools: the data-set positions of each pool.
            seeds: one per pool.
            map_pools: the map over pools on the host.
            group_N: (N,) int64, the group of every sample, whose members should not share a batch, or None.
        """
        if self.batched and embeddings.z1.device.type != "cpu":
            return self.plan_on_device(embeddings, pools, seeds, group_N)
        return map_pools(self.plan_pool, PoolItems(embeddings, pools, seeds, group_N))

    def _pools(
        self, num_samples: int, embeddings: Embeddings, seed: int, key: tuple[int, int], groups: Groups = NO_GROUPS
    ) -> list[Ints]:
        """Cut the random pools of every source."""
        order = numpy_generator(seed, f"sampler/{self.name}/order", *key).permutation(num_samples)
        pools = []
        for part in groups.by_source(order.astype(np.int64)):
            if len(part) >= self.batch_size:
                sizes = self.pool_sizes(len(part))
                pools += np.split(part[: sum(sizes)], np.cumsum(sizes)[:-1])
        with planning_thread():
            return [
                part
                for number, pool in enumerate(pools)
                for part in self.cut(embeddings, pool, derive(seed, f"sampler/{self.name}/cut", *key, number))
            ]

    def plan_on_device(
        self, embeddings: Embeddings, pools: Sequence[Ints], seeds: Sequence[int], group_N: Ints | None = None
    ) -> list[PoolPlan]:
        """Plan all pools on the embeddings' device, those of one size together."""
        planned: dict[int, PoolPlan] = {}
        by_size: dict[int, list[int]] = {}
        for number, pool in enumerate(pools):
            by_size.setdefault(len(pool), []).append(number)
        for size, numbers in by_size.items():
            pools_a_call = max(1, DEVICE_ELEMENTS // size**2)
            for start in range(0, len(numbers), pools_a_call):
                chunk = numbers[start : start + pools_a_call]
                rows_PM = torch.from_numpy(np.stack([pools[number] for number in chunk])).to(embeddings.z1.device)
                z1_PMD, z2_PMD = embeddings.z1.detach()[rows_PM], embeddings.z2.detach()[rows_PM]
                rows_PSB = self.plan_batched(z1_PMD, z2_PMD, [seeds[number] for number in chunk]).cpu().numpy()
                for place, number in enumerate(chunk):
                    plan = PoolPlan(in_order(rows_PSB[place]))
                    if self.width < self.merged_width:
                        x_MD = pair_sum(z1_PMD[place], z2_PMD[place]).cpu().numpy()
                        plan = PoolPlan(self.composed(plan.rows, x_MD))
                    group_M = None if group_N is None else shared(group_N[pools[number]])
                    if self.separates or group_M is not None:
                        plan = self._separated(plan, z1_PMD[place], z2_PMD[place], group_M)
                    planned[number] = plan
        return [planned[number] for number in range(len(pools))]
