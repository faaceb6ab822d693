"""The local plan service: plans are computed from embeddings, checked, scored, and broadcast to every rank."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray

from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.errors import MbclError, PlanError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.planner.background import BackgroundProcess
from mbcl.planner.plans import PLAN_TENSORS, PlanKey, PlannedBatches, planned_of, planned_state
from mbcl.samplers import Grouped, PoolMap, PoolSampler, Sampler, check_plan, check_widths, quality, serial
from mbcl.seeding import torch_generator

logger = logging.getLogger(__name__)

Attempt = Callable[[Embeddings], PlannedBatches | MbclError]
DEFAULT_TEMPERATURE = 0.1


def make_plan(
    sampler: Sampler, embeddings: Embeddings, key: PlanKey, *, num_samples: int, seed: int, map_pools: PoolMap = serial
) -> PlannedBatches:
    """Compute, check and score a plan; every plan service calls this.

    The embeddings are those of all N samples, rows in any order. The plans of several rounds are joined in their order.
    ``map_pools`` maps the sampler's function over its pools, serially or in parallel.

    Raises:
        ConfigError: if the sampler needs sides of one width.
        PlanError: if the embeddings or the plan are invalid.
    """
    start = time.perf_counter()
    embeddings = embeddings.ordered(num_samples)
    plan = plan_rounds(sampler, embeddings, key, num_samples=num_samples, seed=seed, map_pools=map_pools)
    loss = lift = math.nan
    if len(set(embeddings.widths)) == 1:
        temperature = getattr(sampler, "temperature", DEFAULT_TEMPERATURE)
        scores = quality(plan, embeddings, temperature=temperature, seed=seed)
        loss, lift = scores["loss"], scores["lift"]
        if not math.isfinite(loss):
            raise PlanError(f"{sampler.name}: the loss of the plan is {loss}")
    return PlannedBatches(plan, time.perf_counter() - start, loss, lift)


def plan_rounds(
    sampler: Sampler,
    embeddings: Embeddings | None,
    key: PlanKey,
    *,
    num_samples: int,
    seed: int,
    map_pools: PoolMap = serial,
) -> BatchPlan:
    """Compute and check the plans of a key's rounds, join them, and leave out what the epoch has no steps for.

    ``embeddings`` is None if the sampler needs none.

    Raises:
        PlanError: if the embeddings or the plan are invalid.
    """
    if embeddings is not None:
        check_widths(sampler, embeddings.widths)
    rounds = range(key.round, key.round + key.rounds)
    arguments: dict[str, Any] = {"seed": seed, "epoch": key.epoch, "map_pools": map_pools}
    if isinstance(sampler, PoolSampler | Grouped):
        plans = sampler.plan_rounds(num_samples, embeddings, rounds=rounds, **arguments)
    else:
        plans = [sampler.plan(num_samples, embeddings, round=number, **arguments) for number in rounds]
    steps = sum(map(len, plans)) if key.steps is None else key.steps
    kept: list[BatchPlan] = []
    for plan in plans:
        if steps > 0:
            kept.append(_thinned(check_plan(plan, sampler, num_samples), steps))
            steps -= len(plan)
    return _join(kept)


def _thinned(plan: BatchPlan, steps: int) -> BatchPlan:
    """Return as many random batches of a plan as there are steps, in its order; the plan if it has no more.

    The order of a plan may follow what its batches are: ``osgd`` trains on those of a pool in ascending order of loss.
    Then its first batches would be easier than the plan, and every epoch would leave out the hardest. To select fewer
    batches of the pool instead, the hardest ones, would make the last round harder than the others. Random ones have
    the losses of the plan on average.
    """
    if steps >= len(plan):
        return plan
    order = torch_generator(plan.seed, "thinned plan", plan.epoch, plan.round)
    rows = torch.randperm(len(plan), generator=order)[:steps].sort().values
    scores, conflicts = (None if part is None else part[rows] for part in (plan.scores, plan.batch_conflicts))
    return replace(plan, batches=plan.batches[rows], scores=scores, batch_conflicts=conflicts)


def _join(plans: list[BatchPlan]) -> BatchPlan:
    """Concatenate the plans of consecutive rounds; the result has the key of the first."""
    first = plans[0]
    if len(plans) == 1:
        return first
    scores = [plan.scores for plan in plans if plan.scores is not None]
    conflicts = [plan.batch_conflicts for plan in plans if plan.batch_conflicts is not None]
    return replace(
        first,
        batches=torch.cat([plan.batches for plan in plans]),
        scores=torch.cat(scores) if scores else None,
        batch_conflicts=torch.cat(conflicts) if conflicts else None,
    )


class LocalPlanService:
    """The plan service without Ray: rank 0 plans on the embeddings of all ranks and broadcasts the plan.

    A plan that is due at once is computed in this process. A plan requested ahead is computed concurrently with
    training, in a single-threaded background process: planning sets the number of threads of its whole process. If the
    embeddings are on a GPU and the sampler can plan there, the request computes the plan itself: that takes
    milliseconds, less than copying the embeddings to the background process.
    """

    def __init__(self, *, num_samples: int, seed: int, world: World) -> None:
        self._num_samples = num_samples
        self._seed = seed
        self._world = world
        self._background = BackgroundProcess()
        self._pending: dict[PlanKey, Callable[[], PlannedBatches | MbclError | None]] = {}
        """Pending requests by key: a function that returns the plan or its failure on rank 0, and None elsewhere."""

    def request(self, key: PlanKey, shard: Embeddings, sampler: Sampler, *, ahead: bool = False) -> None:
        """Gather all shards, and start planning if the plan is requested ahead."""
        tensors = (collectives.all_gather_ragged(x, self._world) for x in (shard.z1, shard.z2, shard.indices))
        gathered = Embeddings(*tensors)
        if self._world.rank != 0:
            self._pending[key] = lambda: None
            return
        attempt = partial(_attempt, sampler, key, self._num_samples, self._seed)
        if not ahead:
            self._pending[key] = partial(attempt, gathered)
        elif gathered.z1.device.type != "cpu" and getattr(sampler, "batched", False):
            made = attempt(gathered)
            self._pending[key] = lambda: made
        else:
            self._pending[key] = self._submit(attempt, gathered, key.epoch)

    def _submit(self, attempt: Attempt, gathered: Embeddings, epoch: int) -> Callable[[], PlannedBatches | MbclError]:
        """Start planning in the background process; the returned function waits for the result."""
        try:
            arrays = [tensor.detach().cpu().numpy() for tensor in (gathered.z1, gathered.z2, gathered.indices)]
            future = self._background.submit(_plan_in_background, attempt, arrays)
        except Exception as error:  # as in a daemon, which may have no children: the other ranks wait for the plan
            failed = failure(error)
            return lambda: failed

        def wait() -> PlannedBatches | MbclError:
            try:
                return _from_wire(future.result())
            except BrokenProcessPool:
                logger.warning("the process that planned epoch %d was lost; the plan is made again here", epoch)
                return attempt(gathered)
            except Exception as error:  # e.g. arguments or a result that cannot be pickled
                return failure(error)

        return wait

    def receive(self, key: PlanKey) -> PlannedBatches:
        """Compute the plan on rank 0, or wait for it, and broadcast it."""
        assert key in self._pending, f"{key} was not requested"
        produce = self._pending.pop(key)
        return share_plan(collectives.run_while_ranks_wait(produce, self._world), self._world)

    def close(self) -> None:
        """End the background process."""
        self._pending.clear()
        self._background.close()


def _attempt(
    sampler: Sampler, key: PlanKey, num_samples: int, seed: int, embeddings: Embeddings
) -> PlannedBatches | MbclError:
    """Return the plan or, instead of raising, its failure: the other ranks wait for either."""
    try:
        return make_plan(sampler, embeddings, key, num_samples=num_samples, seed=seed)
    except Exception as error:
        return failure(error)


def failure(error: BaseException) -> MbclError:
    """Convert an exception to a one-line error for all ranks; an unexpected one is logged with its traceback."""
    if isinstance(error, MbclError):
        return error
    logger.error("planning failed", exc_info=error)
    reason = " ".join(str(error).split())
    return PlanError(f"planning failed: {type(error).__name__}: {reason}")


def _plan_in_background(attempt: Attempt, arrays: list[NDArray[Any]]) -> dict[str, Any]:
    """Plan in the background process. Transfers arrays, since tensors would use shared memory."""
    return _to_wire(attempt(Embeddings(*map(torch.from_numpy, arrays))))


def share_plan(planned: PlannedBatches | MbclError | None, world: World) -> PlannedBatches:
    """Broadcast rank 0's plan or its failure, so that no rank waits for a plan that failed; elsewhere it is None.

    Raises:
        MbclError: on every rank alike, if planning failed on rank 0.
    """
    result = planned
    if world.size > 1:
        result = _from_wire(collectives.broadcast_object(planned and _to_wire(planned), world))
    assert result is not None
    if isinstance(result, MbclError):
        raise result
    return result


def _to_wire(planned: PlannedBatches | MbclError) -> dict[str, Any]:
    """Serialise a plan without its scores, or a failure, to arrays and plain values."""
    if isinstance(planned, MbclError):
        return {"error": str(planned)}
    wire = planned_state(planned)
    for name in PLAN_TENSORS:
        wire["plan"][name] = None if wire["plan"][name] is None else wire["plan"][name].numpy()
    return wire | {"digest": planned.plan.digest}


def _from_wire(wire: dict[str, Any]) -> PlannedBatches | MbclError:
    """Deserialise the result of :func:`_to_wire`; a plan whose digest does not match is a failure."""
    if "error" in wire:
        return PlanError(wire["error"])
    tensors = {name: wire["plan"][name] for name in PLAN_TENSORS}
    tensors = {name: None if array is None else torch.from_numpy(array) for name, array in tensors.items()}
    planned = planned_of(wire | {"plan": wire["plan"] | tensors})
    plan = planned.plan
    if plan.digest != wire["digest"]:
        return PlanError(f"the plan of epoch {plan.epoch}, round {plan.round} was damaged on its way")
    return planned
