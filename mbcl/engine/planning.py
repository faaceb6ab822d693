"""Plans for the trainer: which one is needed next, made from which embeddings, and what is known about it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from mbcl import dist
from mbcl.dist import World
from mbcl.engine.protocols import PlanKey, PlannedBatches
from mbcl.errors import MbclError, PlanError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import PoolMap, Sampler, quality, serial

DEFAULT_TEMPERATURE = 0.1


def make_plan(
    sampler: Sampler,
    embeddings: Embeddings,
    key: PlanKey,
    *,
    num_samples: int,
    seed: int,
    map_pools: PoolMap = serial,
) -> PlannedBatches:
    """Plan, check and score: what every plan service does, wherever it runs.

    Args:
        sampler: one that needs embeddings.
        embeddings: of all ``num_samples`` samples, rows in any order.
        key: epoch and round.
        num_samples: N.
        seed: the experiment's.
        map_pools: who maps the sampler's function over its pools.

    Raises:
        PlanError: if embeddings or plan are not sound.
    """
    start = time.perf_counter()
    embeddings = embeddings.ordered(num_samples)
    plan = sampler.plan(num_samples, embeddings, seed=seed, epoch=key.epoch, round=key.round, map_pools=map_pools)
    plan.validate(num_samples, distinct=sampler.distinct)
    seconds = time.perf_counter() - start
    temperature = getattr(sampler, "temperature", DEFAULT_TEMPERATURE)
    scored = quality(plan, embeddings, temperature=temperature, seed=seed)
    return PlannedBatches(plan, seconds, scored["loss"], scored["lift"])


class LocalPlanService:
    """Plans inside the training processes: rank 0 plans on everyone's embeddings and tells the others."""

    def __init__(self, sampler: Sampler, *, num_samples: int, seed: int, world: World) -> None:
        self._sampler = sampler
        self._num_samples = num_samples
        self._seed = seed
        self._world = world
        self._waiting: tuple[PlanKey, Embeddings] | None = None

    def request(self, key: PlanKey, shard: Embeddings) -> None:
        """Gather all shards; planning itself happens in :meth:`receive`."""
        gathered = Embeddings(
            dist.gather(shard.z1, self._world),
            dist.gather(shard.z2, self._world),
            dist.gather(shard.indices, self._world),
        )
        self._waiting = (key, gathered)

    def receive(self, key: PlanKey) -> PlannedBatches:
        """Plan on rank 0 and broadcast."""
        assert self._waiting is not None, "receive comes after request"
        assert self._waiting[0] == key, f"requested {self._waiting[0]}, received {key}"
        embeddings = self._waiting[1]
        self._waiting = None
        planned: PlannedBatches | MbclError | None = None
        if self._world.rank == 0:
            try:
                planned = make_plan(self._sampler, embeddings, key, num_samples=self._num_samples, seed=self._seed)
            except MbclError as error:
                planned = error
        return share_plan(planned, self._sampler.name, self._seed, key, self._world)


def share_plan(
    planned: PlannedBatches | MbclError | None, sampler: str, seed: int, key: PlanKey, world: World
) -> PlannedBatches:
    """Give rank 0's plan, or its failure, to every rank, so that none waits for a plan that will not come.

    Args:
        planned: the plan or why there is none on rank 0, None elsewhere.
        sampler: its name; known to every rank, like all that follows.
        seed: the experiment's.
        key: epoch and round.
        world: the ranks.

    Raises:
        MbclError: on every rank alike, if rank 0 has no plan.
    """
    if world.rank == 0:
        assert planned is not None
    if world.size == 1:
        if isinstance(planned, MbclError):
            raise planned
        assert planned is not None
        return planned
    received = dist.broadcast_object(_to_wire(planned), world)
    if "error" in received:
        raise PlanError(received["error"])
    plan = BatchPlan(torch.from_numpy(received["batches"].astype(np.int64)), sampler, seed, key.epoch, key.round)
    if plan.digest != received["digest"]:
        raise PlanError(f"the plan of epoch {key.epoch}, round {key.round} was damaged on its way to rank {world.rank}")
    return PlannedBatches(plan, received["seconds"], received["loss"], received["lift"])


def _to_wire(planned: PlannedBatches | MbclError | None) -> dict[str, Any] | None:
    if planned is None:
        return None
    if isinstance(planned, MbclError):
        return {"error": str(planned)}
    return {
        "batches": planned.plan.batches.numpy().astype(np.int32),
        "digest": planned.plan.digest,
        "seconds": planned.seconds,
        "loss": planned.loss,
        "lift": planned.lift,
    }
