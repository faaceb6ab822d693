"""Degenerate embeddings: every sampler makes a valid plan or raises a one-line error."""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from samplers.small import build_small, embeddings

from mbcl.errors import ConfigError, PlanError
from mbcl.plan import Embeddings
from mbcl.samplers import SAMPLERS, Sampler, check_plan, quality
from mbcl.samplers._measures import upper_bound

N = 41

all_samplers = pytest.mark.parametrize("name", list(SAMPLERS))


def rows(dim: int = 3, seed: int = 0) -> torch.Tensor:
    return embeddings(N, seed, dim).z1


def every_other(value: float) -> torch.Tensor:
    return torch.where(torch.arange(N) % 2 == 0, value, 1.0)[:, None]


HOSTILE: dict[str, torch.Tensor] = {
    "all rows equal": torch.ones(N, 3),
    "zero rows": torch.zeros(N, 3),
    "some zero rows": rows() * (torch.arange(N) % 3 > 0)[:, None],
    "pairs of duplicates": rows()[torch.arange(N) // 2],
    "ten copies of each": rows()[torch.arange(N) // 10],
    "one class, barely spread": torch.ones(N, 3) + 1e-6 * rows(),
    "one dimension": rows(dim=1),
    "one dimension, one sign": rows(dim=1).abs() + 0.1,
    "two opposite points": torch.where(torch.arange(N) % 2 == 0, 1.0, -1.0)[:, None].expand(N, 3).contiguous(),
    "one far away": rows() + 1e6 * (torch.arange(N) == 7)[:, None],
    "every other row 1e30": rows() * every_other(1e30),
    "every other row 1e-30": rows() * every_other(1e-30),
    "all rows 1e30": rows() * 1e30,
    "all rows 1e-30": rows() * 1e-30,
    "smallest numbers": torch.full((N, 3), 1e-45),
    "largest numbers": torch.full((N, 3), torch.finfo(torch.float32).max),
    "more dimensions than samples": rows(dim=90),
    "float16": rows().half(),
    "bfloat16": rows().bfloat16(),
    "bfloat16 held as float32": rows().bfloat16().float(),
    "float64": rows().double() * 1e200,
    "a view that is not contiguous": rows(dim=6)[:, ::2],
    "one value broadcast": torch.ones(1, 1).expand(N, 3),
}


@all_samplers
def test_plan_is_valid_for_hostile_embeddings(name: str) -> None:
    sampler = build_small(name, 2 if name == "all_batches" else 4)  # 101,270 batches of 4 would only take longer
    cases = (
        HOSTILE if sampler.needs_embeddings else {"float64": HOSTILE["float64"]}
    )  # the other samplers read no embeddings
    for (case, z1), sign in product(cases.items(), (1, -1)):
        try:
            _check_hostile(sampler, z1, sign * z1)
        except Exception as error:
            error.add_note(f"embeddings: {case}, the second view {'the same' if sign == 1 else 'the opposite'}")
            raise


def _check_hostile(sampler: Sampler, z1: torch.Tensor, z2: torch.Tensor) -> None:
    before, embeddings = z1.clone(), Embeddings(z1, z2)
    plan = check_plan(sampler.plan(N, embeddings), sampler, N)
    assert torch.equal(z1, before), "embeddings are only read"
    assert sampler.plan(N, embeddings).digest == plan.digest
    loss, bound = quality(plan, embeddings)["loss"], upper_bound(plan, embeddings).value
    # Logits are at most 10, so float32 rounds them by 1e-6, and a sum of eight terms by at most 1e-5.
    assert 0 <= loss <= bound + 1e-5 * max(1.0, bound) < torch.inf


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
    for z in (torch.zeros(N, 3), torch.ones(N, 3), rows(dim=1), rows() * every_other(1e30)):
        plan = check_plan(softened.plan(N, Embeddings(z, z)), softened, N)
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
