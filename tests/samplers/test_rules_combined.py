"""Groups, margins, ``skip``, ``mix`` and communities at once, on any number of samples: slow counts of every plan."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers.small import build_small
from samplers.test_groups import least_pairs, pairs_of_one_group
from samplers.test_margins import WITH_EMBEDDINGS, count

from mbcl.plan import Embeddings
from mbcl.samplers import PoolSampler, check_plan, with_groups

B = 4
IDS = st.sampled_from(["none", "equal", "different", "pairs", "giant", "random"])


def ids_of(kind: str, num_samples: int, rng: np.random.Generator) -> np.ndarray | None:
    numbers = np.arange(num_samples)
    return {
        "none": None,
        "equal": numbers * 0,
        "different": numbers,
        "pairs": numbers // 2,
        "giant": np.where(numbers < 2 * num_samples // 3, -1, numbers),
        "random": rng.integers(0, 5, num_samples),
    }[kind]


def tied(num_samples: int, dtype: torch.dtype, seed: int) -> Embeddings:
    """Rows of which a third are copies of others, and one is zero."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, num_samples, 4, generator=generator, dtype=torch.float64)
    z[:, num_samples // 2 : 5 * num_samples // 6] = z[:, : 5 * num_samples // 6 - num_samples // 2]
    z[:, -1] = 0
    return Embeddings(*z.to(dtype))


def no_negatives(z: Embeddings, margin: float, slack: float) -> set[tuple[int, int]]:
    """The pairs whose similarity is not below the limit of the relative margin less a slack."""
    u, v = (x.double().numpy() / np.maximum(x.double().norm(dim=1, keepdim=True).numpy(), 1e-300) for x in (z.z1, z.z2))
    own = (u * v).sum(axis=1)
    i, j = np.nonzero(u @ v.T > (own - margin * abs(own) - slack)[:, None])
    return set(zip(i.tolist(), j.tolist(), strict=True))


@pytest.mark.filterwarnings("ignore::mbcl.errors.SamplerWarning")
@pytest.mark.parametrize("name", [name for name in WITH_EMBEDDINGS if name != "metis"])
@given(
    num_samples=st.integers(24, 45),
    apart=IDS,
    together=st.sampled_from(["none", "equal", "halves"]),
    margin=st.sampled_from([None, 0.0, 0.3]),
    mix=st.sampled_from([0.0, 0.5]),
    community=st.sampled_from([None, 1, 2]),
    order=st.sampled_from(["random", "near"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_rules_of_all_kinds_at_once(
    name: str,
    num_samples: int,
    apart: str,
    together: str,
    margin: float | None,
    mix: float,
    community: int | None,
    order: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    group = ids_of(apart, num_samples, rng)
    source = {"none": None, "equal": np.zeros(num_samples, dtype=int), "halves": rng.permutation(num_samples) % 2}[
        together
    ]
    small = build_small(name, B)
    assert isinstance(small, PoolSampler)
    options = {"community": community, "order": order} if hasattr(small, "order") else {}
    if hasattr(small, "q"):
        options = {"k": 2, "q": 2}
    sampler = with_groups(
        dataclasses.replace(small, relative_margin=margin, mix=mix, **options), apart=group, together=source
    )
    z = tied(num_samples, dtype, seed)
    plan = check_plan(sampler.plan(num_samples, z, seed=seed, epoch=3), sampler, num_samples)
    again = pickle.loads(pickle.dumps(sampler)).plan(num_samples, z, seed=seed, epoch=3)
    assert again.digest == plan.digest
    batches = plan.batches.numpy()
    if source is not None:
        assert all(len(set(source[batch])) == 1 for batch in batches)
    if group is not None and sampler.no_repeats:
        for number in range(2):
            own = batches if source is None else batches[source[batches[:, 0]] == number]
            assert pairs_of_one_group(own, group) == (least_pairs(group[own.ravel()], len(own)) if len(own) else 0)
            if source is None:
                break
    if group is None and margin is None:
        assert plan.conflicts is None
        return
    same = set() if group is None else set(zip(*np.nonzero(group[:, None] == group), strict=True))
    # In float64 copies are equal but for rounding and nothing else is so near; in float32 other pairs may be.
    slacks = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-5, -1e-5)}[dtype]
    most, least = (
        count(
            plan,
            {pair for pair in same | (set() if margin is None else no_negatives(z, margin, slack)) if _differ(pair)},
        )
        for slack in slacks
    )
    assert least <= plan.conflicts <= most


def _differ(pair: tuple[int, int]) -> bool:
    return pair[0] != pair[1]
