"""``full``, ``all_batches`` and ``osgd_exhaustive``: golden choices, brute force, ties, errors."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbcl.cli import main
from mbcl.errors import ConfigError
from mbcl.functional import clip, cosine_similarity
from mbcl.plan import Embeddings
from mbcl.samplers import build, check_plan, hardest_batches

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "synthetic_pieces.npz")
CASES = range(sum(key.endswith("_x_u") for key in GOLDEN.files))


def views(num_samples: int, dim: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = torch.randn(2, num_samples, dim, dtype=torch.float64, generator=generator)
    return z1, z2


def losses_one_by_one(
    z1: torch.Tensor, z2: torch.Tensor, size: int, temperature: float
) -> dict[tuple[int, ...], float]:
    """The oracle: the loss of every batch, from the loss function itself."""
    batches = itertools.combinations(range(len(z1)), size)
    return {batch: float(clip(z1[list(batch)], z2[list(batch)], temperature=temperature)) for batch in batches}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("batch_size", "key"), [(2, "osgd_choice"), (3, "osgd_choice_B3")])
def test_osgd_exhaustive_makes_the_published_choice(case: int, batch_size: int, key: str) -> None:
    z1, z2 = (torch.from_numpy(GOLDEN[f"c{case}_x_{view}"]) for view in "uv")
    plan = build("osgd_NcB", batch_size=batch_size).plan(len(z1), Embeddings(z1, z2))
    assert plan.batches.tolist() == [GOLDEN[f"c{case}_{key}"].tolist()]


@given(
    st.integers(3, 8), st.integers(1, 5), st.integers(2, 4), st.integers(0, 1000), st.sampled_from([0.002, 0.1, 1, 50])
)
@settings(max_examples=60, deadline=None)
def test_osgd_exhaustive_chooses_the_hardest_batch(
    num_samples: int, dim: int, batch_size: int, seed: int, temperature: float
) -> None:
    """At temperature 0.002 the exponentials of the similarities differ by more than float64's precision."""
    batch_size = min(batch_size, num_samples)
    z1, z2 = views(num_samples, dim, seed)
    losses = losses_one_by_one(z1, z2, batch_size, temperature)
    sampler = build("osgd_exhaustive", batch_size=batch_size, temperature=temperature)
    plan = check_plan(sampler.plan(num_samples, Embeddings(z1, z2)), sampler, num_samples)
    chosen = tuple(plan.batches[0].tolist())
    highest = max(losses.values())
    assert losses[chosen] == pytest.approx(highest, rel=1e-10, abs=1e-11)
    assert plan.scores is not None
    assert float(plan.scores[0]) == pytest.approx(highest, rel=1e-10, abs=1e-11)
    clearly_before = [batch for batch in losses if batch < chosen and losses[batch] > highest - 1e-14]
    assert not clearly_before, "the first of equal batches"


def test_hardest_batches_is_independent_by_run_and_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [views(7, 3, seed) for seed in range(4)]
    separate = [hardest_batches(cosine_similarity(z1, z2)[None], 3) for z1, z2 in pairs]
    similarity = torch.stack([cosine_similarity(z1, z2) for z1, z2 in pairs])
    before = similarity.clone()
    for elements in (1, 100, 10**6):
        monkeypatch.setattr("mbcl.samplers._exhaustive.CHUNK_ELEMENTS", elements)
        batches, losses = hardest_batches(similarity, 3)
        assert torch.equal(batches, torch.cat([batch for batch, _ in separate]))
        torch.testing.assert_close(losses, torch.cat([loss for _, loss in separate]), rtol=1e-14, atol=0)
    assert torch.equal(similarity, before), "similarities are only read"


@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_osgd_exhaustive_chooses_the_first_of_equal_batches(batch_size: int) -> None:
    """On a simplex, and where all samples are equal, all batches have the same loss up to rounding."""
    simplex = torch.eye(8, dtype=torch.float64) - 1 / 8
    for z in (simplex, simplex @ torch.linalg.qr(views(8, 8, 0)[0])[0], torch.ones(8, 3)):
        plan = build("osgd_exhaustive", batch_size=batch_size).plan(8, Embeddings(z, z))
        assert plan.batches.tolist() == [list(range(batch_size))]


@given(st.integers(2, 9), st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_all_batches_lists_every_combination(num_samples: int, batch_size: int) -> None:
    batch_size = min(batch_size, num_samples)
    sampler = build("all_batches", batch_size=batch_size)
    plan = check_plan(sampler.plan(num_samples), sampler, num_samples)
    expected = [list(batch) for batch in itertools.combinations(range(num_samples), batch_size)]
    assert plan.batches.tolist() == expected
    assert len(expected) == sampler.plan_length(num_samples) == math.comb(num_samples, batch_size)
    plan.batches.zero_()
    assert sampler.plan(num_samples).batches.tolist() == expected, "plans share no memory"


def test_full_is_one_batch_at_any_batch_size() -> None:
    for batch_size in (2, 5):
        sampler = build("full", batch_size=batch_size)
        assert check_plan(sampler.plan(5), sampler, 5).batches.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("name", ["all_batches", "osgd_exhaustive"])
def test_check_refuses_more_than_a_million_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = build(name, batch_size=2)
    sampler.check(1414)  # 998,991 pairs
    with pytest.raises(
        ConfigError, match=f"sampler '{name}': there are 1,000,405 batches of 2 of 1415 samples; allowed"
    ):
        sampler.check(1415)
    with pytest.raises(ConfigError, match=r"about 10\^\d+ batches of 64 of 4096 samples; allowed are"):
        build(name, batch_size=64).plan(4096, Embeddings(torch.ones(4096, 1), torch.ones(4096, 1)))
    monkeypatch.setattr("math.comb", lambda *_: 999_000)
    with pytest.raises(ConfigError, match="its 999,000 batches of 1000 have 999,000,000 places; allowed are at most"):
        build(name, batch_size=1000).check(1002)


TOY = ["data.max_samples=40", "train.epochs=1", "encoder.name=resnet_small", "projector.hidden=8", "projector.dim=4"]


def train(tmp_path: Path, *settings_: str) -> int:
    arguments = [argument for setting in (*TOY, *settings_) for argument in ("--set", setting)]
    return main(["train", "--quiet", "--out", str(tmp_path), *arguments])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("full", "sampler 'full': its batches have 36 samples; train.batch_size is 2, allowed with it: 36"),
        ("all_batches", "sampler 'all_batches': its 630 batches are more than the 18 steps of an epoch"),
    ],
)
def test_train_refuses_samplers_that_do_not_fit(
    name: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, f"sampler={{name: {name}}}", "train.batch_size=2") == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(("name", "batch_size"), [("full", 36), ("osgd_exhaustive", 34), ("all_batches", 36)])
def test_train_runs_with_exhaustive_samplers(name: str, batch_size: int, tmp_path: Path) -> None:
    assert train(tmp_path, f"sampler={{name: {name}}}", f"train.batch_size={batch_size}") == 0
