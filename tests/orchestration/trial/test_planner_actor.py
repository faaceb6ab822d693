"""The planner on a real Ray: it makes the serial plan, also after its process was killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from patience import PATIENCE

from mbcl import samplers
from mbcl.config.experiment import Experiment
from mbcl.distributed.collectives import World
from mbcl.errors import PlanError
from mbcl.io.store import LocalStore
from mbcl.plan import Embeddings
from mbcl.planner import LocalPlanService, PlanKey
from mbcl.plugins import Carried
from mbcl.samplers import Spectral

from ..helpers import SPACE, job_of

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")

NUM_SAMPLES = 6000
KEY = PlanKey(epoch=3, round=1)


@pytest.fixture(scope="module")
def embeddings() -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    z1 = torch.randn(NUM_SAMPLES, 16, generator=generator)
    return Embeddings(z1, z1 + 0.3 * torch.randn(NUM_SAMPLES, 16, generator=generator))


SPECTRAL = samplers.build("spectral", batch_size=16, k=8)


def serial(sampler, embeddings, key=KEY, seed=5):
    service = LocalPlanService(num_samples=len(embeddings), seed=seed, world=World())
    service.request(key, embeddings, sampler)
    return service.receive(key)


@pytest.fixture
def start(local_ray):
    """Starts planners, for tests that kill them."""
    from mbcl.orchestration.trial.planner_actor import PlannerActor

    planners = []

    def make(num_tasks=1):
        planners.append(PlannerActor.remote(num_tasks))
        return planners[-1]

    yield make
    for planner in planners:
        ray.kill(planner)


@pytest.fixture(scope="module")
def planner(local_ray):
    """One planner for all tests that do not kill it: another worker group drops the shards of the last test."""
    from mbcl.orchestration.trial.planner_actor import PlannerActor

    planner = PlannerActor.remote(1)
    yield planner
    ray.kill(planner)


def service_of(planner, num_tasks=1):
    from mbcl.orchestration.trial.planner_actor import RayPlanService

    return RayPlanService(planner, world=World(), seed=5, num_tasks=num_tasks)


def kill_process(planner) -> int:
    pid = ray.get(planner.__ray_call__.remote(lambda actor: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    return pid


def shard(embeddings: Embeddings, rows: slice) -> list:
    arrays = [t[rows].numpy() for t in (embeddings.z1, embeddings.z2, embeddings.indices)]
    return [ray.put(arrays)]


@pytest.mark.parametrize("num_tasks", [1, 4])
def test_planner_tasks_make_the_serial_plan(start, embeddings, num_tasks):
    """Several plans are requested from one planner before the first is received."""
    service = service_of(start(num_tasks=num_tasks), num_tasks)
    samplers_by_key = {
        KEY: SPECTRAL,
        PlanKey(3, 2, rounds=2): samplers.build("osgd", batch_size=16, k=50, q=5),
        PlanKey(4, 0): samplers.build("spectral", batch_size=16, k=4, skip=2),
        PlanKey(5, 0): samplers.with_groups(
            samplers.build("kmeans", batch_size=16, pool=320, community=4, relative_margin=0.2),
            apart=torch.arange(NUM_SAMPLES) // 3,
            together=["a", "b", "c"] * (NUM_SAMPLES // 3),
        ),
    }
    for key, sampler in samplers_by_key.items():
        service.request(key, embeddings, sampler)
    for key, sampler in reversed(samplers_by_key.items()):
        planned, expected = service.receive(key), serial(sampler, embeddings, key)
        assert torch.equal(planned.plan.batches, expected.plan.batches)
        assert (planned.loss, planned.lift) == (expected.loss, expected.lift)
        assert (planned.plan.epoch, planned.plan.round, planned.plan.seed) == (key.epoch, key.round, 5)
        assert planned.plan.conflicts == expected.plan.conflicts
        assert planned.seconds > 0


@pytest.mark.parametrize("num_tasks", [1, 2, 4, 50])
@pytest.mark.parametrize("num_items", [0, 1, 5, 39, 500])
def test_task_map_groups_all_pools_in_order_and_evenly(num_items, num_tasks):
    from mbcl.orchestration.trial.planner_actor import MAX_POOLS_PER_TASK, TaskMap

    groups = TaskMap(num_tasks)._groups(num_items)
    assert [index for _, group in groups for index in group] == list(range(num_items))
    sizes = [len(group) for _, group in groups]
    assert all(start == group[0] for start, group in groups)
    assert max(sizes, default=0) <= MAX_POOLS_PER_TASK
    # The load of the busiest task, if groups are assigned one by one to tasks of equal speed.
    busy = [0] * num_tasks
    for size in sizes:
        busy[busy.index(min(busy))] += size
    if (num_items, num_tasks) == (39, 2):
        assert 39 / max(busy) >= 1.7


def group(size, name="first"):
    from mbcl.orchestration.trial.planner_actor import WorkerGroup

    return WorkerGroup(name, size)


def test_planner_accepts_the_shards_of_two_ranks_in_any_order(planner, embeddings):
    two = group(2)
    ray.get(planner.deposit.remote(two, KEY, 1, shard(embeddings, slice(2500, None))))
    missing = ray.get(planner.plan.remote(two, KEY, Carried(SPECTRAL), 5, 1))
    assert missing is None, "a shard is missing: the planner must not wait for it"
    ray.get(planner.deposit.remote(two, KEY, 0, shard(embeddings, slice(0, 2500))))
    planned = ray.get(planner.plan.remote(two, KEY, Carried(SPECTRAL), 5, 1))
    assert planned.plan.digest == serial(SPECTRAL, embeddings).plan.digest
    assert ray.get(planner.num_shards.remote()) == 0, "the planner holds no more than it needs"


def test_planner_drops_the_shards_of_a_lost_worker_group(planner, embeddings):
    """After the loss of a node a trial continues with fewer workers, and a late deposit of the old group may arrive."""
    two, one = group(2, "lost"), group(1, "second")
    ray.get(planner.deposit.remote(two, KEY, 1, shard(embeddings, slice(2500, None))))
    ray.get(planner.deposit.remote(one, KEY, 0, shard(embeddings, slice(None))))
    assert ray.get(planner.plan.remote(two, KEY, Carried(SPECTRAL), 5, 1)) is None
    late = planner.deposit.remote(two, KEY, 0, shard(embeddings, slice(0, 2500)))
    ray.get(late)
    assert ray.get(planner.plan.remote(one, KEY, Carried(SPECTRAL), 5, 1)) is None, (
        "the planner asks for the shard again"
    )
    ray.get(planner.deposit.remote(one, KEY, 0, shard(embeddings, slice(None))))
    planned = ray.get(planner.plan.remote(one, KEY, Carried(SPECTRAL), 5, 1))
    assert planned.plan.digest == serial(SPECTRAL, embeddings).plan.digest


def test_planner_drops_the_shards_of_a_lost_epoch(planner, embeddings):
    for epoch in range(4):
        ray.get(planner.deposit.remote(group(2, "long"), PlanKey(epoch, 0), 0, shard(embeddings, slice(0, 10))))
    assert ray.get(planner.num_shards.remote()) == 1


def test_planner_killed_between_deposit_and_plan_gets_the_shards_again(start, embeddings):
    planner = start()
    ray.get(planner.deposit.remote(group(1), KEY, 0, shard(embeddings, slice(None))))
    kill_process(planner)
    answer = ray.get(planner.plan.remote(group(1), KEY, Carried(SPECTRAL), 5, 1), timeout=PATIENCE)
    assert answer is None, "restarted: it says that the shards are gone"
    service = service_of(planner)
    service.request(KEY, embeddings, SPECTRAL)
    assert service.receive(KEY).plan.digest == serial(SPECTRAL, embeddings).plan.digest


class Gate:
    """Blocks tasks until it is opened, and signals the first arrival."""

    def __init__(self) -> None:
        self.arrived, self.open = threading.Event(), threading.Event()

    def arrive(self) -> None:
        self.arrived.set()
        self.open.wait()

    def wait_for_arrival(self) -> None:
        self.arrived.wait()

    def let_through(self) -> None:
        self.open.set()


@dataclass(frozen=True, kw_only=True)
class Gated(Spectral):
    """A sampler whose pools wait at a gate."""

    gate: Any = None

    def plan_one(self, z1_MD, z2_MD, seed):
        ray.get(self.gate.arrive.remote())
        return super().plan_one(z1_MD, z2_MD, seed)


@pytest.fixture
def by_value() -> Iterator[None]:
    """Processes of Ray cannot import this module: its classes are pickled by value."""
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


def test_planner_killed_while_planning_makes_the_plan_again(start, embeddings, by_value):
    gate = ray.remote(num_cpus=0, max_concurrency=100)(Gate).remote()
    sampler = Gated(batch_size=16, k=8, gate=gate)
    planner = start()
    first = ray.get(planner.__ray_call__.remote(lambda actor: os.getpid()))
    service = service_of(planner)
    service.request(KEY, embeddings, sampler)
    ray.get(gate.wait_for_arrival.remote(), timeout=PATIENCE)
    os.kill(first, signal.SIGKILL)
    ray.get(gate.let_through.remote())
    planned = service.receive(KEY)
    assert planned.plan.digest == serial(SPECTRAL, embeddings).plan.digest
    assert ray.get(planner.__ray_call__.remote(lambda actor: os.getpid())) != first
    ray.kill(gate)


def test_planner_killed_with_two_requested_plans_makes_both_again(start, embeddings, by_value):
    """As with overlap: plans are requested long before they are received, and all are lost with the planner."""
    gate = ray.remote(num_cpus=0, max_concurrency=100)(Gate).remote()
    planner, sampler, second = start(), Gated(batch_size=16, k=8, gate=gate), PlanKey(4, 0)
    first_process = ray.get(planner.__ray_call__.remote(lambda actor: os.getpid()))
    service = service_of(planner)
    service.request(KEY, embeddings, sampler)
    ray.get(gate.wait_for_arrival.remote(), timeout=PATIENCE)
    service.request(second, embeddings, SPECTRAL)
    num_held = ray.get(planner.num_shards.remote(), timeout=PATIENCE)
    assert num_held == 2, "deposits are taken while a plan is made, and asking for plans waits for none"
    os.kill(first_process, signal.SIGKILL)
    ray.get(gate.let_through.remote())
    for key in (KEY, second):
        assert service.receive(key).plan.digest == serial(SPECTRAL, embeddings, key).plan.digest
    assert ray.get(planner.num_shards.remote()) == 0
    ray.kill(gate)


def test_ray_plan_service_closed_with_a_requested_plan_frees_the_planner(start, embeddings, by_value):
    """A trial that was stopped must not keep the planner of the next one busy."""
    gate = ray.remote(num_cpus=0, max_concurrency=100)(Gate).remote()
    planner = start()
    stopped = service_of(planner)
    stopped.request(KEY, embeddings, Gated(batch_size=16, k=8, gate=gate), ahead=True)
    ray.get(gate.wait_for_arrival.remote(), timeout=PATIENCE)
    stopped.close()
    service = service_of(planner)
    service.request(KEY, embeddings, SPECTRAL)
    planned = service.receive(KEY)
    assert planned.plan.digest == serial(SPECTRAL, embeddings).plan.digest
    first = ray.get(planner.__ray_call__.remote(lambda actor: os.getpid()))
    service.close()
    assert ray.get(planner.__ray_call__.remote(lambda actor: os.getpid())) == first, "an idle planner goes on"
    ray.kill(gate)


@dataclass(frozen=True, kw_only=True)
class Failing(Spectral):
    """A sampler that fails in the process that plans a pool."""

    expected: bool = True

    def plan_one(self, z1_MD, z2_MD, seed):
        raise PlanError("no such pool") if self.expected else ValueError("two\nlines")


@pytest.mark.parametrize(
    "expected,words", [(True, "^no such pool$"), (False, "^planning failed: ValueError: two lines$")]
)
def test_ray_plan_service_reports_the_error_of_a_task_in_one_line(
    planner, embeddings, by_value, monkeypatch, expected, words
):
    """Only rank 0 receives the error; its broadcast must end the wait of the other ranks."""
    from mbcl.orchestration.trial import planner_actor as module

    messages = []
    service = service_of(planner)
    broadcast = module.collectives.broadcast_object
    monkeypatch.setattr(
        module.collectives, "broadcast_object", lambda x, world: messages.append(x) or broadcast(x, world)
    )
    service.request(KEY, embeddings, Failing(batch_size=16, k=8, expected=expected))
    with pytest.raises(PlanError, match=words):
        service.receive(KEY)
    assert messages == ["ready"]


def test_ray_plan_service_waits_in_rounds_up_to_its_limit(start, embeddings, by_value, monkeypatch):
    from mbcl.orchestration.trial import planner_actor as module

    monkeypatch.setattr(module.collectives, "ROUND_SECONDS", 0.01)
    gate, closed = (ray.remote(num_cpus=0, max_concurrency=100)(Gate).remote() for _ in range(2))
    service, messages = service_of(start()), []
    broadcast = module.collectives.broadcast_object

    def recorded_broadcast(x, world):
        messages.append(x)
        if x == "waiting":
            gate.let_through.remote()
        return broadcast(x, world)

    monkeypatch.setattr(module.collectives, "broadcast_object", recorded_broadcast)
    service.request(KEY, embeddings, Gated(batch_size=16, k=8, gate=gate))
    assert service.receive(KEY).plan.digest == serial(SPECTRAL, embeddings).plan.digest
    assert messages.count("waiting") >= 1
    assert set(messages) == {"waiting", "ready"}
    monkeypatch.setattr(module, "PLAN_SECONDS", 0.05)
    monkeypatch.setattr(module.collectives, "broadcast_object", broadcast)
    service.request(KEY, embeddings, Gated(batch_size=16, k=8, gate=closed))
    with pytest.raises(PlanError, match=r"no plan for epoch 3, round 1 within 0.05 s"):
        service.receive(KEY)
    ray.kill(gate)
    ray.kill(closed)


def test_ray_plan_service_raises_plan_errors_without_a_retry(planner, embeddings):
    sampler = samplers.build("osgd", batch_size=16, k=1000, q=1)
    service = service_of(planner)
    service.request(KEY, embeddings, sampler)
    with pytest.raises((PlanError, ValueError), match="k"):
        service.receive(KEY)


def test_planner_of_a_process_stays_until_a_failure_ends_it(local_ray, tmp_path):
    from mbcl.orchestration.cluster.capacity import TrialResources
    from mbcl.orchestration.trial import pretraining

    experiment = Experiment.model_validate(SPACE["experiment"] | {"sampler": {"name": "spectral", "k": 4}})
    jobs = [
        job_of("0-test", experiment, LocalStore(tmp_path), TrialResources(1, 1, 0, 1), num_tasks=num_tasks)
        for num_tasks in (1, 2)
    ]
    first, second = (pretraining._planner_of(job, experiment) for job in jobs)
    assert first is second, "each request says how many tasks it may take"
    pretraining._end_planner()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(first.__ray_ready__.remote())
    assert pretraining._planner_of(jobs[0], experiment) is not first
    pretraining._end_planner()
