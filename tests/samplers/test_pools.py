"""Pools: cut, made lazily and merged."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from patience import PATIENCE
from threadpoolctl import threadpool_info, threadpool_limits

from mbcl.errors import PlanError
from mbcl.plan import Embeddings
from mbcl.samplers import FloatArray, PoolFunction, PoolItems, PoolPlan, PoolSampler, build
from mbcl.samplers._threads import one_thread


@dataclass(frozen=True, kw_only=True)
class Blocks(PoolSampler):
    """Pools of 6 samples, consecutive batches, and a fault to inject."""

    name: ClassVar[str] = "blocks"

    fault: str = ""

    def plan_length(self, num_samples: int) -> int:
        return (num_samples // 6) * (6 // self.batch_size)

    def pool_sizes(self, num_samples: int) -> list[int]:
        return [6] * (num_samples // 6)

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        rows = np.arange(6, dtype=np.int64).reshape(-1, self.batch_size)
        scores = np.full(len(rows), float(seed % 97))
        if self.fault == "shape":
            rows = rows.reshape(-1)
        elif self.fault == "repeat":
            rows = np.zeros_like(rows)
        elif self.fault == "short":
            rows, scores = rows[:1], scores[:1]
        elif self.fault == "negative":
            rows = rows - 1
        elif self.fault == "foreign":
            rows = rows + 1
        elif self.fault == "float":
            rows = rows.astype(np.float64)
        elif self.fault == "nan":
            scores = scores * np.nan
        return PoolPlan(rows, scores)


def random_embeddings(num_samples: int = 20) -> Embeddings:
    z = torch.randn(num_samples, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    return Embeddings(z, z + 1)


def test_pool_sampler_merges_pools_in_order() -> None:
    seen = []

    def spy(function: PoolFunction, items: PoolItems) -> list[PoolPlan]:  # type: ignore[override]
        seen.extend(items)
        return [function(*item) for item in items]

    embeddings = random_embeddings()
    plan = Blocks(batch_size=3).plan(20, embeddings, map_pools=spy)  # type: ignore[arg-type]
    assert plan.batches.shape == (6, 3)
    assert len({seed for _, _, seed in seen}) == 3
    for pool, (z1, z2, seed) in enumerate(seen):
        positions = plan.batches[2 * pool : 2 * pool + 2].flatten()
        np.testing.assert_array_equal(z1, embeddings.z1.detach()[positions].numpy())
        np.testing.assert_array_equal(z2, embeddings.z2.detach()[positions].numpy())
        assert z1.flags.c_contiguous
        assert plan.scores is not None
        assert plan.scores[2 * pool : 2 * pool + 2].tolist() == [seed % 97] * 2


def test_pool_items_are_made_lazily() -> None:
    class Counting(Embeddings):
        pass

    pools = [np.array([0, 1]), np.array([2, 3]), np.array([4, 5])]
    items = PoolItems(random_embeddings(6), pools, [7, 8, 9])
    assert len(items) == 3
    assert [seed for _, _, seed in items[1:]] == [8, 9]
    assert items[0][0] is not items[0][0]
    with pytest.raises(IndexError):
        items[3]


@pytest.mark.parametrize(
    "fault,match",
    [
        ("shape", "a pool's batches have shape"),
        ("repeat", "holds a sample twice"),
        ("short", "3 batches instead of 6"),
        *((fault, "rows that are not in 0..5") for fault in ("negative", "foreign", "float")),
        ("nan", "score of a batch is not finite"),
    ],
)
def test_pool_sampler_refuses_faulty_pool_plans(fault: str, match: str) -> None:
    with pytest.raises(PlanError, match=match):
        Blocks(batch_size=3, fault=fault).plan(20, random_embeddings())


def thread_counts() -> list[int]:
    return [torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    with threadpool_limits(2):
        torch.set_num_threads(2)
        yield
    torch.set_num_threads(before)


def test_one_thread_limits_threads_and_restores_their_number(two_threads: None) -> None:
    before = thread_counts()
    assert 2 in before
    with one_thread():
        assert set(thread_counts()) == {1}
        with one_thread():
            pass
        assert set(thread_counts()) == {1}
    assert thread_counts() == before
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert thread_counts() == before


def test_one_thread_excludes_other_threads(two_threads: None) -> None:
    """Without a lock, the first thread to leave would lift the other's limit, and the other would leave 1 for good."""
    before = thread_counts()
    entered = threading.Event()

    def second() -> int:
        with one_thread():
            entered.set()
            return torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        with one_thread():
            done = pool.submit(second)
            assert not entered.wait(0.2)
            assert set(thread_counts()) == {1}
        assert done.result(PATIENCE) == 1
    assert thread_counts() == before


@pytest.mark.parametrize(
    "name,parameters", [("spectral", {"k": 1}), ("kmeans", {"pool": 9}), ("osgd", {"k": 1, "q": 1})]
)
def test_check_warns_about_pools_of_one_batch(name: str, parameters: dict[str, int]) -> None:
    sampler = build(name, batch_size=8, **parameters)
    with pytest.warns(UserWarning, match=f"sampler '{name}': every pool is a single batch of 8 samples"):
        sampler.check(24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.check(15)  # one pool of one batch: no other choice exists
