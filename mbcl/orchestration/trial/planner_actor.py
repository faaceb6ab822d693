"""The planner: one actor a trial, off the training workers, that plans pools as parallel Ray tasks.

Protocol. Every rank puts its shard of the embeddings into the object store and deposits the reference; the ranks meet
at a barrier; rank 0 asks for the plan. An actor that was killed and restarted in between has lost the references and
says so instead of waiting; then every rank deposits again the reference that it still holds. A plan is a pure function
of sampler, embeddings, seed, epoch and round, so the second attempt gives the same plan as the first would have.

A plan may be asked for long before it is received. Deposits are taken while the actor plans, so asking never waits.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import ray
import torch

from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine.plan_service import failure, make_plan, share_plan
from mbcl.engine.protocols import PlanKey, PlannedBatches
from mbcl.errors import MbclError, PlanError
from mbcl.orchestration.cluster.placement import Placement
from mbcl.orchestration.trial.job import mute_sampler_warnings
from mbcl.plan import Embeddings
from mbcl.samplers import PoolPlan, Sampler
from mbcl.samplers._base import FloatArray, PoolItem

logger = logging.getLogger(__name__)

TRIES = 20
"""How often a plan is asked for again after its planner was lost."""
ANSWER_SECONDS = 120.0
"""How long a restarting planner may take to take a shard."""
PLAN_SECONDS = 3600.0
"""How long one plan may take."""
TASK_RETRIES = 5
"""How often pools are planned again after their process died."""
READY, WAITING, LOST = "ready", "waiting", "lost"
"""What rank 0 tells the others about a plan."""
POOLS_A_TASK = 16
"""At most this many pools travel to a task together: a task costs 2 ms, a pool of 128 samples plans in about that."""
GROUPS_A_TASK = 4
"""How often each of the tasks gets pools at least, so that none is left with many while the others have none."""
DEPOSITS = "deposits"
"""The threads of the actor that take shards while its other one plans."""

ANYWHERE = Placement()

Arrays = list[npt.NDArray[Any]]
"""A shard of embeddings as NumPy arrays: both views and the positions."""
PoolFunction = Callable[[FloatArray, FloatArray, int], PoolPlan]


@ray.remote(num_cpus=0, max_retries=TASK_RETRIES)
def _plan_pools(function: PoolFunction | None, items: list[PoolItem]) -> list[PoolPlan]:
    """Plan some pools in a process of their own, on one thread."""
    torch.set_num_threads(1)
    if function is None:  # only to start the process
        return []
    return [function(*item) for item in items]


class TaskMap:
    """Maps a function over pools in Ray tasks: at most ``num_tasks`` in flight, results in order.

    Args:
        num_tasks: how many run at a time; the results do not depend on it.
        placement: which nodes they run on.
    """

    def __init__(self, num_tasks: int, placement: Placement = ANYWHERE) -> None:
        self._num_tasks = max(1, num_tasks)
        self._task = _plan_pools.options(resources=placement.for_task)

    def warm_up(self) -> None:
        """Start the processes that will plan, while the trial's workers start: each imports torch for some seconds."""
        for _ in range(self._num_tasks):
            self._task.remote(None, [])

    def __call__(self, function: PoolFunction, items: Sequence[PoolItem]) -> list[PoolPlan]:
        """``[function(*item) for item in items]``."""
        shared: Any = ray.put(function)
        running: dict[ray.ObjectRef[list[PoolPlan]], int] = {}
        done: dict[int, list[PoolPlan]] = {}

        def collect() -> None:
            """Take what is done, at least one group."""
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                start = running.pop(reference)
                try:
                    done[start] = ray.get(reference)
                except ray.exceptions.RayError:
                    for other in running:
                        ray.cancel(other)
                    raise

        for start, group in self._groups(len(items)):
            # Pools are cut out of the embeddings one group ahead: no task waits for it, and no more of them lie about.
            next_: Any = ray.put([items[index] for index in group])
            if len(running) == self._num_tasks:
                collect()
            running[self._task.remote(shared, next_)] = start
        while running:
            collect()
        return [plan for start in sorted(done) for plan in done[start]]

    def _groups(self, num_items: int) -> list[tuple[int, range]]:
        """Neighbouring pools that one task plans, with the first of them."""
        size = max(1, min(POOLS_A_TASK, -(-num_items // (GROUPS_A_TASK * self._num_tasks))))
        return [(start, range(start, min(start + size, num_items))) for start in range(0, num_items, size)]


@dataclass(frozen=True)
class WorkerGroup:
    """Workers that train together, until one of them is lost; those that go on may be fewer.

    Args:
        name: unlike that of any other group.
        size: how many shards make the data set.
    """

    name: str
    size: int


class PlannerProcess:
    """Makes the plans of one trial. Holds the shards' references until their plan is made, and nothing else.

    Args:
        seed: the experiment's.
        num_tasks: how many pools are planned at a time.
        placement: which nodes plan them.
    """

    def __init__(self, seed: int, num_tasks: int, placement: Placement = ANYWHERE) -> None:
        mute_sampler_warnings()
        self._seed = seed
        self._group = WorkerGroup("", 0)
        self._map = TaskMap(num_tasks, placement)
        self._map.warm_up()
        self._shards: dict[PlanKey, dict[int, ray.ObjectRef[Arrays]]] = {}

    @ray.method(concurrency_group=DEPOSITS)
    def deposit(
        self,
        group: WorkerGroup,
        key: PlanKey,
        rank: int,
        shard: list[ray.ObjectRef[Arrays]],
        wanted: Sequence[PlanKey] = (),
    ) -> None:
        """Remember where a rank's shard lies.

        Its shards of other plans are dropped, but for those ``wanted``, and all those of other groups of workers.
        """
        if group != self._group:
            self._group, self._shards = group, {}
        for old in [held for held in list(self._shards) if held not in (key, *wanted)]:
            shards = self._shards.get(old, {})
            shards.pop(rank, None)
            if not shards:
                self._shards.pop(old, None)
        self._shards.setdefault(key, {})[rank] = shard[0]

    def plan(self, group: WorkerGroup, key: PlanKey, sampler: Sampler) -> PlannedBatches | MbclError | None:
        """The plan of ``key``, the reason why there cannot be one, or None if the group's shards are missing."""
        held = dict(self._shards.get(key, {}))
        if group != self._group or len(held) < group.size:
            return None
        try:
            embeddings = Embeddings.concatenate(
                [Embeddings(*(torch.tensor(a) for a in ray.get(held[rank]))) for rank in sorted(held)]
            )
            planned = make_plan(
                sampler,
                embeddings,
                key,
                num_samples=len(embeddings),
                seed=self._seed,
                map_pools=self._map,
            )
        except Exception as error:
            return failure(cause_of(error))
        if self._shards.get(key) == held:  # not those of ranks that began anew meanwhile
            del self._shards[key]
        return planned

    @ray.method(concurrency_group=DEPOSITS)
    def held(self) -> int:
        """How many shards are remembered."""
        return sum(len(shards) for shards in self._shards.values())


def cause_of(error: Exception) -> BaseException:
    """What was raised in a task, without what Ray adds to its text."""
    return error.cause if isinstance(error, ray.exceptions.RayTaskError) else error


_actor: Any = ray.remote  # whose own types know no concurrency groups
_options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "concurrency_groups": {DEPOSITS: 1}}
PlannerActor = _actor(**_options)(PlannerProcess)
"""A :class:`PlannerProcess` in a process of its own, started again whenever it dies, as long as its trial lives."""


class RayPlanService:
    """A rank's side of the planner: a plan service whose plans are made elsewhere.

    Args:
        planner: the trial's :data:`PlannerActor`.
        world: this rank and the number of ranks.
    """

    def __init__(self, planner: Any, *, world: World) -> None:
        self._planner = planner
        self._world = world
        self._group = WorkerGroup(collectives.broadcast_object(uuid.uuid4().hex, world), world.size)
        self._held: dict[PlanKey, tuple[ray.ObjectRef[Arrays], Sampler]] = {}
        self._asked: dict[PlanKey, ray.ObjectRef[PlannedBatches | MbclError | None]] = {}

    def request(self, key: PlanKey, shard: Embeddings, sampler: Sampler, *, ahead: bool = False) -> None:
        """Put the shard into the object store, deposit it, and (rank 0, when all have) ask for the plan."""
        arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in (shard.z1, shard.z2, shard.indices)]
        self._held[key] = ray.put(arrays), sampler
        self._deposit(key)

    def receive(self, key: PlanKey) -> PlannedBatches:
        """Wait for the plan; deposit again as often as the planner lost the shards.

        Raises:
            PlanError: on every rank alike, if there is no plan.
        """
        assert key in self._held, "receive comes after request"
        planned: PlannedBatches | MbclError | None = None
        lost = 0
        end = time.monotonic() + PLAN_SECONDS
        while lost < TRIES:
            state = LOST
            if self._world.rank == 0:
                state, planned = self._answer(key, end)
            # The others meet rank 0 here every round: no collective lasts as long as a plan may.
            state = collectives.broadcast_object(state, self._world)
            if state == READY:
                break
            if state == LOST:
                lost += 1
                logger.warning("the planner of epoch %d lost its shards; they are deposited again", key.epoch)
                self._deposit(key)
        else:
            planned = PlanError(f"the planner was lost {TRIES} times while it made the plan of epoch {key.epoch}")
        del self._held[key]
        return share_plan(planned if self._world.rank == 0 else None, self._world)

    def close(self) -> None:
        """Nothing is held beyond a plan; the trial ends its planner itself."""

    def _deposit(self, key: PlanKey) -> None:
        shard, sampler = self._held[key]
        deposited = self._planner.deposit.remote(self._group, key, self._world.rank, [shard], tuple(self._held))
        ray.get(deposited, timeout=ANSWER_SECONDS)
        collectives.barrier(self._world)
        if self._world.rank == 0:
            self._asked[key] = self._planner.plan.remote(self._group, key, sampler)

    def _answer(self, key: PlanKey, end: float) -> tuple[str, PlannedBatches | MbclError | None]:
        """What became of the plan within a round: READY with a plan or the reason for none, WAITING or LOST."""
        asked = self._asked[key]
        try:
            answer = ray.get(asked, timeout=collectives.ROUND_SECONDS)
        except ray.exceptions.GetTimeoutError:
            if time.monotonic() < end:
                return WAITING, None
            answer = PlanError(f"no plan for epoch {key.epoch}, round {key.round} within {PLAN_SECONDS:g} s")
        except ray.exceptions.RayActorError as error:
            # Only while the actor restarts and Ray has given up on this call: ask again.
            logger.warning("the planner was lost: %s", str(error).splitlines()[0])
            answer = None
        except ray.exceptions.RayError as error:
            answer = failure(cause_of(error))
        del self._asked[key]
        return (LOST, None) if answer is None else (READY, answer)
