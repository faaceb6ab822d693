"""Quality of a plan: loss, lift, coverage."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch

from mbcl.errors import ConfigError, PlanError
from mbcl.functional import clip, nt_xent
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import Shuffle, Spectral, quality
from mbcl.seeding import torch_generator


def random_embeddings(num_samples: int, noise: float = 0.5) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    z1 = torch.randn(num_samples, 6, generator=generator)
    return Embeddings(z1, z1 + noise * torch.randn(num_samples, 6, generator=generator))


def test_quality_loss_is_the_mean_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = random_embeddings(30)
    plan = Shuffle(batch_size=4).plan(30)
    expected = sum(
        float(nt_xent(embeddings.z1[row], embeddings.z2[row], temperature=0.2)) for row in plan.batches
    ) / len(plan)
    measured = quality(plan, embeddings, temperature=0.2)
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)
    assert measured["coverage"] == pytest.approx(28 / 30)
    assert set(measured) == {"loss", "lift", "coverage"}
    monkeypatch.setattr("mbcl.samplers._quality.CHUNK_ELEMENTS", 64)
    assert quality(plan, embeddings, temperature=0.2) == pytest.approx(measured, rel=1e-6)


def test_quality_lift_is_one_for_shuffle_and_above_for_spectral() -> None:
    embeddings = random_embeddings(640)
    assert quality(Shuffle(batch_size=8).plan(640), embeddings)["lift"] == pytest.approx(1, abs=0.1)
    assert quality(Spectral(batch_size=8, k=20).plan(640, embeddings), embeddings)["lift"] > 1.5


def test_quality_ignores_row_order_and_its_lift_depends_on_the_seed() -> None:
    embeddings, plan = random_embeddings(30), Shuffle(batch_size=4).plan(30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    shuffled = Embeddings(embeddings.z1[order], embeddings.z2[order], order)
    assert quality(plan, shuffled) == quality(plan, embeddings)
    assert quality(plan, embeddings, seed=1)["lift"] != quality(plan, embeddings)["lift"]
    assert quality(plan, embeddings, seed=1)["loss"] == quality(plan, embeddings)["loss"]


@pytest.mark.parametrize(("num_samples", "batch_size"), [(60, 4), (256, 32)])
def test_quality_lift_of_few_batches_is_stable_over_seeds(num_samples: int, batch_size: int) -> None:
    embeddings, plan = random_embeddings(num_samples), Shuffle(batch_size=batch_size).plan(num_samples)
    losses = torch.stack([nt_xent(embeddings.z1[row], embeddings.z2[row], temperature=0.1) for row in plan.batches])
    lifts = torch.tensor([quality(plan, embeddings, seed=seed)["lift"] for seed in range(20)])
    # With a single random partition this would be 0.5 to 1 times the spread over the root of the number of batches.
    assert lifts.std() / lifts.mean() < 0.25 * losses.std() / losses.mean() / len(plan) ** 0.5


def test_quality_compares_many_batches_with_part_of_one_partition() -> None:
    embeddings, plan = random_embeddings(1300), Shuffle(batch_size=2).plan(1300)
    order = torch.randperm(1300, generator=torch_generator(3, "quality/random"))
    random = BatchPlan(order[:1024].view(512, 2), "hand")
    losses = [quality(each, embeddings, seed=3)["loss"] for each in (plan, random)]
    assert quality(plan, embeddings, seed=3)["lift"] == losses[0] / losses[1]


def test_quality_lift_is_nan_without_loss() -> None:
    z = torch.eye(4)
    plan = BatchPlan(torch.tensor([[0, 1], [2, 3]]), "hand")
    measured = quality(plan, Embeddings(z, z), temperature=1e-3)
    assert measured["loss"] == 0
    assert math.isnan(measured["lift"])


def test_quality_refuses_a_plan_of_other_samples() -> None:
    with pytest.raises(PlanError, match=r"positions must be in 0\.\.19"):
        quality(Shuffle(batch_size=4).plan(30), random_embeddings(20))


def test_quality_measures_the_clip_loss() -> None:
    embeddings, plan = random_embeddings(30), Shuffle(batch_size=4).plan(30)
    losses = [float(clip(embeddings.z1[row], embeddings.z2[row], temperature=0.2)) for row in plan.batches]
    assert quality(plan, embeddings, temperature=0.2, loss="clip")["loss"] == pytest.approx(sum(losses) / 7, rel=1e-5)
    with pytest.raises(ConfigError, match="loss must be 'nt_xent' or 'clip', found 'dcl'"):
        quality(plan, embeddings, loss="dcl")  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["nt_xent", "clip"])
def test_quality_of_one_large_batch_is_the_same_in_chunks(
    loss: Literal["nt_xent", "clip"], monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, plan = random_embeddings(31), Shuffle(batch_size=31).plan(31)
    whole = quality(plan, embeddings, temperature=0.2, loss=loss)
    monkeypatch.setattr("mbcl.samplers._quality.CHUNK_ELEMENTS", 4 * 31 * 7)
    assert quality(plan, embeddings, temperature=0.2, loss=loss) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_quality_ignores_row_lengths_whose_squares_overflow(scale: float) -> None:
    embeddings, plan = random_embeddings(30), Shuffle(batch_size=4).plan(30)
    scales = torch.where(torch.arange(30) % 3 == 0, scale, 1.0)[:, None]
    stretched = Embeddings(embeddings.z1 * scales, embeddings.z2 / scales)
    assert quality(plan, stretched) == pytest.approx(quality(plan, embeddings), rel=1e-4)
