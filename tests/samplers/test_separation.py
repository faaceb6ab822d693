"""``mix`` and ``skip``: softening a plan by hand values, a slow oracle and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from samplers.small import conflicts

import mbcl
from mbcl.errors import ConfigError
from mbcl.plan import Embeddings
from mbcl.samplers._separation import mixed, nearest, separate_neighbors


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(batches=st.integers(1, 9), size=st.integers(2, 9), share=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_mixed_keeps_a_partition_and_moves_at_most_the_share(batches: int, size: int, share: float, seed: int) -> None:
    before = rng(seed).permutation(batches * size).reshape(batches, size)
    after = mixed(before, share, rng(seed))
    assert sorted(after.ravel()) == sorted(before.ravel())
    assert ((after != before).sum(axis=1) <= math.ceil(share * size)).all()


def test_mixed_with_share_one_is_a_random_partition() -> None:
    before = np.arange(64_000).reshape(2000, 32)
    after = mixed(before, 1.0, rng())
    assert (after == before).mean() < 0.001
    half = mixed(before, 0.5, rng())
    assert 0.49 < (half != before).mean() <= 0.5
    # All places are equally likely to change.
    assert abs((half != before).mean(axis=0) - 0.5).max() < 0.06


def test_mixed_moves_a_small_share_on_average() -> None:
    before = np.arange(32_000).reshape(1000, 32)
    after = mixed(before, 0.01, rng())
    assert 0.007 < (after != before).mean() < 0.0125
    assert ((after != before).sum(axis=1) <= 1).all()


def test_mixed_never_repeats_a_sample_in_a_batch() -> None:
    before = np.array([[0, 1], [0, 2], [0, 3]])  # a plan that repeats sample 0
    for seed in range(50):
        after = mixed(before, 1.0, rng(seed))
        assert all(len(set(row)) == 2 for row in after.tolist())
        assert sorted(after.ravel()) == sorted(before.ravel())


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_mixed_handles_plans_that_repeat_samples(share: float) -> None:
    """Samples are drawn about twice: chance puts some twice into a batch, and those move to other batches."""
    draw = rng()
    before = np.stack([draw.choice(1000, 32, replace=False) for _ in range(62)])
    after = mixed(before, share, rng(1))
    assert all(len(set(row)) == 32 for row in after.tolist())
    assert sorted(after.ravel()) == sorted(before.ravel())
    assert 0.9 * share < (after != before).mean() <= share + 1 / 32


def test_mix_applies_to_walks_that_repeat_samples() -> None:
    z = Embeddings(*torch.randn(2, 2000, 8, generator=torch.Generator().manual_seed(0)))
    plain, mixing = (mbcl.samplers.build("walk", batch_size=32, mix=mix).plan(2000, z) for mix in (0.0, 0.5))
    assert 0.4 < (plain.batches != mixing.batches).double().mean() <= 0.52


def test_nearest_equals_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    z1, z2 = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, v = (z / z.norm(dim=1, keepdim=True) for z in (z1, z2))
    similarity = u @ u.T + u @ v.T + v @ u.T + v @ v.T
    similarity.fill_diagonal_(-torch.inf)
    expected = similarity.argsort(dim=1, descending=True)[:, :4].numpy()
    np.testing.assert_array_equal(nearest(z1, z2, 4), expected)
    monkeypatch.setattr("mbcl.samplers._separation.CHUNK_ELEMENTS", 128)
    np.testing.assert_array_equal(nearest(z1, z2, 4), expected)
    assert nearest(z1[:3], z2[:3], 10).shape == (3, 2)


def test_conflicts_equals_a_hand_count() -> None:
    batch = np.array([0, 0, 1, 1, -1])
    neighbours = np.array([[1], [2], [3], [2], [3]])  # 0-1, 2-3 and 3-2 share a batch, 1-2 do not, 4 is in no batch
    assert conflicts(batch, neighbours) == 3


@given(batches=st.integers(2, 8), size=st.integers(2, 6), skip=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
@example(batches=2, size=4, skip=2, seed=2)  # mutual neighbours must count twice
def test_separate_neighbors_permutes_with_fewer_conflicts(batches: int, size: int, skip: int, seed: int) -> None:
    z = torch.from_numpy(rng(seed).normal(size=(batches * size, 3)))
    before = rng(seed).permutation(batches * size).reshape(batches, size)
    neighbours = nearest(z, z, skip)
    after = separate_neighbors(before, neighbours, z.numpy())
    assert sorted(after.ravel()) == sorted(before.ravel())

    def count(rows: np.ndarray) -> int:
        batch = np.empty(batches * size, dtype=int)
        batch[rows.ravel()] = np.repeat(np.arange(batches), size)
        return conflicts(batch, neighbours)

    assert count(after) <= count(before)


def test_separate_neighbors_splits_copies_and_keeps_clusters() -> None:
    """Pairs of near copies in tight groups: each pair is split, each group stays together in half batches."""
    centres = np.repeat(np.eye(4), 8, axis=0)
    x = centres + 0.01 * np.repeat(rng().normal(size=(16, 4)), 2, axis=0) + 1e-6 * rng(1).normal(size=(32, 4))
    rows = np.arange(32).reshape(8, 4)
    neighbours = nearest(torch.from_numpy(x), torch.from_numpy(x), 1)
    assert conflicts(np.arange(32) // 4, neighbours) == 32
    after = separate_neighbors(rows, neighbours, x)
    batch = np.empty(32, dtype=int)
    batch[after.ravel()] = np.repeat(np.arange(8), 4)
    assert conflicts(batch, neighbours) == 0
    assert all(len({row // 8 for row in group}) == 1 for group in after.tolist())


def clustered_embeddings(num_samples: int = 120) -> Embeddings:
    centres = torch.randn(12, 6, generator=torch.Generator().manual_seed(1)).repeat_interleave(num_samples // 12, 0)
    noise = torch.randn(2, num_samples, 6, generator=torch.Generator().manual_seed(2))
    return Embeddings(centres + 0.3 * noise[0], centres + 0.3 * noise[1])


def test_skip_counts_conflicts_on_the_final_plan() -> None:
    embeddings = clustered_embeddings()
    plain = mbcl.samplers.build("spectral", batch_size=10, k=6).plan(120, embeddings)
    skipping = mbcl.samplers.build("spectral", batch_size=10, k=6, skip=2).plan(120, embeddings)
    assert plain.conflicts is None
    # A slow count by pool: the first half of the batches is one pool, the second half the other.
    for plan in (plain, skipping):
        total = 0
        for pool in plan.batches.view(2, 6, 10):
            members = pool.flatten()
            neighbours = members[torch.from_numpy(nearest(embeddings.z1[members], embeddings.z2[members], 2)).long()]
            batch_of = {int(sample): number for number, batch in enumerate(pool) for sample in batch}
            total += sum(
                batch_of[int(sample)] == batch_of[int(other)]
                for sample, others in zip(members, neighbours, strict=True)
                for other in others
            )
        if plan is plain:
            assert total > 60
        else:
            assert total == skipping.conflicts <= 6


def test_mix_lowers_the_lift_towards_one() -> None:
    embeddings = clustered_embeddings(480)
    lifts = []
    for mix in (0.0, 0.25, 0.5, 1.0):
        plan = mbcl.samplers.build("spectral", batch_size=10, k=12, mix=mix).plan(480, embeddings)
        lifts.append(mbcl.samplers.quality(plan, embeddings)["lift"])
    assert lifts == sorted(lifts, reverse=True)
    assert lifts[0] > 1.5
    assert lifts[-1] == pytest.approx(1, abs=0.15)


def test_build_refuses_bad_mix_and_skip() -> None:
    for mix in (-0.1, 1.1, float("nan"), "half", True):
        with pytest.raises(ConfigError, match=f"mix must be .*found {mix!r}"):
            mbcl.samplers.build("spectral", batch_size=4, mix=mix)
    for skip in (-1, 1.5, None):
        with pytest.raises(ConfigError, match=f"skip must be a whole number >= 0, found {skip!r}"):
            mbcl.samplers.build("osgd", batch_size=4, skip=skip)
