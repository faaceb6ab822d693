"""Local process groups."""

from __future__ import annotations

import pytest

from mbcl.distributed import collectives
from mbcl.distributed.launch import launch
from mbcl.errors import ConfigError


def _rank_size_and_argument(world, number):
    collectives.barrier(world)
    return world.rank, world.size, number


def _rank_one_fails(world):
    if world.rank == 1:
        raise ConfigError("the real reason")
    collectives.barrier(world)


@pytest.mark.dist
def test_launch_returns_results_by_rank():
    assert launch(_rank_size_and_argument, 2, 7) == [(0, 2, 7), (1, 2, 7)]


@pytest.mark.dist
def test_launch_raises_the_cause_not_the_loss_of_a_peer():
    with pytest.raises(ConfigError, match="the real reason"):
        launch(_rank_one_fails, 2)
