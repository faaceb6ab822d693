"""The contract of every registered sampler; registering a sampler adds it to these tests."""

from __future__ import annotations

import inspect
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mbcl
from mbcl.errors import ConfigError, PlanError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import SAMPLERS, PoolItem, PoolPlan, PoolSampler, Sampler

SMALL: dict[str, dict[str, object]] = {
    "osgd": {"k": 4, "q": 2},
    "spectral": {"k": 3},
    "kmeans": {"pool": 12},
    "refined": {"pool": 12},
    "bisection": {"pool": 12},
    "metis": {"skip": 2, "width": 6},
    "walk": {"candidates": 8, "neighbours": 4},
    "strata": {"k": 3},
    "diverse": {"m": 4, "pool": 12},
}
"""Parameters that fit data sets of a few dozen samples."""

DETERMINISTIC = ("full", "all_batches", "osgd_exhaustive")
"""Samplers without randomness: the plan depends on N, B and the embeddings alone."""

all_samplers = pytest.mark.parametrize("name", list(SAMPLERS))


def build_with_small_pools(name: str, batch_size: int = 4) -> Sampler:
    parameters = dict(SMALL.get(name, {}))
    if "pool" in parameters:
        parameters["pool"] = max(12, batch_size)
    return mbcl.samplers.build(name, batch_size=batch_size, **parameters)


def embeddings(num_samples: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    z1 = torch.randn(num_samples, 5, generator=generator)
    z2 = z1 + 0.5 * torch.randn(num_samples, 5, generator=generator)
    return Embeddings(z1.to(dtype), z2.to(dtype))


def same_digest(a: BatchPlan, b: BatchPlan) -> bool:
    return a.digest == b.digest


@all_samplers
@given(num_samples=st.integers(16, 50), seed=st.integers(0, 100), epoch=st.integers(0, 5), round_=st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_plan_is_valid_and_has_the_promised_shape(
    name: str, num_samples: int, seed: int, epoch: int, round_: int
) -> None:
    sampler = build_with_small_pools(name)
    plan = sampler.plan(num_samples, embeddings(num_samples), seed=seed, epoch=epoch, round=round_)
    assert plan.batches.shape == (sampler.plan_length(num_samples), sampler.plan_width(num_samples))
    assert plan.batches.shape[1] == (num_samples if name == "full" else 4)
    assert plan.batches.dtype == torch.int64
    assert (plan.sampler, plan.seed, plan.epoch, plan.round) == (sampler.name, seed, epoch, round_)
    plan.validate(num_samples, distinct=sampler.no_repeats)
    if plan.scores is not None:
        assert plan.scores.shape == (len(plan),)
        assert plan.scores.dtype == torch.float64


@all_samplers
def test_plan_is_pure_in_its_arguments(name: str) -> None:
    z = embeddings(50)
    first = build_with_small_pools(name).plan(50, z, seed=1, epoch=2, round=3)
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002  # the global generator must not matter
    before = torch.random.get_rng_state()
    assert same_digest(first, build_with_small_pools(name).plan(50, z, seed=1, epoch=2, round=3))
    assert torch.equal(before, torch.random.get_rng_state())


@all_samplers
def test_plan_depends_on_seed_epoch_and_round(name: str) -> None:
    z, sampler = embeddings(50), build_with_small_pools(name)
    first = sampler.plan(50, z)
    assert same_digest(first, sampler.plan(50, z, seed=1)) == (name in DETERMINISTIC)
    for other in (sampler.plan(50, z, epoch=1), sampler.plan(50, z, round=1)):
        assert same_digest(first, other) == (name in ("fixed", *DETERMINISTIC))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in DETERMINISTIC])
def test_plan_leaves_out_other_samples_each_epoch(name: str) -> None:
    sampler = build_with_small_pools(name)
    planned = [set(sampler.plan(19, embeddings(19), epoch=epoch).batches.flatten().tolist()) for epoch in range(12)]
    assert not sampler.no_repeats or len(planned[0]) == 4 * sampler.plan_length(19) < 19
    assert len(set.union(*planned)) == (16 if name == "fixed" else 19)


@all_samplers
def test_plan_ignores_row_order_and_half_precision(name: str) -> None:
    sampler, z = build_with_small_pools(name), embeddings(40, dtype=torch.float16)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = Embeddings(z.z1[order], z.z2[order], order)
    widened = Embeddings(z.z1.float(), z.z2.float())
    assert same_digest(sampler.plan(40, z), sampler.plan(40, shuffled))
    assert same_digest(sampler.plan(40, z), sampler.plan(40, widened))


@all_samplers
def test_sampler_makes_the_same_plan_after_pickling(name: str) -> None:
    sampler, z = build_with_small_pools(name), embeddings(40)
    copy = pickle.loads(pickle.dumps(sampler))
    assert copy == sampler
    assert same_digest(sampler.plan(40, z), copy.plan(40, z))


@all_samplers
def test_sampler_is_frozen_documented_and_has_typed_keywords(name: str) -> None:
    sampler = build_with_small_pools(name)
    with pytest.raises(FrozenInstanceError):
        sampler.batch_size = 3  # type: ignore[misc]
    assert SAMPLERS[name].__doc__
    assert sampler.name == name
    parameters = inspect.signature(SAMPLERS[name], eval_str=True).parameters
    assert "batch_size" in parameters
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert not any(isinstance(parameter.annotation, str) for parameter in parameters.values())


@all_samplers
def test_plan_accepts_a_map_pools_that_runs_elsewhere(name: str) -> None:
    """A copy of the sampler plans read-only arrays out of order, like tasks in other processes."""
    calls = []

    def map_in_other_processes(function: object, items: Sequence[PoolItem]) -> list[PoolPlan]:
        calls.append(len(items))
        planned = {}
        for index in reversed(range(len(items))):
            z1, z2, seed = pickle.loads(pickle.dumps(items[index]))
            z1.setflags(write=False)
            z2.setflags(write=False)
            planned[index] = pickle.loads(pickle.dumps(function))(z1, z2, seed)
        return [planned[index] for index in range(len(items))]

    sampler, z = build_with_small_pools(name), embeddings(50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_digest(sampler.plan(50, z), sampler.plan(50, z, map_pools=map_in_other_processes))
    assert bool(calls) == isinstance(sampler, PoolSampler)


@all_samplers
def test_plan_checks_its_embeddings(name: str) -> None:
    sampler = build_with_small_pools(name)
    if not sampler.needs_embeddings:
        assert same_digest(sampler.plan(40), sampler.plan(40, embeddings(40)))
        return
    with pytest.raises(PlanError, match="needs embeddings"):
        sampler.plan(40)
    with pytest.raises(PlanError, match="each of the 40 samples once"):
        sampler.plan(40, embeddings(39))
    with pytest.raises(PlanError, match="each of the 40 samples once"):
        sampler.plan(40, Embeddings(torch.ones(40, 2), torch.ones(40, 2), torch.zeros(40, dtype=torch.int64)))


@all_samplers
def test_plan_is_valid_for_degenerate_embeddings(name: str) -> None:
    sampler = build_with_small_pools(name, batch_size=4)
    one_far = torch.zeros(40, 3)
    one_far[7] = torch.tensor([1e6, -1e6, 1.0])
    for z in (
        torch.zeros(40, 3),
        torch.ones(40, 3),
        torch.arange(40.0)[:, None].floor_divide(8).expand(40, 3),
        one_far,
        torch.full((40, 3), 1e-30),
        torch.randn(40, 1, generator=torch.Generator().manual_seed(0)) * 1e12,
    ):
        for z2 in (z, -z):
            plan = sampler.plan(40, Embeddings(z.contiguous(), z2.contiguous()))
            plan.validate(40, distinct=sampler.no_repeats)


@all_samplers
@pytest.mark.parametrize("batch_size", [1, 0, -4, 2.0, "32", True])
def test_build_refuses_a_bad_batch_size(name: str, batch_size: int) -> None:
    with pytest.raises(ConfigError, match=f"batch_size must be a whole number >= 2, found {batch_size!r}"):
        mbcl.samplers.build(name, batch_size=batch_size)


@all_samplers
def test_check_refuses_a_batch_size_above_the_data_set(name: str) -> None:
    sampler = build_with_small_pools(name, batch_size=41)
    for call in (lambda: sampler.check(40), lambda: sampler.plan(40, embeddings(40))):
        with pytest.raises(ConfigError, match="batch_size 41 is above the 40 samples"):
            call()


@all_samplers
def test_build_refuses_an_unknown_parameter(name: str) -> None:
    with pytest.raises(ConfigError, match=f"sampler '{name}': unknown parameter 'kk'"):
        mbcl.samplers.build(name, batch_size=4, kk=3)


def test_build_suggests_the_nearest_name_and_knows_aliases() -> None:
    with pytest.raises(ConfigError, match=r"unknown sampler 'spektral'; did you mean 'spectral'\?"):
        mbcl.samplers.build("spektral", batch_size=4)
    with pytest.raises(ConfigError, match=r"unknown parameter 'tempera'; did you mean 'temperature'\?"):
        mbcl.samplers.build("osgd", batch_size=4, tempera=1)
    aliases = {
        "f": "fixed",
        "s": "shuffle",
        "osgd_kb_loose": "osgd",
        "sc_even_kb_loose": "spectral",
        "sc_even": "spectral",
        "NcB": "all_batches",
        "osgd_NcB": "osgd_exhaustive",
    }
    assert {alias: SAMPLERS.canonical(alias) for alias in aliases} == aliases


def test_fixed_repeats_the_first_epochs_batches() -> None:
    fixed, shuffle = build_with_small_pools("fixed"), build_with_small_pools("shuffle")
    assert same_digest(fixed.plan(50, seed=3, epoch=9, round=2), shuffle.plan(50, seed=3))


def test_shuffle_pairs_all_samples_equally_often() -> None:
    """Every pair shares a batch with probability (B - 1) / (N - 1)."""
    shuffle = build_with_small_pools("shuffle", batch_size=3)
    count = np.zeros((9, 9))
    for epoch in range(2000):
        for row in shuffle.plan(9, epoch=epoch).batches.tolist():
            count[np.ix_(row, row)] += 1
    share = count[~np.eye(9, dtype=bool)] / 2000
    assert np.abs(share - 2 / 8).max() < 5 * np.sqrt(0.25 * 0.75 / 2000)
