"""``apart``, ``together`` and margins in a loop of one's own: planned batches, and random ones before a plan."""

from __future__ import annotations

from typing import Any

import gloo
import numpy as np
import pytest
import torch
from torch_loop.loops import B, Loop, N, cut_and_resumed, samples, whole

from mbcl import samplers
from mbcl.errors import ConfigError, SamplerWarning
from mbcl.plan import Embeddings
from mbcl.planner import PlanKey, make_plan
from mbcl.torch import PlannedBatchSampler, Replanner

APART = np.arange(N) // 2
SOURCE = np.array(["en", "de"])[(np.arange(N) < 10).astype(int)]
"""Sources of 14 and 10 samples fill 3 and 2 batches of 4; 24 samples of one source would fill 6."""
GROUPS: dict[str, dict[str, Any]] = {
    "apart": {"apart": APART},
    "together": {"together": SOURCE},
    "both": {"apart": torch.from_numpy(APART), "together": SOURCE.tolist()},
}
RULE: dict[str, Any] = {"pool": None, "absolute_margin": 0.3}
STEPS = {"apart": 6, "together": 5, "both": 5}


def embeddings():
    z = samples()
    return Embeddings(z, z + 0.1)


def embed(positions):
    z = samples()
    return z[positions], z[positions] + 0.1


def planned(epoch, name="kmeans", groups=None, **parameters):
    """The engine's plan, made of the sampler with the groups."""
    sampler = samplers.with_groups(samplers.build(name, batch_size=B, **parameters), **(groups or {}))
    return make_plan(sampler, embeddings(), PlanKey(epoch, 0), num_samples=N, seed=3).plan


def shuffled(epoch, groups):
    plan = samplers.build("shuffle", batch_size=B).plan(N, seed=3, epoch=epoch, **groups)
    return plan.batches.tolist()


def epochs_of(batches, epochs=4):
    result = []
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        result.append(list(batches))
    return result


def keeps(batches, kind):
    """Whether no batch breaks a rule: two samples a group are parted over two batches or more."""
    groups = GROUPS[kind]
    apart = "apart" not in groups or all(len({APART[i] for i in batch}) == B for batch in batches)
    return apart and ("together" not in groups or all(len({SOURCE[i] for i in batch}) == 1 for batch in batches))


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("background", [False, True])
def test_planned_and_random_batches_keep_the_groups(kind, background):
    """The first epoch is a warm-up; the plans are those of the sampler with the groups."""
    options = {"num_samples": N, "embed": embed, "seed": 3, "warmup_epochs": 1, "background": background}
    with Replanner("kmeans", batch_size=B, pool=None, epochs=4, **options, **GROUPS[kind]) as replanner:
        epochs = epochs_of(PlannedBatchSampler(replanner))
        assert replanner.newest.plan.conflicts == (0 if "apart" in GROUPS[kind] else None)
    assert epochs[0] == shuffled(0, GROUPS[kind])
    for epoch in range(1, 4):
        assert epochs[epoch] == planned(epoch, groups=GROUPS[kind], pool=None).batches.tolist()
    assert [len(each) for each in epochs] == [STEPS[kind]] * 4
    assert all(keeps(each, kind) for each in epochs)


@pytest.mark.parametrize("kind", GROUPS)
def test_batches_before_the_first_observed_plan_keep_the_groups(kind):
    """Without ``embed`` every sample has to be observed; sources leave two samples of each out of an epoch."""
    loop = Loop(with_embed=False, **GROUPS[kind])
    epochs, plans = [], []
    for epoch in range(8):
        start = len(loop.seen)
        for _ in loop.run(epoch + 1):
            pass
        epochs.append(loop.seen[start:])
        plans.append(loop.replanner._plan.sampler)
        loop.batches.set_epoch(epoch + 1)
    first = plans.index("spectral")
    assert 1 <= first < 7
    assert epochs[:first] == [shuffled(epoch, GROUPS[kind]) for epoch in range(first)]
    assert all(keeps(each, kind) for each in epochs)


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("cut", [2, 7])
def test_a_training_with_groups_resumes(kind, cut):
    options: dict[str, Any] = {"embeddings": "cached", **GROUPS[kind]}
    first, second = cut_and_resumed(cut, 3, **options)
    assert first.seen + second.seen == whole(3, **options).seen


def test_margins_hold_in_a_loop():
    """Parts of an epoch are planned with the margin, and their conflicts are those of all its batches."""
    options = {"batch_size": B, "pool": None, "absolute_margin": 0.3, "num_samples": N, "embed": embed, "seed": 3}
    assert Replanner("refined", **options).plan(0).digest == planned(0, "refined", **RULE).digest
    replanner = Replanner("refined", every=4, unit="step", **options)
    replanner.plan(0)
    plan = replanner.plan(0, 4)
    z1, z2 = (torch.nn.functional.normalize(z, dim=1) for z in embed(torch.arange(N)))
    forbidden = z1 @ z2.T >= ((z1 * z2).sum(dim=1) - 0.3)[:, None]
    expected = [sum(bool(forbidden[i, j]) for i in row for j in row if i != j) for row in plan.batches.tolist()]
    assert plan.batch_conflicts.tolist() == expected
    assert len(expected) == 6


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("name", ["shuffle", "kmeans"])
def test_plans_of_fixed_embeddings_keep_the_groups(kind, name):
    """An epoch with sources has the batches that they fill, of one round: no sample twice."""
    parameters = {"pool": None} if name == "kmeans" else {}
    make = PlannedBatchSampler.from_sampler
    batches = make(name, embeddings(), batch_size=B, seed=3, **parameters, **GROUPS[kind])
    sampler = samplers.build(name, batch_size=B, **parameters)
    epochs = epochs_of(batches)
    for epoch in range(4):
        assert epochs[epoch] == sampler.plan(N, embeddings(), seed=3, epoch=epoch, **GROUPS[kind]).batches.tolist()
        assert len(sum(epochs[epoch], [])) == len(set(sum(epochs[epoch], []))) == STEPS[kind] * B
    assert len(batches) == STEPS[kind]
    assert all(keeps(each, kind) for each in epochs)
    bound = samplers.with_groups(sampler, **GROUPS[kind])
    assert epochs_of(make(bound, embeddings(), seed=3)) == epochs


def test_a_short_batch_would_mix_sources():
    for groups in (GROUPS["together"], GROUPS["both"]):
        with pytest.raises(ConfigError, match="or keep sources together, so what is left is no short batch"):
            PlannedBatchSampler(
                Replanner("kmeans", batch_size=B, num_samples=N, embed=embed, pool=None, **groups), drop_last=False
            )
        with pytest.raises(ConfigError, match="or keep sources together"):
            PlannedBatchSampler.from_sampler("shuffle", num_samples=N, batch_size=B, drop_last=False, **groups)
    batches = PlannedBatchSampler.from_sampler("shuffle", num_samples=N, batch_size=5, drop_last=False, apart=APART)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 4]


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="apart must have one id for each of 24 samples, found 23"):
        Replanner("kmeans", batch_size=B, num_samples=N, embed=embed, pool=None, apart=APART[1:])
    with pytest.raises(ConfigError, match="together: ids must be whole numbers or strings"):
        Replanner("kmeans", batch_size=B, num_samples=N, embed=embed, pool=None, together=APART / 2)
    bound = samplers.with_groups(samplers.build("kmeans", batch_size=B, pool=None), apart=APART)
    with pytest.raises(ConfigError, match="'kmeans' has apart or together already; give both at once"):
        Replanner(bound, num_samples=N, embed=embed, together=SOURCE)
    with pytest.warns(SamplerWarning, match="the largest group of apart has 24 samples, more than the 6 batches"):
        Replanner("kmeans", batch_size=B, num_samples=N, embed=embed, pool=None, apart=APART * 0)


def _on_a_rank(world, kind):
    gloo.allow_children()
    options = {"num_samples": N, "embed": embed, "seed": 3, "warmup_epochs": 1, "background": True, "epochs": 3}
    with Replanner("kmeans", batch_size=B, pool=None, **options, **GROUPS[kind]) as replanner:
        return epochs_of(PlannedBatchSampler(replanner), 3)


@pytest.mark.dist
def test_two_ranks_have_the_columns_of_batches_that_keep_the_groups():
    for kind in GROUPS:
        one, other = gloo.run(_on_a_rank, 2, kind)
        expected = [shuffled(0, GROUPS[kind])]
        expected += [planned(epoch, groups=GROUPS[kind], pool=None).batches.tolist() for epoch in (1, 2)]
        joined = [[a + b for a, b in zip(*epochs, strict=True)] for epochs in zip(one, other, strict=True)]
        assert joined == expected
