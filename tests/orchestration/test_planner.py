"""The planner on a real Ray: the serial plan whatever happens to it."""

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

from mbcl import samplers
from mbcl.dist import World
from mbcl.engine import LocalPlanService, PlanKey
from mbcl.errors import PlanError
from mbcl.plan import Embeddings
from mbcl.samplers import Spectral

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
    service = LocalPlanService(sampler, num_samples=len(embeddings), seed=seed, world=World())
    service.request(key, embeddings)
    return service.receive(key)


@pytest.fixture
def start(local_ray):
    from mbcl.orchestration.planner import PlannerActor

    planners = []

    def make(sampler=SPECTRAL, num_ranks=1, num_tasks=2):
        planners.append(PlannerActor.remote(sampler, 5, num_ranks, num_tasks))
        return planners[-1]

    yield make
    for planner in planners:
        ray.kill(planner)


def service_of(planner, sampler=SPECTRAL):
    from mbcl.orchestration.planner import RayPlanService

    return RayPlanService(planner, sampler=sampler.name, seed=5, world=World())


def kill_process(planner) -> int:
    pid = ray.get(planner.__ray_call__.remote(lambda actor: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    return pid


def shard(embeddings: Embeddings, rows: slice) -> list:
    arrays = [t[rows].numpy() for t in (embeddings.z1, embeddings.z2, embeddings.indices)]
    return [ray.put(arrays)]


@pytest.mark.parametrize("num_tasks", [1, 3])
@pytest.mark.parametrize(
    "sampler", [SPECTRAL, samplers.build("osgd", batch_size=16, k=50, q=5)], ids=lambda sampler: sampler.name
)
def test_tasks_make_the_serial_plan(start, embeddings, sampler, num_tasks):
    service = service_of(start(sampler, num_tasks=num_tasks), sampler)
    service.request(KEY, embeddings)
    planned = service.receive(KEY)
    expected = serial(sampler, embeddings)
    assert torch.equal(planned.plan.batches, expected.plan.batches)
    assert (planned.loss, planned.lift) == (expected.loss, expected.lift)
    assert (planned.plan.epoch, planned.plan.round, planned.plan.seed) == (3, 1, 5)
    assert planned.seconds > 0


def test_shards_of_two_ranks_in_any_order(start, embeddings):
    planner = start(num_ranks=2)
    ray.get(planner.deposit.remote(KEY, 1, shard(embeddings, slice(2500, None))))
    assert ray.get(planner.plan.remote(KEY)) is None, "a shard is missing: the planner must not wait for it"
    ray.get(planner.deposit.remote(KEY, 0, shard(embeddings, slice(0, 2500))))
    planned = ray.get(planner.plan.remote(KEY))
    assert planned.plan.digest == serial(SPECTRAL, embeddings).plan.digest
    assert ray.get(planner.held.remote()) == 0, "the planner holds no more than it needs"


def test_shards_of_a_lost_epoch_are_dropped(start, embeddings):
    planner = start(num_ranks=2)
    for epoch in range(4):
        ray.get(planner.deposit.remote(PlanKey(epoch, 0), 0, shard(embeddings, slice(0, 10))))
    assert ray.get(planner.held.remote()) == 1


def test_killed_between_deposit_and_plan(start, embeddings):
    planner = start()
    ray.get(planner.deposit.remote(KEY, 0, shard(embeddings, slice(None))))
    kill_process(planner)
    assert ray.get(planner.plan.remote(KEY), timeout=60) is None, "restarted: it says that the shards are gone"
    service = service_of(planner)
    service.request(KEY, embeddings)
    assert service.receive(KEY).plan.digest == serial(SPECTRAL, embeddings).plan.digest


class Gate:
    """Lets nothing through until it is opened, and says who arrived."""

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
    """Ray's processes cannot import this module: what it defines travels whole."""
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


def test_killed_while_planning(start, embeddings, by_value):
    gate = ray.remote(num_cpus=0, max_concurrency=100)(Gate).remote()
    sampler = Gated(batch_size=16, k=8, gate=gate)
    planner = start(sampler)
    first = ray.get(planner.__ray_call__.remote(lambda actor: os.getpid()))
    service = service_of(planner, sampler)
    service.request(KEY, embeddings)
    ray.get(gate.wait_for_arrival.remote(), timeout=60)
    os.kill(first, signal.SIGKILL)
    ray.get(gate.let_through.remote())
    planned = service.receive(KEY)
    assert planned.plan.digest == serial(SPECTRAL, embeddings).plan.digest
    assert ray.get(planner.__ray_call__.remote(lambda actor: os.getpid())) != first
    ray.kill(gate)


def test_a_plan_that_takes_longer_than_a_round(start, embeddings, monkeypatch):
    from mbcl.orchestration import planner as module

    monkeypatch.setattr(module, "ROUND_SECONDS", 0.01)
    service = service_of(start())
    told = []
    broadcast = module.dist.broadcast_object
    monkeypatch.setattr(module.dist, "broadcast_object", lambda x, world: told.append(x) or broadcast(x, world))
    service.request(KEY, embeddings)
    assert service.receive(KEY).plan.digest == serial(SPECTRAL, embeddings).plan.digest
    assert told.count("waiting") >= 1
    assert set(told) == {"waiting", "ready"}
    monkeypatch.setattr(module, "PLAN_SECONDS", 0.05)
    service.request(KEY, embeddings)
    with pytest.raises(PlanError, match=r"no plan for epoch 3, round 1 within 0.05 s"):
        service.receive(KEY)


def test_what_cannot_be_planned_is_an_error_not_a_retry(start, embeddings):
    sampler = samplers.build("osgd", batch_size=16, k=1000, q=1)
    service = service_of(start(sampler), sampler)
    service.request(KEY, embeddings)
    with pytest.raises((PlanError, ValueError), match="k"):
        service.receive(KEY)
