"""``osgd``: the q batches with the highest loss out of every k random batches.

Letters: P pools, M samples of a pool or of several, K candidate batches among them, B samples a batch, D dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.errors import ConfigError, PlanError
from mbcl.functional import check_choice, check_count, check_temperature, nt_xent
from mbcl.plan import Embeddings
from mbcl.samplers._base import SAMPLERS, FloatArray, Ints, PoolMap, PoolPlan, serial
from mbcl.samplers._normalize import CHUNK_ELEMENTS, unit
from mbcl.samplers._pool_items import shared
from mbcl.samplers._pools import PoolSampler

BatchLoss = Callable[[Tensor, Tensor], Tensor]
"""A loss that scores K batches in one call: (K, B, D) and (K, B, D) to (K,)."""


@SAMPLERS.register("osgd", aliases=("osgd_kb_loose",))
@dataclass(frozen=True, kw_only=True)
class OSGD(PoolSampler):
    """Ordered SGD on batches: of every ``k`` random batches the ``q`` with the largest loss are trained on.

    A plan visits a share q/k of the samples. As published, the selected batches of a pool come in ascending order of
    loss under both criteria, and candidates are consecutive blocks of the shuffled data set. An epoch whose last round
    has fewer steps than the plan has batches leaves out random ones, not the hardest
    (:func:`mbcl.planner.plan_rounds`).

    Formula:
        Of the k random batches b of a pool, the q with the largest L(b), where L is the NT-Xent of b at
        ``temperature``. The larger k/q, the harder.

    Cost:
        N·B·D products to score the candidates. An epoch takes k/q plans, and each of them a forward pass over the data
        set; ``embeddings.refresh: epoch`` makes all plans of an epoch from one pass.

    When to use:
        To compare with the published method. Candidates are random batches, so those chosen hold hardly more pairs of
        one class than random ones do, and are much less hard than clusters: a quarter of the loss of ``spectral``
        (docs/benchmarks.md). Only a share of the samples is seen in a plan; ``embeddings.source: cached`` is refused
        unless q = k.

    Args:
        batch_size: B, global.
        k: candidate batches in a pool.
        q: batches selected from a pool, at most ``k``.
        criterion: ``max`` selects the largest losses, ``min`` the smallest.
        score: ``ntxent`` scores by NT-Xent, whatever the objective, as published; ``objective`` scores by the loss
            that is trained, which :meth:`with_objective` must supply.
        temperature: of the NT-Xent score.

    Reference:
        Cho et al., Mini-Batch Optimization of Contrastive Loss, arXiv 2307.05906, algorithm 1; Kawaguchi and Lu,
        Ordered SGD, arXiv 1907.04371.

    Example:
        >>> OSGD(batch_size=32, k=20, q=5).plan_length(50_000)
        390
    """

    name: ClassVar[str] = "osgd"
    batched: ClassVar[bool] = True

    k: int = 1500
    q: int = 150
    criterion: Literal["max", "min"] = "max"
    score: Literal["ntxent", "objective"] = "ntxent"
    temperature: float = 0.1
    objective: BatchLoss | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("k", self.k)
        check_count("q", self.q)
        check_temperature(self.temperature)
        if self.q > self.k:
            raise ConfigError(f"q must be at most k, found q = {self.q} and k = {self.k}")
        check_choice("criterion", self.criterion, ("max", "min"))
        check_choice("score", self.score, ("ntxent", "objective"))

    @property
    def covers_all(self) -> bool:
        return self.q == self.k

    def with_objective(self, objective: BatchLoss) -> OSGD:
        """Return a copy of the sampler that scores with this loss if ``score`` is ``objective``.

        Args:
            objective: a picklable function of float64 tensors (K, B, D) and (K, B, D) that returns (K,), without
                state per sample: for example an objective module whose loss takes leading dimensions.
        """
        bound = dataclasses.replace(self)
        object.__setattr__(bound, "objective", objective)
        return bound

    def check(self, num_samples: int) -> None:
        super().check(num_samples)
        if self.k * self.batch_size > num_samples:
            raise ConfigError(
                f"sampler 'osgd': k * batch_size = {self.k} * {self.batch_size} = {self.k * self.batch_size} "
                f"is above the {num_samples} samples of the data set; k may be at most "
                f"{num_samples // self.batch_size}, and q at most k"
            )
        if self.score == "objective" and self.objective is None:
            raise ConfigError("sampler 'osgd': score 'objective' needs an objective without state per sample")

    def plan_length(self, num_samples: int) -> int:
        return self.q * (num_samples // (self.k * self.batch_size))

    def pool_sizes(self, num_samples: int) -> list[int]:
        size = self.k * self.batch_size
        return [size] * (num_samples // size)

    def plan_pools(
        self,
        embeddings: Embeddings,
        pools: Sequence[Ints],
        seeds: Sequence[int],
        map_pools: PoolMap = serial,
        group_N: Ints | None = None,
    ) -> Sequence[PoolPlan]:
        """Plan every pool; small pools, also of several rounds, are joined and scored in one call.

        Joined pools have at most :data:`CHUNK_ELEMENTS` similarities, as have candidates that are scored together.
        Where samples are kept apart each pool is planned by itself, since it is within pools that they are.
        """
        pools_a_call = max(1, CHUNK_ELEMENTS // (self.k * (2 * self.batch_size) ** 2))
        if self.separates or group_N is not None or pools_a_call == 1:
            return super().plan_pools(embeddings, pools, seeds, map_pools, group_N)
        starts = range(0, len(pools), pools_a_call)
        joined = [np.concatenate(pools[start : start + pools_a_call]) for start in starts]
        planned = super().plan_pools(embeddings, joined, [seeds[start] for start in starts], map_pools)
        return [pool_plan for plan in planned for pool_plan in self._split_joined(plan)]

    def _split_joined(self, planned: PoolPlan) -> list[PoolPlan]:
        """Split the plan of joined pools into one plan for each pool."""
        assert planned.scores is not None
        size = self.k * self.batch_size
        rows, scores = planned.rows.reshape(-1, self.q, self.batch_size), planned.scores.reshape(-1, self.q)
        return [PoolPlan(rows[pool] - pool * size, scores[pool]) for pool in range(len(rows))]

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        """Score k consecutive blocks of each pool and select q; M is a whole number of pools."""
        # torch.tensor copies: the arrays may be read-only, and torch aligns its own memory the same in every process.
        return self._select(torch.tensor(z1_MD), torch.tensor(z2_MD))

    def plan_on_device(
        self, embeddings: Embeddings, pools: Sequence[Ints], seeds: Sequence[int], group_N: Ints | None = None
    ) -> list[PoolPlan]:
        """Plan every pool on the embeddings' device, from which only the losses are copied."""
        plans = []
        for pool in pools:
            rows = torch.from_numpy(pool).to(embeddings.z1.device)
            z1_MD, z2_MD = embeddings.z1.detach()[rows], embeddings.z2.detach()[rows]
            plan = self._select(z1_MD, z2_MD)
            if self.separates or group_N is not None:
                plan = self._separated(plan, z1_MD, z2_MD, None if group_N is None else shared(group_N[pool]))
            plans.append(plan)
        return plans

    def _select(self, z1_MD: Tensor, z2_MD: Tensor) -> PoolPlan:
        """Select q batches of each pool, in ascending order of loss."""
        losses_Pk = self._losses(z1_MD, z2_MD).reshape(-1, self.k)
        ascending_Pk = np.argsort(losses_Pk, axis=1, kind="stable")
        selected_Pq = ascending_Pk[:, -self.q :] if self.criterion == "max" else ascending_Pk[:, : self.q]
        selected = (selected_Pq + self.k * np.arange(len(selected_Pq))[:, None]).ravel()
        return PoolPlan(selected[:, None] * self.batch_size + np.arange(self.batch_size), losses_Pk.ravel()[selected])

    def _nt_xent(self, z1_KBD: Tensor, z2_KBD: Tensor) -> Tensor:
        """(K,) the NT-Xent of each batch, with rows of any finite length."""
        return nt_xent(unit(z1_KBD), unit(z2_KBD), temperature=self.temperature)

    def _losses(self, z1_MD: Tensor, z2_MD: Tensor) -> NDArray[np.float64]:
        """(K,) losses of all blocks of B rows, in float64: candidates may differ by as little as 1e-8."""
        loss = self.objective if self.score == "objective" else self._nt_xent
        assert loss is not None, "check() refuses this"
        z1_KBD, z2_KBD = (z.view(-1, self.batch_size, z.shape[1]) for z in (z1_MD, z2_MD))
        chunk = max(1, CHUNK_ELEMENTS // (2 * self.batch_size) ** 2)
        with torch.no_grad():
            losses = [
                loss(a.double(), b.double()) for a, b in zip(z1_KBD.split(chunk), z2_KBD.split(chunk), strict=True)
            ]
        losses_K = torch.cat([part.double().reshape(-1) for part in losses])
        if len(losses_K) != len(z1_KBD):
            raise PlanError(f"osgd: the objective gave {len(losses_K)} losses for {len(z1_KBD)} batches")
        return losses_K.cpu().numpy()
