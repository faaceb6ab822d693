"""Sides of two widths: plans of them, and of rows that hold both sides one after the other."""

from __future__ import annotations

import dataclasses
import math

import gloo
import numpy as np
import pytest
import torch
from samplers.small import build_small

import mbcl
from mbcl.errors import ConfigError, PlanError
from mbcl.plan import Embeddings
from mbcl.planner import PlanKey, make_plan
from mbcl.samplers import SAMPLERS, PoolSampler, build, check_plan, quality, upper_bound
from mbcl.samplers._separation import nearest
from mbcl.torch import PlannedBatchSampler, Replanner

N, B, WIDTHS = 120, 6, (7, 4)
ABLE = ["bisection", "diverse", "kmeans", "strata", "walk"]
OTHERS = [name for name in SAMPLERS if SAMPLERS[name].needs_embeddings and name not in ABLE]


def sides(num_samples: int = N, widths: tuple[int, int] = WIDTHS) -> Embeddings:
    generator = torch.Generator().manual_seed(4)
    z1, z2 = (torch.randn(num_samples, width, generator=generator, dtype=torch.float64) for width in widths)
    return Embeddings(z1, z2)


def padded(z: Embeddings) -> Embeddings:
    """Sides of one width whose products between the sides are zero."""
    first, second = z.widths
    zeros = [z.z1.new_zeros(len(z), width) for width in (second, first)]
    return Embeddings(torch.cat([z.z1, zeros[0]], dim=1), torch.cat([zeros[1], z.z2], dim=1))


@pytest.mark.parametrize("name", ABLE)
@pytest.mark.parametrize("options", [{}, {"skip": 2, "mix": 0.2}, {"apart": 3}])
def test_plans_are_those_of_the_sides_one_after_the_other(name, options):
    """A product of two such rows is the sum of the similarities within the sides."""
    groups = {"apart": np.arange(N) // options["apart"]} if "apart" in options else {}
    rules = {key: value for key, value in options.items() if key != "apart"}
    sampler = dataclasses.replace(build_small(name, B), **rules)  # type: ignore[type-var]
    plan, expected = (sampler.plan(N, z, seed=1, epoch=2, **groups) for z in (sides(), padded(sides())))
    assert check_plan(plan, sampler, N).digest == expected.digest
    assert plan.conflicts == expected.conflicts


@pytest.mark.parametrize("order", ["random", "near"])
@pytest.mark.parametrize("name", ["kmeans", "bisection"])
def test_communities_and_blocks_of_two_widths(name, order):
    blocks = {"block": 24} if name == "kmeans" else {}
    sampler = build(name, batch_size=B, pool=None, community=2, order=order, skip=1, **blocks)
    plan, expected = (sampler.plan(N, z) for z in (sides(), padded(sides())))
    assert sorted(plan.batches.flatten().tolist()) == list(range(N))
    if name == "bisection":  # blocks are cut in float32
        assert plan.digest == expected.digest


@pytest.mark.parametrize("name", ["kmeans"])
def test_two_widths_on_the_device(name):
    """What a GPU runs, here on the CPU."""
    sampler = build(name, batch_size=B, pool=60, skip=1)
    assert isinstance(sampler, PoolSampler)
    pools = [np.arange(0, N, 2), np.arange(1, N, 2)]
    for plan, expected in zip(
        *(sampler.plan_on_device(z, pools, [1, 2]) for z in (sides(), padded(sides()))), strict=True
    ):
        np.testing.assert_array_equal(plan.rows, expected.rows)


def test_nearest_are_those_by_the_similarities_within_the_sides():
    z = sides(30)
    u, v = (x / x.norm(dim=1, keepdim=True) for x in (z.z1, z.z2))
    similarity = (u @ u.T + v @ v.T).fill_diagonal_(-torch.inf)
    expected = similarity.argsort(dim=1, descending=True)[:, :4].numpy()
    np.testing.assert_array_equal(nearest(z.z1, z.z2, 4), expected)


@pytest.mark.parametrize("name", OTHERS)
def test_samplers_that_compare_the_sides_say_so(name):
    if name == "metis":
        pytest.importorskip("pymetis")
    sampler = build(name, batch_size=2) if name == "osgd_exhaustive" else build_small(name, B)
    rows = 8 if name == "osgd_exhaustive" else N
    for plan in (sampler.plan, lambda n, z: make_plan(sampler, z, PlanKey(0, 0), num_samples=n, seed=0)):
        with pytest.raises(ConfigError) as raised:
            plan(rows, sides(rows))
        assert str(raised.value) == (
            f"sampler {name!r} compares side one with side two, so both need one width: z1 has 7 dimensions, z2 has 4; "
            "without margins, bisection, diverse, kmeans, strata, walk compare each side with itself only"
        )


@pytest.mark.parametrize("margin", ["relative_margin", "absolute_margin"])
def test_margins_compare_the_sides(margin):
    with pytest.raises(ConfigError, match="sampler 'kmeans' with a margin compares side one with side two"):
        build("kmeans", batch_size=B, pool=30, **{margin: 0.1}).plan(N, sides())


def test_samplers_without_embeddings_ignore_the_widths():
    assert build("shuffle", batch_size=B).plan(N, sides()).digest == build("shuffle", batch_size=B).plan(N).digest


def test_no_loss_is_measured_on_two_widths():
    z, sampler = sides(), build("kmeans", batch_size=B, pool=None)
    plan = sampler.plan(N, z)
    for measure in (quality, upper_bound):
        with pytest.raises(ConfigError, match="one width: z1 has 7 dimensions, z2 has 4"):
            measure(plan, z)
    made = make_plan(sampler, z, PlanKey(0, 0), num_samples=N, seed=0)
    assert made.plan.digest == plan.digest
    assert math.isnan(made.loss)
    assert math.isnan(made.lift)


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((3, 2), (3, 0)), ((3, 2), (3,))])
def test_other_shapes_are_refused(shapes):
    with pytest.raises(PlanError, match="embeddings must"):
        Embeddings(*(torch.zeros(shape) for shape in shapes))


# -- in a loop -----------------------------------------------------------------------------------------------------


def embed(positions):
    z = sides()
    return z.z1[positions], z.z2[positions]


@pytest.mark.parametrize("background", [False, True])
def test_a_replanner_takes_two_widths(background):
    sampler = build("kmeans", batch_size=B, pool=None)
    with Replanner(sampler, num_samples=N, embed=embed, background=background, epochs=2) as replanner:
        batches = PlannedBatchSampler(replanner)
        for epoch in range(2):
            batches.set_epoch(epoch)
            assert list(batches) == sampler.plan(N, sides(), epoch=epoch).batches.tolist()
        assert math.isnan(replanner.newest.lift)


def test_observed_sides_of_two_widths_are_kept_and_resumed():
    z = sides()
    first, second = (Replanner("kmeans", batch_size=B, pool=None, num_samples=N) for _ in range(2))
    for part in torch.arange(N).split(50):
        first.observe(part, z.z1[part], z.z2[part])
    second.load_state_dict(first.state_dict())
    expected = build("kmeans", batch_size=B, pool=None).plan(N, z).digest
    assert first.plan(0).digest == second.plan(0).digest == expected
    with pytest.raises(ConfigError, match=r"observe: expected two \(2, 7\) and \(2, 4\) tensors of one float dtype"):
        first.observe(torch.arange(2), z.z2[:2], z.z1[:2])
    with pytest.raises(ConfigError, match="'refined' compares side one with side two.*z1 has 7 dimensions, z2 has 4"):
        Replanner("refined", batch_size=B, num_samples=N, pool=None).observe(torch.arange(N), z.z1, z.z2)


def _on_a_rank(world):
    """One chunk of samples: the second rank embeds none, and learns both widths from the first."""
    with Replanner("kmeans", batch_size=B, pool=None, num_samples=N, embed=embed) as replanner:
        return replanner.plan(0).digest


@pytest.mark.dist
def test_two_ranks_plan_from_two_widths():
    assert (
        gloo.run(_on_a_rank, 2) == [mbcl.samplers.build("kmeans", batch_size=B, pool=None).plan(N, sides()).digest] * 2
    )
