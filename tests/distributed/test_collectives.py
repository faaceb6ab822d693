"""Collectives on real gloo processes."""

from __future__ import annotations

import signal

import gloo
import pytest
import torch
from torch import Tensor, nn

from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.errors import DataError, MbclError, TrainingError

# -- a world of one ------------------------------------------------------------------------------------------------


def test_collectives_of_one_rank_are_the_identity():
    world = collectives.init_from_env()
    assert (world.rank, world.size) == (0, 1)
    x = torch.randn(3, 2, requires_grad=True)
    assert collectives.gather_with_grad(x, world) is x
    assert torch.equal(collectives.all_gather_ragged(x, world), x)
    assert not collectives.all_gather_ragged(x, world).requires_grad
    assert torch.equal(collectives.all_reduce_sum(x, world), x)
    assert collectives.broadcast_object({"a": 1}, world) == {"a": 1}
    assert collectives.gather_objects("x", world) == ["x"]
    collectives.barrier(world)
    collectives.raise_on_any_rank(None, world)
    with pytest.raises(DataError, match="gone"):
        collectives.raise_on_any_rank(DataError("gone"), world)


def test_all_reduce_sum_returns_a_new_tensor():
    x = torch.zeros(2)
    collectives.all_reduce_sum(x, World()).add_(1)
    assert torch.equal(x, torch.zeros(2))


# -- collectives ---------------------------------------------------------------------------------------------------


def _collectives(world: World) -> None:
    ranks = list(range(world.size))
    local_rows = torch.arange(world.rank + 1) + 10 * world.rank  # 1, 2, … rows
    all_rows = torch.cat([torch.arange(r + 1) + 10 * r for r in ranks])
    for dtype in (torch.int64, torch.float32, torch.float16, torch.uint8):
        gathered = collectives.all_gather_ragged(local_rows.to(dtype), world)
        assert gathered.dtype == dtype
        assert torch.equal(gathered, all_rows.to(dtype))
    assert torch.equal(collectives.all_gather_ragged(local_rows > 5, world), all_rows > 5)
    wide = local_rows[:, None, None].expand(-1, 2, 3)  # not contiguous
    assert torch.equal(collectives.all_gather_ragged(wide, world), all_rows[:, None, None].expand(-1, 2, 3))
    some_rows = torch.full((world.rank, 2), float(world.rank), requires_grad=True)  # rank 0 holds nothing
    assert not collectives.all_gather_ragged(some_rows, world).requires_grad
    assert len(collectives.all_gather_ragged(some_rows, world)) == sum(ranks)
    assert len(collectives.all_gather_ragged(torch.zeros(0, 4), world)) == 0
    assert int(collectives.all_reduce_sum(torch.tensor(world.rank), world)) == sum(ranks)
    assert collectives.broadcast_object({"from": world.rank, "many": [0] * world.rank}, world) == {
        "from": 0,
        "many": [],
    }
    assert collectives.gather_objects("x" * world.rank, world) == ["x" * r for r in ranks]
    collectives.barrier(world)


@pytest.mark.dist
@pytest.mark.parametrize("size", [2, 4])
def test_collectives_gather_reduce_and_broadcast(size):
    gloo.run(_collectives, size)


def _raise_on_any_rank(world: World, failing: int) -> str:
    collectives.raise_on_any_rank(None, world)
    error = TrainingError("the loss is nan") if world.rank == failing else None
    try:
        collectives.raise_on_any_rank(error, world)
    except MbclError as raised:
        return f"{type(raised).__name__}: {raised}"
    return "went on"


@pytest.mark.dist
def test_raise_on_any_rank_stops_all_ranks():
    assert gloo.run(_raise_on_any_rank, 2, 1) == [
        "TrainingError: rank 1: the loss is nan",
        "TrainingError: the loss is nan",
    ]


def _read_on_rank_1(world: World) -> str:
    def read() -> None:
        if world.rank == 1:
            open("/no/such/file").close()

    try:
        collectives.run_and_sync_errors(read, world)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return "went on"


@pytest.mark.dist
def test_a_read_error_of_one_rank_ends_all():
    error = "[Errno 2] No such file or directory: '/no/such/file'"
    assert gloo.run(_read_on_rank_1, 2) == [f"OSError: rank 1: {error}", f"FileNotFoundError: {error}"]


def _run_while_ranks_wait(world: World) -> list[str]:
    def work(number: int, failing: int) -> int:
        rounds(number * world.rank)
        if world.rank == failing:
            raise DataError("gone")
        return world.rank

    outcomes = []
    with gloo.short_rounds() as rounds:
        for number, failing in ((3, -1), (0, -1), (3, 1), (3, 0)):
            try:
                outcomes.append(
                    str(
                        collectives.run_and_sync_errors(
                            collectives.run_while_ranks_wait, world, work, world, number, failing
                        )
                    )
                )
            except DataError as error:
                outcomes.append(str(error))
    return outcomes


@pytest.mark.dist
def test_run_while_ranks_wait_outlasts_one_collective():
    assert gloo.run(_run_while_ranks_wait, 2) == [
        ["0", "0", "rank 1: gone", "gone"],
        ["1", "1", "gone", "rank 0: gone"],
    ]


def _gather_gradient(world: World, rows: Tensor, weights: Tensor) -> Tensor:
    local = rows.chunk(world.size)[world.rank].clone().requires_grad_()
    gathered = collectives.gather_with_grad(local, world)
    assert torch.equal(gathered, rows)
    # The loss of each rank depends on all rows, with weights of its own.
    (gathered.sin() * weights[world.rank]).sum().backward()
    return local.grad


@pytest.mark.dist
@pytest.mark.parametrize("size", [2, 4])
def test_gather_with_grad_sums_gradients_over_the_ranks(size):
    rows, weights = torch.randn(8, 3, 2, dtype=torch.float64), torch.randn(size, 8, 3, 2, dtype=torch.float64)
    gradient = torch.cat(gloo.run(_gather_gradient, size, rows, weights))
    rows.requires_grad_()
    (rows.sin() * weights.sum(0)).sum().backward()
    torch.testing.assert_close(gradient, rows.grad, rtol=0, atol=1e-12)


def _sum_gradients(world: World) -> list[Tensor | None]:
    everywhere = nn.Parameter(torch.zeros(2, 3))
    everywhere.grad = torch.full((2, 3), world.rank + 1.0)
    last_only, nowhere = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))
    if world.rank == world.size - 1:
        last_only.grad = torch.arange(4.0)
    double = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    double.grad = torch.full((2,), 1e-12 * world.rank, dtype=torch.float64)
    nested = nn.Parameter(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))
    nested.grad = (torch.arange(120.0).view(2, 3, 4, 5) * (world.rank + 1)).to(memory_format=torch.channels_last)
    parameters = (everywhere, last_only, nowhere, double, nested)
    gradient = everywhere.grad
    collectives.sum_gradients((p for p in parameters), world)
    assert everywhere.grad is gradient  # in place
    return [p.grad for p in parameters]


@pytest.mark.dist
@pytest.mark.parametrize("size", [2, 4])
def test_sum_gradients_counts_a_missing_gradient_as_zero(size):
    for everywhere, last_only, nowhere, double, nested in gloo.run(_sum_gradients, size):
        total = size * (size + 1) / 2
        assert torch.equal(everywhere, torch.full((2, 3), total))
        assert torch.equal(last_only, torch.arange(4.0))
        assert nowhere is None
        expected = torch.full((2,), 1e-12 * (total - size), dtype=torch.float64)
        torch.testing.assert_close(double, expected, rtol=1e-12, atol=0)
        assert torch.equal(nested, torch.arange(120.0).view(2, 3, 4, 5) * total)


def test_sum_gradients_of_one_rank_changes_nothing():
    alone = _sum_gradients(World())
    assert torch.equal(alone[0], torch.ones(2, 3))
    assert alone[2] is None


# -- the helper gloo.run -------------------------------------------------------------------------------------------


def _fail_on_rank_one(world: World) -> None:
    if world.rank == 1:
        raise RuntimeError("rank one is broken")
    collectives.barrier(world)


def _fall_silent(world: World) -> None:
    if world.rank == 1:
        signal.pause()


@pytest.mark.dist
def test_gloo_run_shows_the_traceback_of_a_rank_and_recovers():
    with pytest.raises(AssertionError, match="rank 1 of 2 ---[\\s\\S]*rank one is broken"):
        gloo.run(_fail_on_rank_one, 2)
    with pytest.raises(AssertionError, match=r"no answer within 1 s from ranks \[(0, )?1\]"):
        gloo.run(_fall_silent, 2, timeout=1)  # rank 0 may be slow, too
    gloo.run(_collectives, 2)
