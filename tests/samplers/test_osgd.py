"""OSGD: golden selections, a slow oracle, bad input."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mbcl
from mbcl.errors import ConfigError, PlanError
from mbcl.functional import clip, nt_xent
from mbcl.plan import Embeddings
from mbcl.samplers import OSGD, PoolFunction, PoolItem, PoolPlan, serial

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("criterion", ["max", "min"])
@pytest.mark.parametrize("file,case", [("osgd_kb_loose", c) for c in range(6)] + [("osgd_kb_loose_k1500", 0)])
def test_osgd_selects_the_golden_batches(file: str, case: int, criterion: str) -> None:
    stored = np.load(GOLDEN / f"{file}.npz")
    get = {key.split("_", 1)[1]: stored[key] for key in stored.files if key.startswith(f"c{case}_")}
    batch_size, k, q = (int(get[key]) for key in ("B", "k", "q"))
    u, v = (get[f"{side}_int8"].astype(np.float32) for side in "uv")
    sampler = OSGD(batch_size=batch_size, k=k, q=q, criterion=criterion, temperature=float(get["tau"]))  # type: ignore[arg-type]
    size = k * batch_size
    chosen, scores = [], []
    for start in range(0, len(get["idx"]) - size + 1, size):
        ids = get["idx"][start : start + size]
        planned = sampler.plan_pool(u[ids], v[ids], 0)
        chosen.append(ids[planned.rows])
        assert planned.scores is not None
        scores.append(planned.scores)
    np.testing.assert_array_equal(np.concatenate(chosen), get[f"batches_{criterion}"])
    assert sampler.plan_length(len(get["idx"])) == len(get[f"batches_{criterion}"])
    candidates = get["cand_losses_f64"].reshape(-1, k)
    for score, losses in zip(scores, np.sort(candidates, axis=1), strict=True):
        np.testing.assert_allclose(score, losses[-q:] if criterion == "max" else losses[:q], rtol=1e-9)


@given(
    seed=st.integers(0, 2**31), k=st.integers(1, 6), share=st.floats(0, 1), criterion=st.sampled_from(["max", "min"])
)
@settings(max_examples=20, deadline=None)
def test_osgd_equals_a_slow_selection(seed: int, k: int, share: float, criterion: str) -> None:
    """It selects the right candidates in ascending order, and the scores are the losses of the selected batches."""
    q = max(1, round(share * k))
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = (torch.randn(3 * k, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    planned = OSGD(batch_size=3, k=k, q=q, criterion=criterion).plan_pool(z1.numpy(), z2.numpy(), 0)  # type: ignore[arg-type]
    losses = [float(nt_xent(z1[i : i + 3], z2[i : i + 3], temperature=0.1)) for i in range(0, 3 * k, 3)]
    order = sorted(range(k), key=losses.__getitem__)
    selected = order[k - q :] if criterion == "max" else order[:q]
    assert planned.rows.tolist() == [[3 * block, 3 * block + 1, 3 * block + 2] for block in selected]
    assert planned.scores == pytest.approx([losses[block] for block in selected], rel=1e-12)


def test_osgd_scores_are_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    z = np.random.default_rng(0).normal(size=(2, 40, 4))
    whole = OSGD(batch_size=4, k=10, q=10).plan_pool(z[0], z[1], 0)
    monkeypatch.setattr("mbcl.samplers._osgd.CHUNK_ELEMENTS", 3 * 64)
    parts = OSGD(batch_size=4, k=10, q=10).plan_pool(z[0], z[1], 0)
    np.testing.assert_array_equal(whole.rows, parts.rows)
    assert whole.scores is not None
    assert parts.scores is not None
    np.testing.assert_allclose(whole.scores, parts.scores, rtol=1e-14)


def test_plan_rounds_equals_single_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """For any number of pools scored at once: all rounds, pairs, single pools; on the host and by the device path."""
    z1, z2 = torch.randn(2, 67, 4, generator=torch.Generator().manual_seed(0))
    embeddings = Embeddings(z1, z2)
    sampler = OSGD(batch_size=4, k=3, q=2)  # five pools of 12, seven samples left out
    items: list[int] = []

    def spy(function: PoolFunction, pools: Sequence[PoolItem]) -> Sequence[PoolPlan]:
        items.append(len(pools))
        return serial(function, pools)

    batched = sampler.plan_rounds(67, embeddings, seed=3, epoch=2, rounds=range(4), map_pools=spy)
    assert items == [1], "one batched computation"
    monkeypatch.setattr("mbcl.samplers._osgd.CHUNK_ELEMENTS", 2 * 3 * 64)
    some = sampler.plan_rounds(67, embeddings, seed=3, epoch=2, rounds=range(4), map_pools=spy)
    assert items == [1, 10], "pairs of pools"
    monkeypatch.setattr("mbcl.samplers._osgd.CHUNK_ELEMENTS", 1)
    alone = [sampler.plan(67, embeddings, seed=3, epoch=2, round=number) for number in range(4)]
    for plan, pairs, single in zip(batched, some, alone, strict=True):
        assert plan.digest == pairs.digest == single.digest
        assert (plan.epoch, plan.round) == (single.epoch, single.round)
        torch.testing.assert_close(plan.scores, single.scores)
        losses = nt_xent(z1.double()[plan.batches], z2.double()[plan.batches], temperature=0.1)
        torch.testing.assert_close(plan.scores, losses)
    assert len({plan.digest for plan in batched}) == 4

    pools = [np.arange(12), np.arange(12, 24)]
    for on_device, on_host in zip(
        sampler.plan_on_device(embeddings, pools, [0, 0]), sampler.plan_pools(embeddings, pools, [0, 0]), strict=True
    ):
        np.testing.assert_array_equal(on_device.rows, on_host.rows)


def test_osgd_scores_with_the_objective() -> None:
    z1, z2 = torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(0))
    embeddings = Embeddings(z1, z2)
    plain = OSGD(batch_size=4, k=10, q=10, score="objective")
    with pytest.raises(ConfigError, match="score 'objective' needs an objective"):
        plain.plan(40, embeddings)
    for objective in (functools.partial(clip, temperature=0.5), mbcl.objectives.build("clip", temperature=0.5)):
        sampler = pickle.loads(pickle.dumps(plain.with_objective(objective)))
        plan = sampler.plan(40, embeddings)
        expected = clip(z1.double()[plan.batches], z2.double()[plan.batches], temperature=0.5)
        torch.testing.assert_close(plan.scores, expected)
        assert sampler == plain
    scalar = plain.with_objective(lambda a, b: clip(a, b, temperature=0.5).mean())
    with pytest.raises(PlanError, match="gave 1 losses for 10 batches"):
        scalar.plan(40, embeddings)


@pytest.mark.parametrize(
    "parameters,match",
    [
        ({"k": 3, "q": 4}, "q must be at most k, found q = 4 and k = 3"),
        ({"k": 0}, "k must be a whole number >= 1, found 0"),
        ({"q": 1.5}, r"q must be a whole number >= 1, found 1\.5"),
        ({"criterion": "mean"}, "criterion must be 'max' or 'min', found 'mean'"),
        ({"score": "loss"}, "score must be 'ntxent' or 'objective', found 'loss'"),
        ({"temperature": -1}, "temperature must be > 0, found -1"),
    ],
)
def test_osgd_refuses_bad_parameters(parameters: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        mbcl.samplers.build("osgd", batch_size=4, **parameters)


def test_check_refuses_pools_above_the_data_set() -> None:
    with pytest.raises(ConfigError, match=r"1500 \* 32 = 48000 is above the 1797 samples .* at most 56"):
        mbcl.samplers.build("osgd_kb_loose", batch_size=32).check(1797)
