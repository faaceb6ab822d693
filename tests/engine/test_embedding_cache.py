"""The cache of the embeddings that training computes, which the next plan reuses."""

from __future__ import annotations

import gloo
import pytest
import torch
from engine import runs
from hypothesis import given, settings
from hypothesis import strategies as st

from mbcl.distributed.collectives import World
from mbcl.engine import Trainer
from mbcl.engine.embedding_pass import ViewKey
from mbcl.errors import PlanError
from mbcl.io.store import LocalStore
from mbcl.planner.embedding_cache import EmbeddingCache


def rows(positions: list[int], value: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z = torch.full((len(positions), 2), value)
    return torch.tensor(positions, dtype=torch.int64), z, -z


def content_of(cache: EmbeddingCache) -> dict[int, float]:
    shard = cache.shard()
    assert torch.equal(shard.z2, -shard.z1)
    return dict(zip(shard.indices.tolist(), shard.z1[:, 0].tolist(), strict=True))


def test_embedding_cache_keeps_the_newest_row_of_each_sample():
    cache = EmbeddingCache(4, steps_per_epoch=2, world=World())
    cache.record(*rows([0, 1, 2, 3], 0.0), time=0)  # fresh, before epoch 0
    assert cache.age(0) == 0
    cache.record(*rows([2, 0], 1.0), time=1)
    cache.record(*rows([1], 2.0), time=2)
    assert content_of(cache) == {0: 1.0, 1: 2.0, 2: 1.0, 3: 0.0}
    assert cache.age(1) == 1, "all were made in epoch 0"
    cache.record(*rows([2, 3], 3.0), time=3)  # the first step of epoch 1
    assert content_of(cache) == {0: 1.0, 1: 2.0, 2: 3.0, 3: 3.0}
    assert cache.age(2) == (2 + 2 + 1 + 1) / 4


@settings(max_examples=30, deadline=None)
@given(visits=st.lists(st.sets(st.integers(0, 5), min_size=1), max_size=8), compact=st.sets(st.integers(0, 7)))
def test_embedding_cache_equals_a_dictionary_for_any_visits(visits, compact):
    cache, expected = EmbeddingCache(6, steps_per_epoch=3, world=World()), dict.fromkeys(range(6), 0.0)
    cache.record(*rows(list(range(6)), 0.0), time=0)
    for time, visited in enumerate(visits, 1):
        cache.record(*rows(sorted(visited), float(time)), time=time)
        expected |= dict.fromkeys(visited, float(time))
        if time in compact:
            assert content_of(cache) == expected
    copy = EmbeddingCache(6, steps_per_epoch=3, world=World())
    copy.load_state_dict(cache.state_dict())
    assert content_of(copy) == content_of(cache) == expected
    mean_epoch = sum(max(int(time) - 1, 0) // 3 for time in expected.values()) / 6
    assert copy.age(5) == cache.age(5) == pytest.approx(5 - mean_epoch)


def test_shard_refuses_rows_that_are_not_finite():
    cache = EmbeddingCache(2, steps_per_epoch=1, world=World())
    cache.record(*rows([0, 1], float("nan")), time=0)
    with pytest.raises(PlanError, match="2 of 2 rows are not finite"):
        cache.shard()


def _exchange(world):
    cache = EmbeddingCache(6, steps_per_epoch=2, world=world)
    local_positions = [[0, 2, 4], [1, 3, 5]][world.rank]
    cache.record(*rows(local_positions, 10.0 + world.rank), time=0)
    cache.record(*rows([[5], [0]][world.rank], 20.0 + world.rank), time=1)
    ages = cache.age(1)
    first = content_of(cache)
    cache.record(*rows([[0], [4]][world.rank], 30.0 + world.rank), time=3)
    second = content_of(cache)
    state = cache.state_dict()
    copy = EmbeddingCache(6, steps_per_epoch=2, world=world)
    copy.load_state_dict(state)
    return ages, first, second, state, content_of(copy), copy.age(2), cache.age(2)


@pytest.mark.dist
def test_embedding_cache_holds_each_sample_once_over_all_ranks():
    (ages, *zero, state, copied, age, same), (_, *one, other_state, other_copied, _, _) = gloo.run(_exchange, 2)
    assert ages == 1.0
    assert zero == [{2: 10.0, 4: 10.0, 5: 20.0}, {0: 30.0, 2: 10.0, 5: 20.0}]
    assert one == [{0: 21.0, 1: 11.0, 3: 11.0}, {1: 11.0, 3: 11.0, 4: 31.0}]
    everything = {0: 30.0, 1: 11.0, 2: 10.0, 3: 11.0, 4: 31.0, 5: 20.0}
    assert dict(zip(state["positions"].tolist(), state["z1"][:, 0].tolist(), strict=True)) == everything
    assert state["times"].tolist() == [3, 0, 0, 0, 3, 1]
    assert torch.equal(state["z1"], other_state["z1"])
    assert copied | other_copied == everything
    assert len(copied) + len(other_copied) == 6
    assert age == same == 2 - 2 / 6


# -- in training ---------------------------------------------------------------------------------------------------

CACHED = {"embeddings": {"source": "cached", "batch_size": 64}}


def test_cached_embeddings_need_one_embedding_pass_in_all(tmp_path, monkeypatch):
    from mbcl.engine import plan_source

    passes: list[ViewKey] = []
    embed = plan_source.embed
    monkeypatch.setattr(
        plan_source,
        "embed",
        lambda model, images, key, **rest: (passes.append(key), embed(model, images, key, **rest))[1],
    )
    content = runs.experiment("spectral", train={"epochs": 3, "batch_size": 16, "eval_every": 3}, **CACHED)
    _, _, metrics_rows = runs.run(World(), tmp_path, content)
    assert len(passes) == 1, "the first plan's"
    assert [row["plan/age"] for row in metrics_rows[:2]] == [0, 1], "all were embedded in epoch 0"
    assert metrics_rows[2]["plan/age"] == pytest.approx(1 + 4 / 180), "the 180 mod 16 left out of epoch 1"


def test_cached_embeddings_are_the_projections_of_the_loss(tmp_path):
    trainer = Trainer(
        runs.experiment("spectral", train={"epochs": 1, "batch_size": 16}, **CACHED),
        world=World(),
        store=LocalStore(tmp_path),
    )
    projections: dict[int, torch.Tensor] = {}
    trainer.learner.objective.register_forward_pre_hook(
        lambda module, inputs: projections.update(zip(inputs[2].tolist(), inputs[0].detach().clone(), strict=True))
    )
    trainer.run()
    shard = trainer.source.cache.shard()
    assert len(projections) == 176
    for position, row in zip(shard.indices.tolist(), shard.z1, strict=True):
        assert position not in projections or torch.equal(projections[position], row)


def test_cached_embeddings_train_the_first_epoch_as_fresh_ones(tmp_path):
    fresh, _, _ = runs.run(World(), tmp_path / "fresh", runs.experiment("spectral", embeddings={"batch_size": 64}))
    cached, _, _ = runs.run(World(), tmp_path / "cached", runs.experiment("spectral", **CACHED))
    assert cached[:11] == fresh[:11]
    assert cached[11:] != fresh[11:]
