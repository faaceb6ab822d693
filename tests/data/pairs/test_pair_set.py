"""Sets of pairs: views, dropout, parts and splits."""

from __future__ import annotations

import pytest
import torch

from mbcl.data import PairSet
from mbcl.errors import ConfigError, DataError


def pairs(num: int = 12, widths: tuple[int, int] = (4, 6), **changes) -> PairSet:
    generator = torch.Generator().manual_seed(0)
    x1, x2 = (torch.randn(num, width, generator=generator) + 3 for width in widths)
    return PairSet(**{"x1": x1, "x2": x2, "labels": torch.arange(num) % 3, "name": "made", **changes})


def test_views_are_side_one_then_side_two_padded():
    made = pairs()
    positions = torch.tensor([5, 0, 7])
    views = made.views(positions, seed=0, epoch=0)
    first, second = views.chunk(2)
    assert torch.equal(first[:, :4], made.x1[positions])
    assert torch.equal(first[:, 4:], torch.zeros(3, 2))
    assert torch.equal(second, made.x2[positions])
    assert torch.equal(made.clean(positions), views)


def test_dropout_is_a_function_of_seed_epoch_and_position():
    made = pairs(dropout=0.4)
    positions = torch.tensor([5, 0, 7])
    views = made.views(positions, seed=1, epoch=2)
    assert torch.equal(views, made.views(positions, seed=1, epoch=2))
    alone = made.views(positions[1:2], seed=1, epoch=2)
    assert torch.equal(views.view(2, 3, -1)[:, 1], alone)
    assert not torch.equal(views, made.views(positions, seed=1, epoch=3))
    assert not torch.equal(views, made.views(positions, seed=2, epoch=2))
    assert torch.equal(made.clean(positions), pairs().clean(positions)), "measured as they are"


def test_dropout_drops_its_share_and_keeps_the_mean():
    num = 4000
    made = PairSet(torch.ones(num, 8), torch.ones(num, 8), torch.zeros(num, dtype=torch.int64), "made", dropout=0.25)
    views = made.views(torch.arange(num), seed=0, epoch=0)
    assert views.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    # of 64,000 numbers the share has a standard deviation of 0.0017
    assert abs(float((views == 0).double().mean()) - 0.25) < 6 * 0.0017
    first, second = views.chunk(2)
    assert not torch.equal(first, second), "both sides have their own"


def test_parts_and_subsets_have_the_pairs_of_their_positions():
    made = pairs(groups=torch.arange(12) // 2)
    chosen, nested = torch.tensor([8, 3, 4]), torch.tensor([2, 0])
    for part in (made.part(chosen), made.subset(chosen)):
        assert torch.equal(part.clean(torch.arange(3)), made.clean(chosen))
        assert part.labels.tolist() == made.labels[chosen].tolist()
        assert part.groups.tolist() == [4, 1, 2]
        assert torch.equal(part.part(nested).clean(torch.arange(2)), made.clean(chosen[nested]))
    assert made.part(chosen).stored_bytes() == made.stored_bytes(), "a part shares the memory"
    assert torch.equal(made.part(chosen).to("cpu").clean(nested), made.clean(chosen[nested]))


def test_by_sample_puts_both_sides_beside_each_other():
    outputs = torch.arange(8.0).view(4, 2)
    assert pairs().by_sample(outputs).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_split_keeps_groups_together():
    made = pairs(40, groups=torch.arange(40) // 4)
    first, second = made.split(0.3, 0, "validation")
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(40))
    assert len(second) == 12
    assert not set(made.groups[first].tolist()) & set(made.groups[second].tolist())
    assert first.tolist() == sorted(first.tolist())
    assert made.split(0.3, 1, "validation")[1].tolist() != second.tolist()
    assert [len(part) for part in pairs(40).split(0.25, 0, "validation")] == [30, 10]
    assert len(made.split(0.999, 0, "validation")[0]) == 4, "each part has a group"
    assert len(made.split(0.001, 0, "validation")[1]) == 4
    with pytest.raises(ConfigError, match="at least 2 groups of them, found 1"):
        pairs(4, groups=torch.zeros(4, dtype=torch.int64)).split(0.5, 0, "validation")
    with pytest.raises(ConfigError, match="data: a split of pairs needs at least 2 pairs, found 1$"):
        pairs(1).split(0.5, 0, "validation")
    with pytest.raises(ConfigError, match=r"must be in \(0, 1\), found 1"):
        made.split(1.0, 0, "validation")


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"x1": torch.zeros(12, 4, dtype=torch.float64)},
            r"x1 must be \(N, D\) float32, found \(12, 4\) torch.float64",
        ),
        ({"x2": torch.zeros(12)}, r"x2 must be \(N, D\) float32"),
        ({"x2": torch.zeros(11, 6)}, "x1 has 12 rows, x2 has 11"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "12 pairs need as many int64 labels"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), found 1.0"),
        ({"x1": torch.zeros(0, 4), "x2": torch.zeros(0, 6), "labels": torch.arange(0)}, "it holds no pairs"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(changes, message):
    with pytest.raises((DataError, ConfigError), match=message):
        pairs(**changes)
