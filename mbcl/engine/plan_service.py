"""Plans for the trainer: made from embeddings, checked, scored, and given to every rank."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine.background import BackgroundProcess
from mbcl.engine.protocols import PlanKey, PlannedBatches
from mbcl.errors import MbclError, PlanError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import PoolMap, PoolSampler, Sampler, check_plan, quality, serial

logger = logging.getLogger(__name__)

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
        key: epoch and rounds; the plans of several rounds are joined in their order.
        num_samples: N.
        seed: the experiment's.
        map_pools: who maps the sampler's function over its pools.

    Raises:
        PlanError: if embeddings or plan are not sound.
    """
    start = time.perf_counter()
    embeddings = embeddings.ordered(num_samples)
    rounds = range(key.round, key.round + key.rounds)
    arguments: dict[str, Any] = {"seed": seed, "epoch": key.epoch, "map_pools": map_pools}
    if isinstance(sampler, PoolSampler):
        plans = sampler.plan_rounds(num_samples, embeddings, rounds=rounds, **arguments)
    else:
        plans = [sampler.plan(num_samples, embeddings, round=number, **arguments) for number in rounds]
    plan = _joined([check_plan(plan, sampler, num_samples) for plan in plans])
    temperature = getattr(sampler, "temperature", DEFAULT_TEMPERATURE)
    scored = quality(plan, embeddings, temperature=temperature, seed=seed)
    if not math.isfinite(scored["loss"]):
        raise PlanError(f"{sampler.name}: the loss of the plan is {scored['loss']}")
    seconds = time.perf_counter() - start
    return PlannedBatches(plan, seconds, scored["loss"], scored["lift"])


def _joined(plans: list[BatchPlan]) -> BatchPlan:
    """Plans of consecutive rounds as one, named after the first."""
    first = plans[0]
    if len(plans) == 1:
        return first
    scores = [plan.scores for plan in plans if plan.scores is not None]
    counted = [plan.conflicts for plan in plans if plan.conflicts is not None]
    return BatchPlan(
        torch.cat([plan.batches for plan in plans]),
        first.sampler,
        first.seed,
        first.epoch,
        first.round,
        torch.cat(scores) if scores else None,
        sum(counted) if counted else None,
    )


class LocalPlanService:
    """Plans for training processes without Ray: rank 0 plans on everyone's embeddings and tells the others.

    Plans that are due at once are made in this process. Those that are requested ahead are made beside training: in
    one background process on one thread, since planning sets the number of threads of its whole process. Where the
    embeddings lie on a GPU and the sampler can plan there, the plan is made at the request instead: planning takes
    milliseconds there, and copying the embeddings away would take longer.

    Args:
        num_samples: N.
        seed: the experiment's.
        world: this rank and the number of ranks.
    """

    def __init__(self, *, num_samples: int, seed: int, world: World) -> None:
        self._num_samples = num_samples
        self._seed = seed
        self._world = world
        self._background = BackgroundProcess()
        self._waiting: dict[PlanKey, Callable[[], PlannedBatches | MbclError | None]] = {}
        """By key, what gives the plan, or the reason why there is none, on rank 0; what gives None on the others."""

    def request(self, key: PlanKey, shard: Embeddings, sampler: Sampler, *, ahead: bool = False) -> None:
        """Gather all shards, and have the plan made if it is requested ahead."""
        gathered = Embeddings(
            collectives.all_gather_ragged(shard.z1, self._world),
            collectives.all_gather_ragged(shard.z2, self._world),
            collectives.all_gather_ragged(shard.indices, self._world),
        )
        if self._world.rank != 0:
            self._waiting[key] = lambda: None
            return
        make = partial(_attempt, sampler, gathered, key, self._num_samples, self._seed)
        if not ahead:
            self._waiting[key] = make
        elif gathered.z1.device.type != "cpu" and getattr(sampler, "batched", False):
            made = make()
            self._waiting[key] = lambda: made
        else:
            self._waiting[key] = self._beside(make, sampler, gathered, key)

    def _beside(
        self, make: Callable[[], PlannedBatches | MbclError], sampler: Sampler, gathered: Embeddings, key: PlanKey
    ) -> Callable[[], PlannedBatches | MbclError]:
        """Begin to plan in the background process; what is returned waits for it."""
        arrays = [tensor.detach().cpu().numpy() for tensor in (gathered.z1, gathered.z2, gathered.indices)]
        future = self._background.submit(_plan_apart, sampler, arrays, key, self._num_samples, self._seed)

        def wait() -> PlannedBatches | MbclError:
            try:
                return _from_wire(future.result())
            except BrokenProcessPool:
                logger.warning("the process that planned epoch %d was lost; the plan is made again here", key.epoch)
                return make()
            except Exception as error:  # what could not travel
                return failure(error)

        return wait

    def receive(self, key: PlanKey) -> PlannedBatches:
        """Plan on rank 0, or wait for the plan that is being made, and broadcast."""
        assert key in self._waiting, f"{key} was not requested"
        give = self._waiting.pop(key)
        return share_plan(collectives.run_while_ranks_wait(give, self._world), self._world)

    def close(self) -> None:
        """End the background process."""
        self._waiting.clear()
        self._background.close()


def _attempt(
    sampler: Sampler, embeddings: Embeddings, key: PlanKey, num_samples: int, seed: int
) -> PlannedBatches | MbclError:
    """The plan, or why there is none: other ranks wait for either."""
    try:
        return make_plan(sampler, embeddings, key, num_samples=num_samples, seed=seed)
    except Exception as error:
        return failure(error)


def failure(error: BaseException) -> MbclError:
    """What all ranks are told: one line. What nobody expected goes to the log with its traceback."""
    if isinstance(error, MbclError):
        return error
    logger.error("planning failed", exc_info=error)
    reason = " ".join(str(error).split())
    return PlanError(f"planning failed: {type(error).__name__}: {reason}")


def _plan_apart(
    sampler: Sampler, arrays: list[NDArray[Any]], key: PlanKey, num_samples: int, seed: int
) -> dict[str, Any]:
    """:func:`_attempt` in the background process. Arrays travel there and back: tensors would be shared memory."""
    embeddings = Embeddings(*(torch.from_numpy(array) for array in arrays))
    return _to_wire(_attempt(sampler, embeddings, key, num_samples, seed))


def share_plan(planned: PlannedBatches | MbclError | None, world: World) -> PlannedBatches:
    """Give rank 0's plan, or its failure, to every rank, so that none waits for a plan that will not come.

    Args:
        planned: the plan or why there is none on rank 0, None elsewhere.
        world: the ranks.

    Raises:
        MbclError: on every rank alike, if rank 0 has no plan.
    """
    if world.size == 1:
        assert planned is not None
        given = planned
    else:
        wire = None
        if world.rank == 0:
            assert planned is not None
            wire = _to_wire(planned)
        given = _from_wire(collectives.broadcast_object(wire, world))
    if isinstance(given, MbclError):
        raise given
    return given


def _to_wire(planned: PlannedBatches | MbclError) -> dict[str, Any]:
    """A plan, without its scores, or a failure, as arrays and plain values."""
    if isinstance(planned, MbclError):
        return {"error": str(planned)}
    plan = planned.plan
    return {
        "batches": plan.batches.numpy().astype(np.int32),
        "named": {"sampler": plan.sampler, "seed": plan.seed, "epoch": plan.epoch, "round": plan.round},
        "conflicts": plan.conflicts,
        "digest": plan.digest,
        "facts": (planned.seconds, planned.loss, planned.lift),
    }


def _from_wire(wire: dict[str, Any]) -> PlannedBatches | MbclError:
    """What :func:`_to_wire` took; a plan that was damaged on its way is a failure."""
    if "error" in wire:
        return PlanError(wire["error"])
    batches = torch.from_numpy(wire["batches"].astype(np.int64))
    plan = BatchPlan(batches, conflicts=wire["conflicts"], **wire["named"])
    if plan.digest != wire["digest"]:
        return PlanError(f"the plan of epoch {plan.epoch}, round {plan.round} was damaged on its way")
    return PlannedBatches(plan, *wire["facts"])
