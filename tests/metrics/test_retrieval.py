"""Retrieval: golden numbers, a slow oracle, ties, hand values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mbcl
from mbcl.errors import ConfigError
from mbcl.metrics import ranks, retrieval, retrieval_within

STORED = np.load(Path(__file__).parents[1] / "golden" / "retrieval.npz")


@pytest.mark.parametrize("case", range(int(STORED["n_cases"])))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk_size", [1, 7, 1024])
def test_retrieval_equals_golden_values(
    case: int, dtype: torch.dtype, chunk_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbcl.metrics._retrieval._CHUNK_ROWS", chunk_size)
    u, v = (torch.tensor(STORED[f"c{case}_f{side}"], dtype=dtype) for side in (1, 2))
    scores = retrieval(u, v, similarity="dot")
    assert len(scores) == 12
    for direction, stored in (("u2v", "fwd"), ("v2u", "bwd")):
        for name, key in (("top1", "R1"), ("top5", "R5"), ("top10", "R10")):
            assert scores[f"{direction}/{name}"] == pytest.approx(float(STORED[f"c{case}_{stored}_{key}"]), rel=1e-12)
        for name in ("mrr", "mean_rank", "median_rank"):
            assert scores[f"{direction}/{name}"] == pytest.approx(float(STORED[f"c{case}_{stored}_{name}"]), rel=1e-12)
    if int(STORED[f"c{case}_unit_norm"]):
        assert retrieval(u.double(), v.double(), similarity="cosine") == pytest.approx(
            retrieval(u.double(), v.double(), similarity="dot")
        )


@given(seed=st.integers(0, 2**31), size=st.integers(1, 12), chunk_size=st.integers(1, 13))
@settings(max_examples=30, deadline=None)
def test_ranks_equals_the_oracle_with_ties(seed: int, size: int, chunk_size: int) -> None:
    """Small integers give many exact ties."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.randint(-1, 2, (size, 2), generator=generator).float() for _ in range(2))
    scores = u @ v.T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mbcl.metrics._retrieval._CHUNK_ROWS", chunk_size)
        rank_N = ranks(u, v)
    for i, rank in enumerate(rank_N.tolist()):
        larger = sum(float(scores[i, j] > scores[i, i]) for j in range(size))
        equal = sum(float(scores[i, j] == scores[i, i]) for j in range(size) if j != i)
        assert rank == 1 + larger + equal / 2


def test_retrieval_equals_hand_values() -> None:
    u = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    scores = retrieval(u, u[[1, 0, 2]], ks=(1, 2, 100))
    # Partners 0 and 1 are exchanged: orthogonal, and ranked third. Sample 2 is its own partner.
    assert scores == {
        f"{direction}/{key}": value
        for direction in ("u2v", "v2u")
        for key, value in {
            "top1": 1 / 3,
            "top2": 1 / 3,
            "top100": 1.0,
            "mrr": pytest.approx((1 / 3 + 1 / 3 + 1) / 3),
            "mean_rank": pytest.approx(7 / 3),
            "median_rank": 3.0,
        }.items()
    }


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("size,dim,chunk_size", [(101, 16, 1024), (300, 128, 64), (64, 7, 10)])
def test_retrieval_of_a_collapsed_encoder_is_at_chance(
    similarity: str, size: int, dim: int, chunk_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbcl.metrics._retrieval._CHUNK_ROWS", chunk_size)
    row = torch.randn(1, dim, generator=torch.Generator().manual_seed(0))
    for u in (row.expand(size, dim), torch.zeros(size, dim)):
        scores = retrieval(u, u.clone(), similarity=similarity)  # type: ignore[arg-type]
        for direction in ("u2v", "v2u"):
            assert 0 < scores[f"{direction}/top1"] <= 2 / size, "1 / N, but for products that rounding makes unequal"
            assert scores[f"{direction}/mean_rank"] == pytest.approx((size + 1) / 2, rel=0.1)


@pytest.mark.parametrize("size", [1, 15, 101])
def test_retrieval_of_exact_ties_is_chance(size: int) -> None:
    """Products of whole numbers are exact, so all similarities are equal."""
    u = torch.tensor([[2.0, -3.0, 1.0]]).expand(size, 3)
    scores = retrieval(u, u, ks=(1, 5, 1000), similarity="dot")
    for direction in ("u2v", "v2u"):
        assert scores[f"{direction}/top1"] == pytest.approx(1 / size)
        assert scores[f"{direction}/top5"] == pytest.approx(min(1, 5 / size))
        assert scores[f"{direction}/top1000"] == 1
        assert scores[f"{direction}/mrr"] == pytest.approx(sum(1 / rank for rank in range(1, size + 1)) / size)
        assert scores[f"{direction}/mean_rank"] == (size + 1) / 2
    groups = u.expand(4, size, 3)
    assert retrieval_within(groups, groups, similarity="dot") == pytest.approx(
        {"u2v/top1": 1 / size, "v2u/top1": 1 / size}
    )


@given(seed=st.integers(0, 2**31), size=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_retrieval_of_ties_is_the_mean_over_their_orders(seed: int, size: int) -> None:
    """Small integers give many exact ties; a slow oracle gives each order of them the same weight."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.randint(-1, 2, (size, 2), generator=generator).float() for _ in range(2))
    scores, found = u @ v.T, retrieval(u, v, ks=(1, 3), similarity="dot")
    ranks_of = []
    for i in range(size):
        above = int((scores[i] > scores[i, i]).sum())
        ranks_of.append(range(above + 1, above + int((scores[i] == scores[i, i]).sum()) + 1))
    for k in (1, 3):
        assert found[f"u2v/top{k}"] == pytest.approx(
            np.mean([np.mean([rank <= k for rank in each]) for each in ranks_of])
        )
    assert found["u2v/mrr"] == pytest.approx(np.mean([np.mean([1 / rank for rank in each]) for each in ranks_of]))


def test_retrieval_by_cosine_ignores_length_and_by_dot_does_not() -> None:
    u, v = torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    longer = v * torch.linspace(0.1, 10, 40, dtype=torch.float64)[:, None]
    assert retrieval(u, longer) == pytest.approx(retrieval(u, v))
    assert retrieval(u, longer, similarity="dot") != pytest.approx(retrieval(u, v, similarity="dot"))


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_retrieval_ignores_order_and_swaps_directions_with_the_views(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, 15, 3, generator=generator, dtype=torch.float64)
    order = torch.randperm(15, generator=generator)
    scores, swapped = retrieval(u, v), retrieval(v, u)
    assert retrieval(u[order], v[order]) == pytest.approx(scores)
    assert all(swapped[f"v2u/{key[4:]}"] == value for key, value in scores.items() if key.startswith("u2v"))
    assert 0 <= scores["u2v/top1"] <= scores["u2v/top5"] <= scores["u2v/top10"] <= 1


def test_retrieval_is_the_same_in_half_precision_and_autocast() -> None:
    u, v = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    assert retrieval(u.half(), v.half()) == retrieval(u.half().float(), v.half().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = retrieval(u, v)
    assert inside == retrieval(u, v)


def test_retrieval_refuses_bad_input() -> None:
    eye = torch.eye(3)
    broken = eye.clone()
    broken[1, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 3 rows of v are not finite"):
        retrieval(eye, broken)
    for u, v in ((eye, eye[:2]), (eye[:0], eye[:0]), (eye[0], eye[0])):
        with pytest.raises(ValueError, match=r"two \(N, D\) tensors"):
            retrieval(u, v)
    with pytest.raises(ConfigError, match="similarity must be 'cosine' or 'dot', found 'l2'"):
        retrieval(eye, eye, similarity="l2")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="ks must be a whole number >= 1, found 0"):
        mbcl.metrics.retrieval(eye, eye, ks=(0,))


def test_retrieval_counts_overflow_as_a_tie() -> None:
    u = torch.full((5, 2), 3e38) * torch.tensor([1.0, -1.0])
    assert retrieval(u, u.flip(1), similarity="dot")["u2v/top1"] == 1 / 5  # inf - inf is nan


@pytest.mark.parametrize("group", range(int(STORED["n_groups"])))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_retrieval_within_equals_golden_values(group: int, dtype: torch.dtype) -> None:
    u, v = (torch.tensor(STORED[f"g{group}_z{view}"], dtype=dtype) for view in (1, 2))
    scores = retrieval_within(u, v, similarity="dot")
    assert scores["u2v/top1"] == pytest.approx(float(STORED[f"g{group}_fwd_R1"]), rel=1e-12)
    assert scores["v2u/top1"] == pytest.approx(float(STORED[f"g{group}_bwd_R1"]), rel=1e-12)
    alone = [retrieval_within(u[i : i + 1], v[i : i + 1], similarity="dot")["u2v/top1"] for i in range(len(u))]
    assert alone == pytest.approx(STORED[f"g{group}_per_image_fwd_R1"].tolist())


@given(seed=st.integers(0, 2**31), groups=st.integers(1, 4), members=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_retrieval_within_is_the_mean_over_groups(seed: int, groups: int, members: int) -> None:
    u, v = torch.randn(2, groups, members, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    each = [retrieval(a, b) for a, b in zip(u, v, strict=True)]
    for direction, score in retrieval_within(u, v).items():
        assert score == pytest.approx(np.mean([one[direction] for one in each]))


def test_retrieval_within_groups_of_equal_members_is_chance() -> None:
    expected = {"u2v/top1": pytest.approx(1 / 3), "v2u/top1": pytest.approx(1 / 3)}
    assert retrieval_within(torch.ones(4, 3, 2), torch.ones(4, 3, 2)) == expected
    with pytest.raises(ValueError, match=r"two \(G, M, D\) tensors"):
        retrieval_within(torch.ones(4, 2), torch.ones(4, 2))
    broken = torch.ones(4, 3, 2)
    broken[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 12 rows of u are not finite"):
        retrieval_within(broken, torch.ones(4, 3, 2))


def test_retrieval_of_one_direction_is_part_of_both() -> None:
    u, v = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    both, one = retrieval(u, v), retrieval(u, v, directions=("u2v",))
    assert one == {key: value for key, value in both.items() if key.startswith("u2v/")}
