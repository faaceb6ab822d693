"""Measures of a plan: the upper bound of its loss, its overlap with another plan, its share of same-class pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbcl.errors import ConfigError, PlanError
from mbcl.functional import nt_xent
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import Shuffle, quality
from mbcl.samplers._measures import Bound, overlap, same_class_share, upper_bound
from mbcl.seeding import torch_generator


def random_embeddings(num_samples: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Embeddings:
    generator = torch_generator(seed, "test")
    z1 = torch.randn(num_samples, 3, generator=generator, dtype=dtype)
    return Embeddings(z1, z1 + 0.5 * torch.randn(num_samples, 3, generator=generator, dtype=dtype))


def plan_of(rows: list[list[int]]) -> BatchPlan:
    return BatchPlan(torch.tensor(rows, dtype=torch.int64), "hand")


def partitions(samples: list[int], batch_size: int) -> Iterator[list[list[int]]]:
    """All partitions into batches, with every choice of the samples that are left out."""
    if len(samples) < batch_size:
        yield []
        return
    first, rest = samples[0], samples[1:]
    for others in itertools.combinations(rest, batch_size - 1):
        left = [sample for sample in rest if sample not in others]
        for more in partitions(left, batch_size):
            yield [[first, *others], *more]


def slow_bound(z: Embeddings, batch_size: int, temperature: float) -> list[float]:
    """For each sample the mean of its two anchors' bounds, in a plain loop."""
    views = [torch.nn.functional.normalize(view, dim=1) for view in (z.z1, z.z2)]
    bounds = []
    for i in range(len(z)):
        total = 0.0
        for this, that in (views, views[::-1]):
            positive = float(this[i] @ that[i]) / temperature
            raised = [
                math.exp(float(this[i] @ this[j]) / temperature) + math.exp(float(this[i] @ that[j]) / temperature)
                for j in range(len(z))
                if j != i
            ]
            hardest = sum(sorted(raised)[len(raised) - (batch_size - 1) :])
            total += math.log(math.exp(positive) + hardest) - positive
        bounds.append(total / 2)
    return bounds


@pytest.mark.parametrize(("num_samples", "batch_size"), [(6, 2), (6, 3), (8, 4), (6, 6)])
@pytest.mark.parametrize("seed", range(4))
def test_upper_bound_is_above_every_partition(num_samples: int, batch_size: int, seed: int) -> None:
    z = random_embeddings(num_samples, seed)
    losses = [
        sum(float(nt_xent(z.z1[row], z.z2[row], temperature=0.5)) for row in rows) / len(rows)
        for rows in partitions(list(range(num_samples)), batch_size)
    ]
    assert len(losses) == {(6, 2): 15, (6, 3): 10, (8, 4): 35, (6, 6): 1}[num_samples, batch_size]
    bound = upper_bound(Shuffle(batch_size=batch_size).plan(num_samples), z, temperature=0.5).value
    assert max(losses) <= bound * (1 + 1e-12)
    if len(losses) == 1:
        assert bound == pytest.approx(losses[0], rel=1e-12), "a single batch of all samples reaches it"


def test_upper_bound_is_reached_by_mutually_hardest_samples() -> None:
    z = torch.eye(4, dtype=torch.float64)[[0, 1, 0, 1]]
    together, apart = plan_of([[0, 2], [1, 3]]), plan_of([[0, 1], [2, 3]])
    for plan in (together, apart):
        assert upper_bound(plan, Embeddings(z, z), temperature=1.0).value == pytest.approx(math.log(3), rel=1e-12)
    assert quality(together, Embeddings(z, z), temperature=1.0)["loss"] == pytest.approx(math.log(3), rel=1e-12)


@pytest.mark.parametrize("chunk", [2, 7, 64, 2**22])
@pytest.mark.parametrize("batch_size", [2, 5, 11])
def test_upper_bound_equals_a_slow_loop(chunk: int, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbcl.samplers._measures.CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr("mbcl.samplers._measures.ANCHORS", 3)
    z = random_embeddings(11)
    plan = Shuffle(batch_size=batch_size).plan(11)
    slow = slow_bound(z, batch_size, 0.3)
    expected = sum(slow[i] for i in plan.batches.flatten().tolist()) / plan.batches.numel()
    bound = upper_bound(plan, z, temperature=0.3)
    assert bound == Bound(pytest.approx(expected, rel=1e-12), 2 * plan.batches.numel(), 0.0)


def test_upper_bound_counts_repeated_samples_again() -> None:
    z = random_embeddings(9)
    slow = slow_bound(z, 3, 0.3)
    bound = upper_bound(plan_of([[0, 1, 2], [0, 1, 3]]), z, temperature=0.3)
    assert bound.value == pytest.approx((2 * slow[0] + 2 * slow[1] + slow[2] + slow[3]) / 6, rel=1e-12)


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 10.0])
def test_upper_bound_is_accurate_in_float32_at_extreme_temperatures(temperature: float) -> None:
    """No exponential overflows, and the bound is not below the loss."""
    z = random_embeddings(40, dtype=torch.float32)
    plan = Shuffle(batch_size=8).plan(40)
    single = upper_bound(plan, z, temperature=temperature).value
    double = upper_bound(plan, Embeddings(z.z1.double(), z.z2.double()), temperature=temperature).value
    assert single == pytest.approx(double, rel=1e-3)
    assert quality(plan, z, temperature=temperature)["loss"] <= single


def test_upper_bound_of_sampled_anchors_has_the_reported_error(monkeypatch: pytest.MonkeyPatch) -> None:
    z = random_embeddings(300)
    plan = Shuffle(batch_size=4).plan(300)
    exact = upper_bound(plan, z, temperature=0.3)
    assert (exact.num_anchors, exact.standard_error) == (600, 0.0)
    for name, value in (("EXACT_PAIRS", 0), ("SAMPLED_PAIRS", 0), ("MIN_SAMPLES", 50)):
        monkeypatch.setattr(f"mbcl.samplers._measures.{name}", value)
    bounds = [upper_bound(plan, z, temperature=0.3, seed=seed) for seed in range(200)]
    assert bounds[0] == upper_bound(plan, z, temperature=0.3, seed=0)
    assert {each.num_anchors for each in bounds} == {100}
    values = torch.tensor([each.value for each in bounds], dtype=torch.float64)
    reported_error = torch.tensor([each.standard_error for each in bounds]).square().mean().sqrt()
    assert float(values.mean()) == pytest.approx(exact.value, abs=3 * float(reported_error) / 200**0.5)
    assert float(values.std() / reported_error) == pytest.approx(1, abs=0.15)


def test_upper_bound_ignores_row_order_and_checks_arguments() -> None:
    z, plan = random_embeddings(30), Shuffle(batch_size=4).plan(30)
    order = torch.randperm(30, generator=torch_generator(1, "test"))
    shuffled = Embeddings(z.z1[order], z.z2[order], order)
    assert upper_bound(plan, shuffled, temperature=0.3) == upper_bound(plan, z, temperature=0.3)
    with pytest.raises(PlanError, match=r"positions must be in 0\.\.19"):
        upper_bound(plan, random_embeddings(20))
    with pytest.raises(ConfigError, match="temperature"):
        upper_bound(plan, z, temperature=0.0)


def pairs(plan: BatchPlan) -> set[frozenset[int]]:
    return {frozenset(pair) for row in plan.batches.tolist() for pair in itertools.combinations(row, 2)}


@given(
    num_samples=st.integers(6, 20),
    sizes=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    repeats=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_overlap_is_the_share_of_common_pairs(
    num_samples: int, sizes: tuple[int, int], repeats: tuple[bool, bool], seed: int
) -> None:
    plans_with_repeats = []
    for each, (batch_size, repeated) in enumerate(zip(sizes, repeats, strict=True)):
        sampler = Shuffle(batch_size=batch_size)
        plans = [sampler.plan(num_samples, seed=seed, epoch=epoch) for epoch in (each, each + 2)]
        rows = torch.cat([plan.batches for plan in plans]) if repeated else plans[0].batches
        plans_with_repeats.append(BatchPlan(rows, "test"))
    plan, other = plans_with_repeats
    share = overlap(plan, other, num_samples)
    assert share.value == pytest.approx(len(pairs(plan) & pairs(other)) / len(pairs(plan)))
    assert share.expected == pytest.approx(len(pairs(other)) / math.comb(num_samples, 2))


def test_overlap_is_one_with_itself_and_expected_with_random_plans() -> None:
    plans = [Shuffle(batch_size=8).plan(203, epoch=epoch) for epoch in range(41)]
    assert overlap(plans[0], plans[0], 203).value == 1
    shares = [overlap(plans[0], other, 203) for other in plans[1:]]
    mean = sum(each.value for each in shares) / 40
    assert mean == pytest.approx(shares[0].expected, rel=0.1)
    with pytest.raises(PlanError, match=r"positions must be in 0\.\.99"):
        overlap(plans[0], plans[1], 100)


@given(num_samples=st.integers(4, 30), batch_size=st.integers(2, 4), classes=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_same_class_share_counts_pairs_of_a_class(num_samples: int, batch_size: int, classes: int, seed: int) -> None:
    labels = torch.randint(classes, (num_samples,), generator=torch_generator(seed, "labels"))
    plan = Shuffle(batch_size=batch_size).plan(num_samples, seed=seed)
    inside = [labels[i] == labels[j] for row in plan.batches.tolist() for i, j in itertools.combinations(row, 2)]
    anywhere = [labels[i] == labels[j] for i, j in itertools.combinations(range(num_samples), 2)]
    share = same_class_share(plan, labels)
    assert share.value == pytest.approx(sum(map(int, inside)) / len(inside))
    assert share.expected == pytest.approx(sum(map(int, anywhere)) / len(anywhere))


def test_same_class_share_refuses_bad_labels() -> None:
    plan = Shuffle(batch_size=4).plan(12)
    for labels in (torch.zeros(12), torch.zeros(12, 1, dtype=torch.int64)):
        with pytest.raises(PlanError, match="one integer for each sample"):
            same_class_share(plan, labels)
    with pytest.raises(PlanError, match=r"positions must be in 0\.\.10"):
        same_class_share(plan, torch.zeros(11, dtype=torch.int64))
