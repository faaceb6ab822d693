"""What the contract promises of every registered sampler; a new one is tested by being registered."""

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
    "diverse": {"m": 4, "pool": 12},
}
"""Parameters that fit data sets of a few dozen samples."""

DETERMINISTIC = ("full", "all_batches", "osgd_exhaustive")
"""Those that draw nothing: the plan depends on N, B and the embeddings alone."""

each_sampler = pytest.mark.parametrize("name", list(SAMPLERS))


def make(name: str, batch_size: int = 4) -> Sampler:
    parameters = dict(SMALL.get(name, {}))
    if "pool" in parameters:
        parameters["pool"] = max(12, batch_size)
    return mbcl.samplers.build(name, batch_size=batch_size, **parameters)


def embeddings(num_samples: int) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    z1 = torch.randn(num_samples, 5, generator=generator)
    return Embeddings(z1, z1 + 0.5 * torch.randn(num_samples, 5, generator=generator))


def same(a: BatchPlan, b: BatchPlan) -> bool:
    return a.digest == b.digest


@each_sampler
def test_keeps_the_promises_of_samplers(name: str) -> None:
    sampler = make(name, 2 if name in ("all_batches", "osgd_exhaustive") else 4)  # of 4 they would have 101,270 batches
    check_sampler(sampler)
    assert pickle.loads(pickle.dumps(sampler)) == sampler


@each_sampler
def test_missing_embeddings_are_named(name: str) -> None:
    sampler = make(name)
    if sampler.needs_embeddings:
        with pytest.raises(PlanError, match="needs embeddings"):
            sampler.plan(40)
        with pytest.raises(PlanError, match="each of the 40 samples once"):
            sampler.plan(40, embeddings(39))


@each_sampler
@given(num_samples=st.integers(16, 50), seed=st.integers(0, 100), epoch=st.integers(0, 5), round_=st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_plans_are_sound(name: str, num_samples: int, seed: int, epoch: int, round_: int) -> None:
    sampler = make(name)
    plan = sampler.plan(num_samples, embeddings(num_samples), seed=seed, epoch=epoch, round=round_)
    check_plan(plan, sampler, num_samples)
    assert plan.batches.shape[1] == (num_samples if name == "full" else 4)
    assert (plan.sampler, plan.seed, plan.epoch, plan.round) == (sampler.name, seed, epoch, round_)
    if sampler.covers_all:
        places = sampler.plan_width(num_samples) * sampler.plan_length(num_samples)
        assert plan.coverage(num_samples) == min(places, num_samples) / num_samples
    assert plan.scores is None or plan.scores.dtype == torch.float64


@each_sampler
def test_seed_changes_the_plan_and_so_do_epoch_and_round_except_for_fixed(name: str) -> None:
    held, sampler = embeddings(50), make(name)
    first = sampler.plan(50, held)
    assert same(first, sampler.plan(50, held, seed=1)) == (name in DETERMINISTIC)
    for other in (sampler.plan(50, held, epoch=1), sampler.plan(50, held, round=1)):
        assert same(first, other) == (name in ("fixed", *DETERMINISTIC))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in DETERMINISTIC])
def test_left_out_samples_are_drawn_anew(name: str) -> None:
    sampler = make(name)
    seen = [set(sampler.plan(19, embeddings(19), epoch=epoch).batches.flatten().tolist()) for epoch in range(12)]
    assert not sampler.no_repeats or len(seen[0]) == 4 * sampler.plan_length(19) < 19
    assert len(set.union(*seen)) == (16 if name == "fixed" else 19)


@each_sampler
def test_is_frozen_documented_and_described_by_its_signature(name: str) -> None:
    sampler = make(name)
    with pytest.raises(FrozenInstanceError):
        sampler.batch_size = 3  # type: ignore[misc]
    assert SAMPLERS[name].__doc__
    assert sampler.name == name
    parameters = inspect.signature(SAMPLERS[name], eval_str=True).parameters
    assert "batch_size" in parameters
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert not any(isinstance(parameter.annotation, str) for parameter in parameters.values())


@each_sampler
@pytest.mark.parametrize("batch_size", [1, 0, -4, 2.0, "32", True])
def test_bad_batch_size(name: str, batch_size: int) -> None:
    with pytest.raises(ConfigError, match=f"batch_size must be a whole number >= 2, found {batch_size!r}"):
        mbcl.samplers.build(name, batch_size=batch_size)


@each_sampler
def test_batch_size_above_the_data_set(name: str) -> None:
    sampler = make(name, batch_size=41)
    for call in (lambda: sampler.check(40), lambda: sampler.plan(40, embeddings(40))):
        with pytest.raises(ConfigError, match="batch_size 41 is above the 40 samples"):
            call()


@each_sampler
def test_unknown_parameter(name: str) -> None:
    with pytest.raises(ConfigError, match=f"sampler '{name}': unknown parameter 'kk'"):
        mbcl.samplers.build(name, batch_size=4, kk=3)


def test_unknown_and_published_names() -> None:
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


def test_fixed_has_the_batches_of_the_first_epoch() -> None:
    fixed, shuffle = make("fixed"), make("shuffle")
    assert same(fixed.plan(50, seed=3, epoch=9, round=2), shuffle.plan(50, seed=3))


def test_shuffle_lets_everybody_meet() -> None:
    """Every pair shares a batch with probability (B - 1) / (N - 1)."""
    shuffle = make("shuffle", batch_size=3)
    together = np.zeros((9, 9))
    for epoch in range(2000):
        for row in shuffle.plan(9, epoch=epoch).batches.tolist():
            together[np.ix_(row, row)] += 1
    share = together[~np.eye(9, dtype=bool)] / 2000
    assert np.abs(share - 2 / 8).max() < 5 * np.sqrt(0.25 * 0.75 / 2000)
