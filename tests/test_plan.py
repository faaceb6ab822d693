"""Plans and embeddings, ``check_plan``, the registry, seeding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbcl.errors import ConfigError, PlanError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.registry import Registry
from mbcl.samplers import OSGD, Shuffle, check_plan
from mbcl.seeding import derive, numpy_generator, torch_generator


def plan(rows, **more):
    return BatchPlan(torch.tensor(rows, dtype=torch.int64), "test", **more)


def test_registry_resolves_aliases_and_suggests_the_nearest_name():
    registry: Registry[int] = Registry("fruit")
    registry.register("apple", aliases=("a",))(1)
    assert (registry["a"], registry.canonical("a"), registry.aliases("apple"), len(registry)) == (1, "apple", ("a",), 1)
    with pytest.raises(ConfigError, match="unknown fruit 'aple'; did you mean 'apple'. known: apple"):
        registry["aple"]
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register("a")(2)


@given(st.integers(), st.text(max_size=8), st.lists(st.integers(), max_size=3))
def test_derive_is_pure_and_in_range(seed, purpose, keys):
    value = derive(seed, purpose, *keys)
    assert value == derive(seed, purpose, *keys)
    assert 0 <= value < 2**63
    assert value != derive(seed + 1, purpose, *keys)


def test_generators_depend_on_seed_purpose_and_keys():
    assert numpy_generator(0, "a", 1).integers(1 << 30) == numpy_generator(0, "a", 1).integers(1 << 30)
    assert numpy_generator(0, "a", 1).integers(1 << 30) != numpy_generator(0, "b", 1).integers(1 << 30)
    first, second = (torch.rand(3, generator=torch_generator(0, "a")) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("z1", "z2", "indices", "expected"),
    [
        (torch.zeros(3), torch.zeros(3), None, r"two \(M, D\) tensors"),
        (torch.zeros(3, 2), torch.zeros(2, 2), None, r"two \(M, D\) tensors"),
        (torch.zeros(3, 2), torch.zeros(3, 2).double(), None, "one float dtype"),
        (torch.zeros(3, 2).long(), torch.zeros(3, 2).long(), None, "one float dtype"),
        (torch.zeros(3, 2).cfloat(), torch.zeros(3, 2).cfloat(), None, "one float dtype"),
        (torch.zeros(3, 2).to(torch.float8_e5m2), torch.zeros(3, 2).to(torch.float8_e5m2), None, "one float dtype"),
        (torch.zeros(3, 2, 2), torch.zeros(3, 2, 2), None, r"two \(M, D\) tensors"),
        (torch.zeros(3, 0), torch.zeros(3, 0), None, "at least one dimension"),
        (torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), r"indices must be \(3,\) int64"),
        (torch.tensor([[1.0], [float("nan")]]), torch.zeros(2, 1), None, "z1: 1 of 2 rows are not finite, first row 1"),
        (torch.zeros(2, 1), torch.tensor([[float("inf")], [0.0]]), None, "z2: 1 of 2 rows are not finite, first row 0"),
    ],
)
def test_embeddings_refuse_bad_tensors(z1, z2, indices, expected):
    with pytest.raises(PlanError, match=expected):
        Embeddings(z1, z2, indices)


@pytest.mark.parametrize("chunk", [1, 5, 7, 1000])
def test_embeddings_count_non_finite_rows_in_every_chunk(chunk, monkeypatch):
    monkeypatch.setattr("mbcl.plan.CHUNK_ELEMENTS", chunk)
    z = torch.zeros(9, 2)
    Embeddings(z, z)
    z[[4, 5, 8], [0, 1, 1]] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    with pytest.raises(PlanError, match="z2: 3 of 9 rows are not finite, first row 4"):
        Embeddings(torch.zeros(9, 2), z)
    with pytest.raises(PlanError, match="z1: 3 of 9 rows are not finite, first row 4, sample 14"):
        Embeddings(z, torch.zeros(9, 2), torch.arange(10, 19))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_embeddings_widen_half_precision_and_keep_float64(dtype):
    half = torch.ones(2, 2, dtype=dtype)
    assert Embeddings(half, half).z1.dtype == torch.float32
    assert Embeddings(half.double(), half.double()).z2.dtype == torch.float64


def test_embeddings_ordered_sorts_samples_by_position():
    z = torch.arange(3.0)[:, None]
    ordered = Embeddings(z, z + 10, torch.tensor([2, 0, 1])).ordered(3)
    assert ordered.z1.flatten().tolist() == [1, 2, 0]
    assert ordered.z2.flatten().tolist() == [11, 12, 10]
    assert ordered.indices.tolist() == [0, 1, 2]


@pytest.mark.parametrize("indices", [[0, 1], [0, 1, 1], [0, 1, 3], [-1, 0, 1]])
def test_embeddings_ordered_needs_every_sample_once(indices):
    z = torch.zeros(len(indices), 1)
    with pytest.raises(PlanError, match="each of the 3 samples once"):
        Embeddings(z, z, torch.tensor(indices)).ordered(3)


def test_embeddings_concatenate_joins_parts():
    z = torch.zeros(2, 1)
    first, second = Embeddings(z, z, torch.tensor([0, 1])), Embeddings(z + 1, z, torch.tensor([2, 3]))
    assert Embeddings.concatenate([first]) is first
    whole = Embeddings.concatenate([first, second])
    assert whole.indices.tolist() == [0, 1, 2, 3]
    assert whole.z1.flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0, 5]], "must be in 0..4, found 0..5"),
        ([[-1, 2]], "must be in 0..4, found -1..2"),
        ([[1, 1]], "a batch holds a sample twice"),
        ([[0, 1], [1, 2]], "the plan visits a sample twice"),
    ],
)
def test_plan_validate_refuses_bad_plans(rows, expected):
    with pytest.raises(PlanError, match=expected):
        plan(rows).validate(5, distinct=True)


def test_plan_validate_accepts_good_plans_and_coverage_is_a_share():
    assert plan([[0, 1], [3, 2]]).validate(5, distinct=True).coverage(5) == 0.8
    assert plan([[0, 1], [1, 2]]).validate(5, distinct=False).coverage(5) == 0.6
    with pytest.raises(PlanError, match="empty"):
        BatchPlan(torch.zeros((0, 2), dtype=torch.int64), "test").validate(5, distinct=True)
    with pytest.raises(PlanError, match=r"\(S, B\) int64 CPU tensor"):
        BatchPlan(torch.zeros(3), "test")


def test_plan_digest_depends_on_order_and_shape():
    digests = {plan([[0, 1], [2, 3]]).digest, plan([[2, 3], [0, 1]]).digest, plan([[0, 1, 2, 3]]).digest}
    assert len(digests) == 3


@pytest.mark.parametrize("scores", [None, torch.tensor([0.5, 1.5], dtype=torch.float64)])
def test_plan_is_the_same_after_save_and_load(tmp_path, scores):
    before = plan([[0, 1], [2, 3]], seed=3, epoch=4, round=5, scores=scores)
    before.save(tmp_path / "plan.npz")
    after = BatchPlan.load(tmp_path / "plan.npz")
    assert torch.equal(after.batches, before.batches)
    assert (after.sampler, after.seed, after.epoch, after.round) == ("test", 3, 4, 5)
    assert after.digest == before.digest
    assert (after.scores is None) == (scores is None)
    stored = np.load(tmp_path / "plan.npz")
    assert stored["batches"].dtype == np.int32
    assert sorted(stored.files) == ["batches", "digest", "epoch", "round", "sampler", "scores", "seed"]


def test_plan_to_bytes_loads_as_a_file_and_a_failed_save_leaves_nothing(tmp_path):
    before = plan([[0, 1], [2, 3]], seed=3)
    (tmp_path / "plan.npz").write_bytes(before.to_bytes())
    assert BatchPlan.load(tmp_path / "plan.npz").digest == before.digest
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        before.save(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "plan.npz"]


def test_plan_load_refuses_damaged_files(tmp_path):
    path = tmp_path / "plan.npz"
    with pytest.raises(PlanError, match="not a batch plan: .*plan.npz: cannot be read: No such file"):
        BatchPlan.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(PlanError, match="not a batch plan: .*plan.npz: not an .npz file"):
        BatchPlan.load(path)
    plan([[0, 1]]).save(path)
    content = dict(np.load(path))
    for key, value, expected in (
        ("batches", np.array([[1, 0]], dtype=np.int32), "digest does not match"),
        ("batches", np.array([0, 1], dtype=np.int32), r"batches are \(2,\) int32"),
        ("batches", np.array([[0.0, 1.0]]), r"batches are \(1, 2\) float64"),
        ("scores", np.array(0.5), r"scores \(\) float64"),
        ("seed", np.array("x"), "whole numbers"),
        ("seed", np.array([1, 2]), "whole numbers"),
        ("sampler", np.array([{}], dtype=object), "'sampler' holds Python objects, which are not read"),
    ):
        np.savez(path, **{**content, key: value})
        with pytest.raises(PlanError, match=expected):
            BatchPlan.load(path)
    del content["digest"]
    np.savez(path, **content)
    with pytest.raises(PlanError, match="holds no array 'digest'; it holds batches, epoch"):
        BatchPlan.load(path)


def test_check_plan_accepts_plans_as_promised():
    shuffle = Shuffle(batch_size=2)
    complete = plan([[0, 1], [3, 2]])
    assert check_plan(complete, shuffle, 5) is complete
    scored = plan([[0, 1]], scores=torch.tensor([0.5], dtype=torch.float64))
    assert check_plan(scored, OSGD(batch_size=2, k=2, q=1), 5) is scored, "half of the samples are promised"


@pytest.mark.parametrize(
    ("rows", "more", "expected"),
    [
        ([[0, 5], [1, 2]], {}, "must be in 0..4, found 0..5"),
        ([[0, 1], [1, 2]], {}, "the plan visits a sample twice"),
        ([[0, 1]], {}, r"\(2, 2\) batches were promised, found \(1, 2\)"),
        ([[0, 1, 2, 3]], {}, r"\(2, 2\) batches were promised, found \(1, 4\)"),
        ([[0, 1], [2, 3]], {"scores": torch.tensor([1.0, float("nan")])}, "scores must be 2 finite numbers"),
        ([[0, 1], [2, 3]], {"scores": torch.tensor([1.0])}, "scores must be 2 finite numbers"),
    ],
)
def test_check_plan_refuses_plans_that_break_the_promise(rows, more, expected):
    with pytest.raises(PlanError, match=expected):
        check_plan(plan(rows, **more), Shuffle(batch_size=2), 5)


def test_check_plan_requires_coverage_where_repeats_are_allowed():
    class Loose(Shuffle):
        no_repeats = False

    with pytest.raises(PlanError, match="test: promises 4 of the 5 samples, visits 3"):
        check_plan(plan([[0, 1], [1, 2]]), Loose(batch_size=2), 5)
