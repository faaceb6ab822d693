"""The planner: an actor beside the training that plans pools in parallel Ray tasks, kept from trial to trial.

Protocol: every rank puts its shard of the embeddings into the object store and deposits the reference with the actor;
after a barrier rank 0 requests the plan. An actor that was killed and restarted in between has lost the references and
returns None at once; every rank then deposits its reference again. A plan is a pure function of sampler, embeddings,
seed, epoch and round, so the retry gives the same plan.

A plan may be requested long before it is received. The actor accepts deposits while it plans, so a request does not
block.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import ray
import torch

from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.errors import MbclError, PlanError
from mbcl.orchestration.cluster.placement import Placement
from mbcl.orchestration.trial.job import mute_sampler_warnings
from mbcl.plan import Embeddings
from mbcl.planner.plan_service import failure, make_plan, share_plan
from mbcl.planner.plans import PlanKey, PlannedBatches
from mbcl.plugins import Carried
from mbcl.samplers import PoolPlan, Sampler
from mbcl.samplers._base import FloatArray, PoolItem

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 20
"""How often a plan is requested before the loss of its planner becomes an error."""
DEPOSIT_SECONDS = 120.0
"""Timeout of a deposit; the planner may be restarting."""
PLAN_SECONDS = 3600.0
"""Timeout of a plan."""
TASK_RETRIES = 5
"""How often a planning task is retried after its process died."""
READY, WAITING, LOST = "ready", "waiting", "lost"
"""The states of a plan that rank 0 broadcasts."""
MAX_POOLS_PER_TASK = 16
"""Pools are sent to tasks in groups of at most this size: a task costs 2 ms, about as much as planning a pool of 128
samples."""
MIN_GROUPS_PER_SLOT = 4
"""Minimum number of groups per concurrent task, for load balance."""
DEPOSITS = "deposits"
"""The actor's concurrency group for deposits: a thread that accepts shards while the main thread plans."""

ANYWHERE = Placement()

Arrays = list[npt.NDArray[Any]]
"""A shard of embeddings as NumPy arrays: both views and the indices."""
PoolFunction = Callable[[FloatArray, FloatArray, int], PoolPlan]


@ray.remote(num_cpus=0, max_retries=TASK_RETRIES)
def _plan_pools(function: Carried | None, items: list[PoolItem]) -> list[PoolPlan]:
    """Plan a group of pools in a task, on one thread, by a carried ``PoolFunction``."""
    torch.set_num_threads(1)
    if function is None:  # only starts the process; see TaskMap.warm_up
        return []
    return [function.value(*item) for item in items]


class TaskMap:
    """Maps a function over pools: at most ``num_tasks`` Ray tasks in flight, results in the order of the pools.

    One task would only wait for this process, so a single one is replaced by a loop.

    Args:
        num_tasks: maximum number of tasks that run at a time; the results do not depend on it.
        placement: the nodes that run the tasks.
    """

    def __init__(self, num_tasks: int, placement: Placement = ANYWHERE) -> None:
        self._num_tasks = max(1, num_tasks)
        self._task = _plan_pools.options(resources=placement.for_task)

    def warm_up(self) -> None:
        """Start the processes of the tasks while the trial's workers start: importing torch takes each some seconds."""
        for _ in range(self._num_tasks if self._num_tasks > 1 else 0):
            self._task.remote(None, [])

    def __call__(self, function: PoolFunction, items: Sequence[PoolItem]) -> list[PoolPlan]:
        """Return ``[function(*item) for item in items]``."""
        if self._num_tasks == 1:
            torch.set_num_threads(1)
            return [function(*item) for item in items]
        function_ref: Any = ray.put(Carried(function))
        running: dict[ray.ObjectRef[list[PoolPlan]], int] = {}
        plans: dict[int, list[PoolPlan]] = {}  # by the group's first pool

        def collect() -> None:
            """Wait for a group and collect its plans."""
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                start = running.pop(reference)
                try:
                    plans[start] = ray.get(reference)
                except ray.exceptions.RayError:
                    for other in running:
                        ray.cancel(other)
                    raise

        for start, group in self._groups(len(items)):
            # Prefetch one group: slicing pools out of the embeddings overlaps with the running tasks, and the object
            # store holds at most one group that no task uses yet.
            items_ref: Any = ray.put([items[index] for index in group])
            if len(running) == self._num_tasks:
                collect()
            running[self._task.remote(function_ref, items_ref)] = start
        while running:
            collect()
        return [plan for start in sorted(plans) for plan in plans[start]]

    def _groups(self, num_items: int) -> list[tuple[int, range]]:
        """Split the pools into groups of consecutive ones, each with the index of its first pool."""
        size = max(1, min(MAX_POOLS_PER_TASK, -(-num_items // (MIN_GROUPS_PER_SLOT * self._num_tasks))))
        return [(start, range(start, min(start + size, num_items))) for start in range(0, num_items, size)]


@dataclass(frozen=True)
class WorkerGroup:
    """A group of workers that train together until one is lost; the group that replaces it may be smaller.

    Args:
        name: a unique name.
        size: number of workers, which is the number of shards of the data set.
    """

    name: str
    size: int


class PlannerProcess:
    """Computes the plans of one trial at a time. Its only state is the references to the shards of pending plans.

    Args:
        num_tasks: number of planning tasks of the first trial, whose processes are started at once.
        placement: the nodes that run the tasks.
    """

    def __init__(self, num_tasks: int, placement: Placement = ANYWHERE) -> None:
        mute_sampler_warnings()
        self._group = WorkerGroup("", 0)
        self._placement = placement
        TaskMap(num_tasks, placement).warm_up()
        self._shards: dict[PlanKey, dict[int, ray.ObjectRef[Arrays]]] = {}

    @ray.method(concurrency_group=DEPOSITS)
    def deposit(
        self,
        group: WorkerGroup,
        key: PlanKey,
        rank: int,
        shard: list[ray.ObjectRef[Arrays]],
        pending: Sequence[PlanKey] = (),
    ) -> None:
        """Store the reference to a rank's shard. It comes in a list: Ray would replace a bare reference by its value.

        The rank's shards of plans that are not ``pending`` are dropped, and all shards of other worker groups.
        """
        if group != self._group:
            self._group, self._shards = group, {}
        for other in [other for other in list(self._shards) if other not in (key, *pending)]:
            shards = self._shards.get(other, {})
            shards.pop(rank, None)
            if not shards:
                self._shards.pop(other, None)
        self._shards.setdefault(key, {})[rank] = shard[0]

    def plan(
        self, group: WorkerGroup, key: PlanKey, sampler: Carried, seed: int, num_tasks: int
    ) -> PlannedBatches | MbclError | None:
        """Return the plan of ``key``, the error of planning, or None if shards of the group are missing."""
        shards = dict(self._shards.get(key, {}))
        if group != self._group or len(shards) < group.size:
            return None
        try:
            embeddings = Embeddings.concatenate(
                [Embeddings(*(torch.tensor(a) for a in ray.get(shards[rank]))) for rank in sorted(shards)]
            )
            planned = make_plan(
                sampler.value,
                embeddings,
                key,
                num_samples=len(embeddings),
                seed=seed,
                map_pools=TaskMap(num_tasks, self._placement),
            )
        except Exception as error:
            return failure(cause_of(error))
        if self._shards.get(key) == shards:  # restarted workers may have replaced them meanwhile
            del self._shards[key]
        return planned

    @ray.method(concurrency_group=DEPOSITS)
    def num_shards(self) -> int:
        """Return the number of stored references to shards."""
        return sum(len(shards) for shards in self._shards.values())


def cause_of(error: Exception) -> BaseException:
    """Return the error that a task raised, unwrapped from Ray's, whose message contains a traceback."""
    return error.cause if isinstance(error, ray.exceptions.RayTaskError) else error


_actor: Any = ray.remote  # its type stubs lack concurrency groups
_options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "concurrency_groups": {DEPOSITS: 1}}
PlannerActor = _actor(**_options)(PlannerProcess)
"""A :class:`PlannerProcess` as an actor, which Ray restarts whenever it dies while its owner, a driver, lives."""


class RayPlanService:
    """A rank's client of the planner: a plan service whose plans are computed by an actor.

    Args:
        planner: a :data:`PlannerActor` that makes no plans for another trial.
        world: this rank and the number of ranks.
        seed: the experiment's seed.
        num_tasks: maximum number of planning tasks that run at a time.
    """

    def __init__(self, planner: Any, *, world: World, seed: int, num_tasks: int) -> None:
        self._planner = planner
        self._world = world
        self._seed = seed
        self._num_tasks = num_tasks
        self._group = WorkerGroup(collectives.broadcast_object(uuid.uuid4().hex, world), world.size)
        self._pending: dict[PlanKey, tuple[ray.ObjectRef[Arrays], Sampler]] = {}
        self._plan_refs: dict[PlanKey, ray.ObjectRef[PlannedBatches | MbclError | None]] = {}

    def request(self, key: PlanKey, shard: Embeddings, sampler: Sampler, *, ahead: bool = False) -> None:
        """Put the shard into the object store and deposit it; after all ranks have, rank 0 requests the plan."""
        arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in (shard.z1, shard.z2, shard.indices)]
        self._pending[key] = ray.put(arrays), sampler
        self._deposit(key)

    def receive(self, key: PlanKey) -> PlannedBatches:
        """Wait for the plan; deposit the shards again whenever the planner has lost them.

        Raises:
            PlanError: on all ranks, if planning failed, timed out, or lost its planner too often.
        """
        assert key in self._pending, "receive comes after request"
        planned: PlannedBatches | MbclError | None = None
        num_losses = 0
        deadline = time.monotonic() + PLAN_SECONDS
        while num_losses < MAX_ATTEMPTS:
            state = LOST
            if self._world.rank == 0:
                state, planned = self._poll_plan(key, deadline)
            # A broadcast every round, because a plan may take longer than the timeout of a collective.
            state = collectives.broadcast_object(state, self._world)
            if state == READY:
                break
            if state == LOST:
                num_losses += 1
                logger.warning("the planner of epoch %d lost its shards; they are deposited again", key.epoch)
                self._deposit(key)
        else:
            planned = PlanError(
                f"the planner was lost {MAX_ATTEMPTS} times while it made the plan of epoch {key.epoch}"
            )
        del self._pending[key]
        return share_plan(planned if self._world.rank == 0 else None, self._world)

    def close(self) -> None:
        """Restart the planner if it still plans, because the next trial would wait for plans that nobody needs."""
        if self._plan_refs:
            with suppress(ray.exceptions.RayError):
                ray.kill(self._planner, no_restart=False)

    def _deposit(self, key: PlanKey) -> None:
        """Deposit this rank's shard; rank 0 requests the plan once all ranks have deposited theirs."""
        shard, sampler = self._pending[key]
        deposit = self._planner.deposit.remote(self._group, key, self._world.rank, [shard], tuple(self._pending))
        ray.get(deposit, timeout=DEPOSIT_SECONDS)
        collectives.barrier(self._world)
        if self._world.rank == 0:
            arguments = self._group, key, Carried(sampler), self._seed, self._num_tasks
            self._plan_refs[key] = self._planner.plan.remote(*arguments)

    def _poll_plan(self, key: PlanKey, deadline: float) -> tuple[str, PlannedBatches | MbclError | None]:
        """Wait for the plan for one round; return READY with the plan or its error, WAITING, or LOST."""
        try:
            planned = ray.get(self._plan_refs[key], timeout=collectives.ROUND_SECONDS)
        except ray.exceptions.GetTimeoutError:
            if time.monotonic() < deadline:
                return WAITING, None
            planned = PlanError(f"no plan for epoch {key.epoch}, round {key.round} within {PLAN_SECONDS:g} s")
        except ray.exceptions.RayActorError as error:
            # The actor is restarting and Ray has given up on this call: the plan must be requested again.
            logger.warning("the planner was lost: %s", str(error).splitlines()[0])
            planned = None
        except ray.exceptions.RayError as error:
            planned = failure(cause_of(error))
        del self._plan_refs[key]
        return (LOST, None) if planned is None else (READY, planned)
