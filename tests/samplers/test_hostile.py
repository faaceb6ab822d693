"""Degenerate embeddings: every sampler makes a valid plan or raises a one-line error."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from samplers.small import build_small, embeddings

from mbcl.errors import ConfigError, PlanError
from mbcl.plan import Embeddings
from mbcl.samplers import SAMPLERS, Sampler, check_plan, quality
from mbcl.samplers._measures import upper_bound
from mbcl.testing import extreme_embeddings

N = 41

all_samplers = pytest.mark.parametrize("name", list(SAMPLERS))


def rows() -> torch.Tensor:
    return embeddings(N, dim=3).z1


def test_extreme_embeddings_contain_the_hard_cases() -> None:
    lengths = {name: held.z1.norm(dim=1) for name, held in extreme_embeddings(N).items()}
    assert len(lengths) == 50
    assert lengths["zero rows"].max() == 0
    assert lengths["all rows 1e30"].min() > 1e28
    assert lengths["float64"].dtype == torch.float64


@all_samplers
def test_quality_of_a_plan_of_extreme_embeddings_is_finite(name: str) -> None:
    """That the plans are sound is what ``check_sampler`` tests, on the same embeddings."""
    sampler = build_small(name, 2 if name == "all_batches" else 4)  # 101,270 batches of 4 would only take longer
    cases = extreme_embeddings(N)
    if not sampler.needs_embeddings:  # the others see none of them
        cases = {name: cases[name] for name in ("float64", "float64, opposite views")}
    for description, z in cases.items():
        plan = sampler.plan(N, z)
        loss, bound = quality(plan, z)["loss"], upper_bound(plan, z).value
        # Logits are at most 10 in size, so float32 rounds them by 1e-6, and a sum of eight no further than tenfold.
        assert 0 <= loss <= bound + 1e-5 * max(1.0, bound) < torch.inf, description


@all_samplers
@pytest.mark.parametrize("temperature", [1e-3, 100.0])
def test_plan_is_valid_at_extreme_temperatures(name: str, temperature: float) -> None:
    z, sampler = embeddings(N), build_small(name, 4)
    if hasattr(sampler, "temperature"):
        sampler = type(sampler)(**{**vars_of(sampler), "temperature": temperature})
    check_plan(sampler.plan(N, z), sampler, N)
    assert np.isfinite(quality(sampler.plan(N, z), z, temperature=temperature)["loss"])


def vars_of(sampler: Sampler) -> dict[str, object]:
    return {key: value for key, value in vars(sampler).items() if key != "objective"}


@all_samplers
def test_plan_with_skip_and_mix_is_valid_for_hostile_embeddings(name: str) -> None:
    sampler = build_small(name, 4)
    if not hasattr(sampler, "skip"):
        return
    softened = type(sampler)(**{**vars_of(sampler), "skip": 3, "mix": 0.5})
    cases = extreme_embeddings(N)
    for description in ("zero rows", "all rows equal", "one dimension", "every other row 1e30"):
        plan = check_plan(softened.plan(N, cases[description]), softened, N)
        assert plan.conflicts is not None


@all_samplers
def test_plan_takes_one_batch_of_all_samples_and_refuses_more(name: str) -> None:
    if name != "osgd":  # which needs k batches
        everything = build_small(name, N)
        plan = check_plan(_plan_without_warnings(everything), everything, N)
        assert sorted(plan.batches.flatten().tolist()) == list(range(N))
    for batch_size, expected in ((N + 1, f"batch_size {N + 1} is above the {N} samples"), (1, "batch_size must be")):
        with pytest.raises(ConfigError, match=expected) as raised:
            _plan_without_warnings(build_small(name, batch_size))
        assert "\n" not in str(raised.value)


def _plan_without_warnings(sampler: Sampler):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a group above the data set
        return sampler.plan(N, embeddings(N))


@all_samplers
@pytest.mark.parametrize("num_samples", [0, 1, 3])
def test_plan_refuses_too_few_samples(name: str, num_samples: int) -> None:
    with pytest.raises(ConfigError, match=f"batch_size 4 is above the {num_samples} samples"):
        build_small(name, 4).plan(num_samples, embeddings(num_samples))


@all_samplers
def test_plan_refuses_indices_that_repeat_or_are_out_of_range(name: str) -> None:
    sampler = build_small(name, 4)
    if not sampler.needs_embeddings:
        return
    for indices in (torch.zeros(N, dtype=torch.int64), torch.arange(N) + 1, torch.arange(N) - 1):
        with pytest.raises(PlanError, match=f"each of the {N} samples once"):
            sampler.plan(N, Embeddings(rows(), rows(), indices))


@all_samplers
def test_plan_reads_read_only_memory_maps(name: str, tmp_path: Path) -> None:
    """A write would crash the process."""
    np.save(tmp_path / "z.npy", rows().numpy())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        z = torch.from_numpy(np.load(tmp_path / "z.npy", mmap_mode="r"))
    sampler = build_small(name, 4)
    plan = check_plan(sampler.plan(N, Embeddings(z, z)), sampler, N)
    assert plan.digest == sampler.plan(N, Embeddings(rows(), rows())).digest
    quality(plan, Embeddings(z, z))
