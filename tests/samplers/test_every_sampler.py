"""The contract of every registered sampler; registering a sampler adds it to these tests."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mbcl
from mbcl.errors import ConfigError, PlanError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import SAMPLERS, Sampler, check_plan
from mbcl.testing import check_sampler

SMALL: dict[str, dict[str, object]] = {
    "osgd": {"k": 4, "q": 2},
    "spectral": {"k": 3},
    "kmeans": {"pool": 12},
    "refined": {"pool": 12},
    "bisection": {"pool": 12},
    "metis": {"skip": 2, "width": 6},
    "walk": {"candidates": 8, "neighbours": 4},
    "strata": {"k": 3},
    "chain": {"pool": 12, "quantile": 0.7},
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


def embeddings(num_samples: int) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    z1 = torch.randn(num_samples, 5, generator=generator)
    return Embeddings(z1, z1 + 0.5 * torch.randn(num_samples, 5, generator=generator))


def same_digest(a: BatchPlan, b: BatchPlan) -> bool:
    return a.digest == b.digest


@all_samplers
def test_sampler_keeps_its_promises(name: str) -> None:
    batch_size = 2 if name in ("all_batches", "osgd_exhaustive") else 4  # of 4 they would have 101,270 batches
    sampler = build_with_small_pools(name, batch_size)
    check_sampler(sampler)
    assert pickle.loads(pickle.dumps(sampler)) == sampler


@all_samplers
def test_plan_names_missing_embeddings(name: str) -> None:
    sampler = build_with_small_pools(name)
    if sampler.needs_embeddings:
        with pytest.raises(PlanError, match="needs embeddings"):
            sampler.plan(40)
        with pytest.raises(PlanError, match="each of the 40 samples once"):
            sampler.plan(40, embeddings(39))


@all_samplers
@given(num_samples=st.integers(16, 50), seed=st.integers(0, 100), epoch=st.integers(0, 5), round_=st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_plan_is_valid_and_has_the_promised_shape(
    name: str, num_samples: int, seed: int, epoch: int, round_: int
) -> None:
    sampler = build_with_small_pools(name)
    plan = sampler.plan(num_samples, embeddings(num_samples), seed=seed, epoch=epoch, round=round_)
    check_plan(plan, sampler, num_samples)
    assert plan.batches.shape[1] == (num_samples if name == "full" else 4)
    assert (plan.sampler, plan.seed, plan.epoch, plan.round) == (sampler.name, seed, epoch, round_)
    if sampler.covers_all:
        places = sampler.plan_width(num_samples) * sampler.plan_length(num_samples)
        assert plan.coverage(num_samples) == min(places, num_samples) / num_samples
    assert plan.scores is None or plan.scores.dtype == torch.float64


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
