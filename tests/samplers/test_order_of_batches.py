"""Consecutive batches of a plan are no more similar than random ones, whatever the order of the data set."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import mbcl
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import SAMPLERS, PoolSampler

CLASSES = 8
NUM_SAMPLES = 640
BATCH_SIZE = 8


def sorted_by_class(noise: float = 0.3) -> Embeddings:
    """Samples of a few classes, class by class, as files in folders are read."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, 6, generator=generator).repeat_interleave(NUM_SAMPLES // CLASSES, dim=0)
    samples = centres + noise * torch.randn(NUM_SAMPLES, 6, generator=generator)
    z1, z2 = (samples + 0.2 * torch.randn(NUM_SAMPLES, 6, generator=generator) for _ in range(2))
    return Embeddings(z1, z2)


def likeness_of_consecutive(mean_SD: NDArray[np.floating]) -> float:
    return float((mean_SD[1:] * mean_SD[:-1]).sum())


def exceeding(plan: BatchPlan, embeddings: Embeddings, permutations: int = 4_999) -> int:
    """How many random orders of the plan's batches have more similar consecutive batches than the plan."""
    z_ND = (embeddings.z1 + embeddings.z2).numpy()
    mean_SD = z_ND[plan.batches.numpy()].mean(axis=1)
    mean_SD -= mean_SD.mean(axis=0)
    found, rng = likeness_of_consecutive(mean_SD), np.random.default_rng(0)
    return sum(likeness_of_consecutive(rng.permutation(mean_SD)) > found for _ in range(permutations))


def in_blocks(name: str, **parameters: object) -> PoolSampler:
    sampler = mbcl.samplers.build(name, batch_size=BATCH_SIZE, block=80, **parameters)
    assert isinstance(sampler, PoolSampler)
    return sampler


@pytest.mark.parametrize("pool", [None, 320])
@pytest.mark.parametrize("name", ["kmeans", "refined"])
def test_batches_of_grouped_pools_come_in_random_order(name: str, pool: int | None) -> None:
    embeddings, sampler = sorted_by_class(), in_blocks(name, pool=pool)
    plan = sampler.plan(NUM_SAMPLES, embeddings, seed=1)
    assert exceeding(plan, embeddings) > 0
    blocks_in_order = BatchPlan(plan.batches[plan.batches[:, 0].argsort()], name)
    assert exceeding(blocks_in_order, embeddings) == 0, "the order of the classes is recognised"


@pytest.mark.parametrize("name", ["kmeans", "refined"])
def test_rows_of_a_grouped_batch_come_in_random_order(name: str) -> None:
    """Workers and chunks take consecutive rows of a batch: ascending positions would be the order of the files."""
    plan = in_blocks(name, pool=None).plan(NUM_SAMPLES, sorted_by_class(), seed=1)
    ascents = float((plan.batches.diff(dim=1) > 0).double().mean())
    # A half in expectation: 560 pairs, not independent, with a standard deviation below 1 / sqrt(560).
    assert abs(ascents - 0.5) < 6 / 560**0.5


@pytest.mark.parametrize("name", ["kmeans", "refined"])
def test_order_of_grouped_batches_is_a_function_of_seed_epoch_and_round(name: str) -> None:
    embeddings, sampler = sorted_by_class(), in_blocks(name, pool=None, mix=0.25, skip=2)
    digest = sampler.plan(NUM_SAMPLES, embeddings, seed=1, epoch=2, round=3).digest
    assert digest == sampler.plan(NUM_SAMPLES, embeddings, seed=1, epoch=2, round=3).digest
    for key in ({"seed": 0}, {"epoch": 0}, {"round": 0}):
        other = sampler.plan(NUM_SAMPLES, embeddings, **{"seed": 1, "epoch": 2, "round": 3, **key})
        assert digest != other.digest


@pytest.mark.parametrize("name", [name for name in SAMPLERS if issubclass(SAMPLERS[name], PoolSampler)])
def test_consecutive_batches_of_any_sampler_are_no_more_similar_than_random_ones(name: str) -> None:
    parameters = {"osgd": {"k": 4, "q": 2}, "spectral": {"k": 20}, "metis": {"skip": 2}}.get(name, {})
    if "pool" in inspect.signature(SAMPLERS[name]).parameters:
        parameters["pool"] = None
    embeddings = sorted_by_class()
    plan = mbcl.samplers.build(name, batch_size=BATCH_SIZE, **parameters).plan(NUM_SAMPLES, embeddings, seed=1)
    assert exceeding(plan, embeddings) > 0
