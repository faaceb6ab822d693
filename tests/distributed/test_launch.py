"""Local process groups."""

from __future__ import annotations

import pytest

from mbcl.distributed import collectives
from mbcl.distributed.launch import launch
from mbcl.errors import ConfigError


def _place(world, number):
    collectives.barrier(world)
    return world.rank, world.size, number


def _one_fails(world):
    if world.rank == 1:
        raise ConfigError("the real reason")
    collectives.barrier(world)


@pytest.mark.dist
def test_results_come_by_rank():
    assert launch(_place, 2, 7) == [(0, 2, 7), (1, 2, 7)]


@pytest.mark.dist
def test_the_reason_is_told_and_not_that_a_peer_was_lost():
    with pytest.raises(ConfigError, match="the real reason"):
        launch(_one_fails, 2)
