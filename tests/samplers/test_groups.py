"""``apart`` and ``together``: hand values, an exhaustive oracle, hostile ids, and properties."""

from __future__ import annotations

import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers.small import build_small
from samplers.small import embeddings as random_embeddings
from samplers.test_margins import WITH_EMBEDDINGS, clustered

import mbcl
from mbcl.errors import ConfigError, SamplerWarning
from mbcl.plan import Embeddings
from mbcl.planner.plan_service import make_plan
from mbcl.planner.plans import PlanKey
from mbcl.samplers import Sampler, build, check_plan, with_groups
from mbcl.samplers._groups import Groups, numbered, part_groups

GROUPABLE = [*WITH_EMBEDDINGS, "shuffle", "fixed"]


def small(name: str) -> Sampler:
    """A sampler of batches of 6 that separates no neighbours."""
    if name == "metis":
        pytest.importorskip("pymetis")
        return build(name, batch_size=6)
    return build_small(name, 6)


def pairs_of_one_group(batches: np.ndarray, group: np.ndarray) -> int:
    """Ordered pairs of two samples of one group in one batch."""
    return sum(int(group[i] == group[j]) for batch in batches for i in batch for j in batch if i != j)


def least_pairs(group: np.ndarray, num_batches: int) -> int:
    """The least number of ordered pairs of one group in any partition: every group as even as can be."""
    total = 0
    for size in np.unique(group, return_counts=True)[1].tolist():
        whole, more = divmod(size, num_batches)
        total += more * (whole + 1) * whole + (num_batches - more) * whole * (whole - 1)
    return total


def test_part_groups_by_hand() -> None:
    """Two batches of two pairs: either exchange parts both; a batch without a pair stays."""
    batches = np.array([[0, 1], [2, 3], [4, 5]])
    parted = part_groups(batches, np.array([7, 7, 9, 9, 1, 2]), np.random.default_rng(0))
    assert pairs_of_one_group(parted, np.array([7, 7, 9, 9, 1, 2])) == 0
    assert sorted(parted.ravel()) == list(range(6))
    alone = np.array([[0, 1], [2, 3]])
    np.testing.assert_array_equal(part_groups(alone, np.array([0, 1, 0, 1]), np.random.default_rng(0)), alone)


@given(batches=st.integers(1, 7), size=st.integers(2, 7), seed=st.integers(0, 999), groups=st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_part_groups_leaves_the_fewest_pairs_possible(batches: int, size: int, seed: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.permutation(batches * size).reshape(batches, size)
    # From one giant group to nearly all different, sorted so that the groups are crowded.
    group = rng.integers(0, groups, batches * size)
    group[rows.ravel()] = np.sort(group) if seed % 2 else group
    parted = part_groups(rows, group, rng)
    assert sorted(parted.ravel()) == sorted(rows.ravel())
    assert pairs_of_one_group(parted, group) == least_pairs(group, batches)


@pytest.mark.filterwarnings("ignore:.*the largest group of apart")
@pytest.mark.parametrize("name", GROUPABLE)
@pytest.mark.parametrize("kind", ["pairs", "tens", "as many as batches", "strings", "a giant and singles"])
def test_apart_parts_what_can_be_parted(name: str, kind: str) -> None:
    numbers, z = np.arange(120), clustered(120)
    sampler = small(name)
    length = sampler.plan_length(120)
    apart = {
        "pairs": numbers // 2,
        "tens": numbers // 10,
        "as many as batches": numbers % (120 // length),
        "strings": np.array([f"document {number // 3}" for number in numbers]),
        "a giant and singles": np.where(numbers < length, -1, numbers),
    }[kind]
    plan = check_plan(sampler.plan(120, z, apart=apart), sampler, 120)
    assert plan.conflicts == pairs_of_one_group(plan.batches.numpy(), apart)
    visited = apart[plan.batches.flatten().numpy()]
    if sampler.no_repeats and np.unique(visited, return_counts=True)[1].max() <= len(plan):
        assert plan.conflicts == 0


@pytest.mark.filterwarnings("ignore:.*the largest group of apart")
@pytest.mark.parametrize("name", GROUPABLE)
def test_apart_counts_what_cannot_be_parted(name: str) -> None:
    """All ids equal: every pair is a conflict. Two groups: every batch is divided as evenly as can be."""
    sampler, z = small(name), clustered(120)
    plan = sampler.plan(120, z, apart=torch.zeros(120, dtype=torch.int64))
    assert plan.conflicts == len(plan) * 6 * 5
    halves = np.arange(120) % 2
    plan = sampler.plan(120, z, apart=halves)
    assert plan.conflicts == pairs_of_one_group(plan.batches.numpy(), halves)
    if sampler.no_repeats:
        assert plan.conflicts == least_pairs(halves[plan.batches.flatten().numpy()], len(plan))


def test_apart_keeps_batches_hard() -> None:
    """Near copies are parted, and the batches remain those of their clusters."""
    z = clustered(240, clusters=6)
    copies = np.arange(240) // 2
    z = Embeddings(z.z1[copies * 2], z.z2[copies * 2])
    sampler = build("refined", batch_size=8, pool=None)
    parted, plain = sampler.plan(240, z, apart=copies), sampler.plan(240, z)
    assert parted.conflicts == 0
    assert pairs_of_one_group(plain.batches.numpy(), copies) > 100
    assert mbcl.samplers.quality(parted, z)["lift"] > 1.2


@pytest.mark.parametrize("name", GROUPABLE)
def test_together_makes_batches_of_one_source(name: str) -> None:
    source = np.array(["wiki", "news", "forum"])[np.arange(200) // 80]  # 80, 80 and 40
    sampler, z = small(name), random_embeddings(200)
    if name == "osgd":
        sampler = build("osgd", batch_size=6, k=5, q=5)
    bound = with_groups(sampler, together=source)
    plan = check_plan(sampler.plan(200, z, together=source), bound, 200)
    assert len(plan) == sum(sampler.plan_length(size) for size in (80, 80, 40))
    sources = source[plan.batches.numpy()]
    assert (sources == sources[:, :1]).all()
    assert plan.conflicts is None
    runs = 1 + (sources[1:, 0] != sources[:-1, 0]).sum()
    assert runs > 4, "the order of sources is mixed"
    visits = {
        int(i) for epoch in range(12) for i in sampler.plan(200, z, together=source, epoch=epoch).batches.flatten()
    }
    assert len(visits) == (plan.batches.numel() if name == "fixed" else 200), "remainders are drawn anew each epoch"
    mixed = build("kmeans", batch_size=6, pool=30, mix=0.7).plan(200, z, together=source, apart=np.arange(200) // 4)
    sources = source[mixed.batches.numpy()]
    assert (sources == sources[:, :1]).all(), "neither mix nor apart crosses sources"
    assert mixed.conflicts == 0


def test_together_has_the_batches_of_single_sources() -> None:
    """A source is planned like a data set of its own: the same number of batches, as hard."""
    z = clustered(240, clusters=6)
    source = np.arange(240) // 120
    plan = build("kmeans", batch_size=8, pool=None).plan(240, z, together=source)
    half = build("kmeans", batch_size=8, pool=None).plan(120, Embeddings(z.z1[:120], z.z2[:120]))
    first = plan.batches[source[plan.batches[:, 0].numpy()] == 0]
    loss = [
        mbcl.samplers.quality(mbcl.BatchPlan(batches, ""), Embeddings(z.z1[:120], z.z2[:120]))["loss"]
        for batches in (first, half.batches)
    ]
    assert loss[0] == pytest.approx(loss[1], rel=0.15)
    assert len(first) == len(half)


def test_sources_that_fill_no_batch_are_left_out_with_a_warning() -> None:
    source = np.minimum(np.arange(40), 5)  # five of one sample, one of 35
    with pytest.warns(
        SamplerWarning, match="'kmeans': 5 sources of together, with 5 samples, fill no batch, and are left"
    ):
        plan = build("kmeans", batch_size=4, pool=20).plan(40, random_embeddings(40), together=source)
    assert plan.batches.shape == (8, 4)
    assert plan.batches.min() >= 5


def test_hostile_ids_of_together() -> None:
    z, sampler = random_embeddings(40), build("kmeans", batch_size=4, pool=20)
    with pytest.raises(
        ConfigError, match="batch_size 4 is above the 1 samples of the largest of 40 sources of together"
    ):
        sampler.plan(40, z, together=np.arange(40))
    assert len(sampler.plan(40, z, together=np.zeros(40, dtype=int))) == 10
    with pytest.raises(
        ConfigError, match="a source of together with 20 samples: sampler 'osgd': k . batch_size = 6 . 4"
    ):
        build("osgd", batch_size=4, k=6, q=2).plan(40, z, together=np.arange(40) // 20)


def test_the_limits_of_a_sampler_are_those_of_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of all samples would be too large; the groups of the sources are not."""
    monkeypatch.setattr("mbcl.samplers._spectral.MAX_GROUP", 30)
    z, sampler = random_embeddings(40), build("spectral", batch_size=4, k=None)
    with pytest.raises(ConfigError, match="above the 30"):
        sampler.plan(40, z)
    assert len(sampler.plan(40, z, together=np.arange(40) // 20)) == 10


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (np.arange(39), r"must have one id for each of 40 samples, found an array of shape \(39,\)"),
        (np.zeros((40, 1), dtype=int), r"found an array of shape \(40, 1\)"),
        (np.linspace(0, 1, 40), "ids must be whole numbers or strings, found float64"),
        (np.arange(40) % 2 == 0, "ids must be whole numbers or strings, found bool"),
        ([*range(39), None], "ids must be whole numbers or strings, found object"),
    ],
)
@pytest.mark.parametrize("kind", ["apart", "together"])
@pytest.mark.parametrize("name", ["kmeans", "shuffle"])
def test_ids_that_do_not_fit_are_refused(name: str, kind: str, ids: object, found: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind}.*{found}"):
        build(name, batch_size=4).plan(40, random_embeddings(40), **{kind: ids})  # type: ignore[arg-type]


def test_ids_of_every_kind_are_numbered() -> None:
    assert numbered("apart", ["x", "y", "x"], 3).tolist() == [0, 1, 0]
    assert numbered("apart", np.array(["x", "y", "x"], dtype=object), 3).tolist() == [0, 1, 0]
    assert numbered("apart", torch.tensor([2**62, -5, 2**62]), 3).tolist() == [1, 0, 1]
    assert numbered("apart", np.array([3, 3], dtype=np.uint8), None).tolist() == [0, 0]


def test_samplers_that_keep_no_groups_say_so() -> None:
    for name in ("full", "all_batches"):
        with pytest.raises(ConfigError, match=f"sampler '{name}' cannot keep samples apart or together"):
            build(name, batch_size=4).plan(8, random_embeddings(8), apart=np.arange(8))


def test_a_sampler_with_groups_plans_like_its_arguments() -> None:
    z, source, apart = random_embeddings(60), np.arange(60) // 30, np.arange(60) // 3
    sampler = build("osgd", batch_size=5, k=3, q=2)
    bound = pickle.loads(pickle.dumps(with_groups(sampler, apart=apart, together=source)))
    assert (bound.name, bound.batch_size, bound.temperature, bound.covers_all) == ("osgd", 5, 0.1, False)
    assert repr(bound) == f"{sampler!r} with apart and together"
    assert bound.plan_length(60) == 8
    direct = sampler.plan(60, z, apart=apart, together=source, epoch=1)
    assert bound.plan(60, z, epoch=1).digest == direct.digest
    made = make_plan(bound, z, PlanKey(1, 0, rounds=2), num_samples=60, seed=0).plan
    assert torch.equal(made.batches[:8], direct.batches)
    assert torch.equal(made.batches[8:], sampler.plan(60, z, apart=apart, together=source, epoch=1, round=1).batches)
    assert made.conflicts == 0
    with pytest.raises(ConfigError, match="apart must have one id for each of 61 samples, found 60"):
        bound.check(61)
    assert with_groups(sampler) is sampler


@given(shape=st.sampled_from([(1, 3), (2, 2), (2, 3), (3, 2)]), left=st.integers(0, 1), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_what_no_plan_can_part_equals_all_plans(shape: tuple[int, int], left: int, seed: int) -> None:
    """The fewest pairs of one group over every partition of a small data set, whichever sample it leaves out."""
    batches, size = shape
    rng = np.random.default_rng(seed)
    num_samples = batches * size + left
    group = rng.integers(0, int(rng.integers(1, 4)), num_samples)
    places = np.repeat(np.arange(batches), size).tolist() + [-1] * left
    fewest = min(
        pairs_of_one_group(np.array([np.flatnonzero(np.array(batch) == s) for s in range(batches)]), group)
        for batch in set(itertools.permutations(places))
    )
    groups = Groups.of(num_samples, group, None)
    assert groups.apart is not None
    assert groups.unavoidable(build("shuffle", batch_size=size), groups.apart)[0] == fewest


def test_groups_that_are_too_large_are_said_with_their_numbers() -> None:
    """Of 40 samples one group has 25: over ten batches five have three of it, 6 pairs each, and five two, 2 each."""
    z, sampler = random_embeddings(40), build("kmeans", batch_size=4, pool=20)
    apart = np.where(np.arange(40) < 25, 0, np.arange(40))
    text = (
        "sampler 'kmeans': the largest group of apart has 25 samples, more than the 10 batches that they are parted "
        "over: at least 40 pairs of a sample and another of its group must share a batch"
    )
    with pytest.warns(SamplerWarning, match=text):
        with_groups(sampler, apart=apart).check(40)
    with pytest.warns(SamplerWarning, match=text):
        plan = sampler.plan(40, z, apart=apart)
    assert plan.conflicts == 40
    source = np.arange(40) % 2  # thirteen and twelve samples over five batches of each source
    with pytest.warns(SamplerWarning, match="has 13 samples, more than the 5 batches .* at least 40 pairs"):
        plan = sampler.plan(40, z, apart=apart, together=source)
    assert plan.conflicts == 40


@pytest.mark.parametrize("name", ["kmeans", "shuffle", "osgd", "walk"])
def test_groups_that_can_be_parted_are_not_said(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SamplerWarning)
        bound = with_groups(small(name), apart=np.arange(120) // 2)
        bound.check(120)
        if name == "walk":  # which repeats samples, so that the size of a group says nothing
            with_groups(small(name), apart=np.zeros(120, dtype=int)).check(120)
