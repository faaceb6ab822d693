"""Samplers that break one promise each: ``check_sampler`` names it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from mbcl.errors import ConfigError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import FloatArray, PoolMap, PoolPlan, PoolSampler, Shuffle, serial
from mbcl.seeding import numpy_generator
from mbcl.testing import check_sampler, extreme_embeddings

CALLS: list[int] = []


@dataclass(frozen=True, kw_only=True)
class Planned(Shuffle):
    """Keeps every promise; a subclass changes the order of the samples, or what stands around it."""

    name: ClassVar[str] = "planned"
    needs_embeddings: ClassVar[bool] = True

    def order(self, z1: torch.Tensor, key: tuple[int, int, int]) -> np.ndarray:
        return numpy_generator(key[0], "planned", *key[1:]).permutation(len(z1))

    def plan(
        self,
        num_samples: int,
        embeddings: Embeddings | None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
        round: int = 0,
        map_pools: PoolMap = serial,
    ) -> BatchPlan:
        self.check(num_samples)
        z1 = torch.zeros(num_samples, 1)
        if self.needs_embeddings:
            z1 = (embeddings or Embeddings(z1[:0], z1[:0])).ordered(num_samples).z1
        order = self.order(z1, (seed, epoch, round))[: self.plan_length(num_samples) * self.batch_size]
        return BatchPlan(torch.from_numpy(order.reshape(-1, self.batch_size)), self.name, seed, epoch, round)


class Repeats(Planned):
    """One of the samples stands in for another."""

    def order(self, z1, key):
        order = super().order(z1, key)
        order[self.batch_size % len(order)] = order[0]
        return order


class LeavesOut(Planned):
    no_repeats = False

    def order(self, z1, key):
        order = super().order(z1, key)
        return np.concatenate([order[: self.batch_size]] * self.plan_length(len(z1)))


class ReadsTheGlobalState(Planned):
    def order(self, z1, key):
        return np.random.permutation(len(z1))  # noqa: NPY002


class ReadsTorchsGlobalState(Planned):
    def order(self, z1, key):
        return torch.randperm(len(z1)).numpy()


class DrawsFromTheGlobalState(Planned):
    def order(self, z1, key):
        torch.rand(1)
        return super().order(z1, key)


class Counts(Planned):
    def order(self, z1, key):
        CALLS.append(0)
        return super().order(z1, (key[0] + len(CALLS), *key[1:]))


class IgnoresTheSeed(Planned):
    def order(self, z1, key):
        return super().order(z1, (0, *key[1:]))


class IgnoresTheRound(Planned):
    def order(self, z1, key):
        return super().order(z1, (*key[:2], 0))


class ReadsTheThreads(Planned):
    def order(self, z1, key):
        return super().order(z1, (key[0] + torch.get_num_threads(), *key[1:]))


class WritesToTheEmbeddings(Planned):
    def order(self, z1, key):
        z1.copy_(torch.nn.functional.normalize(z1))
        return super().order(z1, key)


class WritesInPlace(Planned):
    def plan(self, num_samples, embeddings=None, **key):
        if embeddings is not None:
            embeddings.z1.mul_(2)
        return super().plan(num_samples, embeddings, **key)


class FailsOnDuplicates(Planned):
    def order(self, z1, key):
        if len(z1.unique(dim=0)) == 1:
            raise ValueError("all rows are equal\nand so are these two lines")
        return super().order(z1, key)


class PlansTooFew(Planned):
    def check(self, num_samples):
        pass

    def plan_length(self, num_samples):
        return max(1, super().plan_length(num_samples))


class OtherError(Planned):
    def check(self, num_samples):
        assert num_samples >= self.batch_size


class CannotCheck(Planned):
    def check(self, num_samples):
        raise TypeError("no numbers")


class NoNumbers(Planned):
    def check(self, num_samples):
        if num_samples < self.batch_size:
            raise ConfigError("too few samples")


class RefusesAll(Planned):
    def check(self, num_samples):
        raise ConfigError(f"{num_samples} samples")


class OneBatchLess(Planned):
    def plan(self, *arguments, **others):
        plan = super().plan(*arguments, **others)
        return BatchPlan(plan.batches[1:], plan.sampler, plan.seed, plan.epoch, plan.round)


class OtherEpoch(Planned):
    def plan(self, *arguments, epoch=0, **others):
        plan = super().plan(*arguments, epoch=epoch, **others)
        return BatchPlan(plan.batches, plan.sampler, plan.seed, 0, plan.round)


class NeedsNoEmbeddings(Planned):
    """It says so, and plans otherwise without them."""

    needs_embeddings = False

    def plan(self, num_samples, embeddings=None, *, seed=0, **others):
        return super().plan(num_samples, embeddings, seed=seed + (embeddings is None), **others)


class TakesAnyEmbeddings(Planned):
    def plan(self, num_samples, embeddings=None, **key):
        z = torch.zeros(num_samples, 1)
        return super().plan(num_samples, Embeddings(z, z), **key)


class ReadsTheOrderOfRows(Planned):
    def plan(self, num_samples, embeddings=None, **others):
        plan = super().plan(num_samples, embeddings, **others)
        batches = plan.batches.roll(int(embeddings.indices[0] > 0), 0)
        return BatchPlan(batches, plan.sampler, plan.seed, plan.epoch, plan.round)


@dataclass(kw_only=True, unsafe_hash=True)
class Mutable:
    name: ClassVar[str] = "mutable"
    needs_embeddings: ClassVar[bool] = False
    no_repeats: ClassVar[bool] = True
    covers_all: ClassVar[bool] = True
    batch_size: int = 4


class DoesNotPickle(Planned):
    def __reduce__(self):
        raise TypeError("cannot pickle a lock")


@dataclass(frozen=True, kw_only=True)
class Pools(PoolSampler):
    name: ClassVar[str] = "pools"

    def pool_sizes(self, num_samples: int) -> list[int]:
        return [self.batch_size] * self.plan_length(num_samples)

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        return PoolPlan(np.argsort(z1_MD[:, 0]).reshape(1, -1))


class WritesToPools(Pools):
    def plan_one(self, z1_MD, z2_MD, seed):
        z1_MD *= 2
        return super().plan_one(z1_MD, z2_MD, seed)


class SharesReadOnlyMemory(Pools):
    def plan_one(self, z1_MD, z2_MD, seed):
        return PoolPlan(torch.from_numpy(z1_MD)[:, 0].argsort(stable=True).numpy().reshape(1, -1))


class CountsPools(Pools):
    """The plan of a pool depends on the order in which pools are planned."""

    def plan_pools(self, embeddings, pools, seeds, map_pools=serial):
        CALLS.clear()
        return super().plan_pools(embeddings, pools, seeds, map_pools)

    def plan_one(self, z1_MD, z2_MD, seed):
        CALLS.append(0)
        rows = super().plan_one(z1_MD, z2_MD, seed).rows
        return PoolPlan(np.roll(rows, len(CALLS)))


class IgnoresTheMap(Pools):
    def plan_pools(self, embeddings, pools, seeds, map_pools=serial):
        return super().plan_pools(embeddings, pools, seeds, serial)


class OneRoundForAll(Pools):
    def plan_rounds(self, *arguments, rounds=(0,), **others):
        return super().plan_rounds(*arguments, rounds=[rounds[0]] * len(rounds), **others)


class IgnoresApart(Shuffle):
    def plan(self, num_samples, embeddings=None, apart=None, together=None, **key):
        plan = super().plan(num_samples, embeddings, together=together, **key)
        return replace(plan, batch_conflicts=None if apart is None else torch.zeros(len(plan), dtype=torch.int64))


class CountsButDoesNotPart(Shuffle):
    def rows_in_groups(self, num_samples, groups, *key):
        return super().rows_in_groups(num_samples, replace(groups, apart=None), *key)


class ChangesForDifferentIds(Shuffle):
    def rows_in_groups(self, num_samples, groups, *key):
        return super().rows_in_groups(num_samples, groups, *key)[::-1].copy()


class CrossesSources(Shuffle):
    def rows_in_groups(self, num_samples, groups, *key):
        rows = super().rows_in_groups(num_samples, groups, *key)
        return rows if groups.together is None else np.sort(rows, axis=None).reshape(rows.shape)


class OneSource(Shuffle):
    covers_all = False
    no_repeats = False

    def rows_in_groups(self, num_samples, groups, *key):
        rows = super().rows_in_groups(num_samples, groups, *key)
        return rows if groups.together is None else np.repeat(rows[:1], len(rows), axis=0)


class TakesAnyIds(Shuffle):
    def plan(self, num_samples, embeddings=None, apart=None, together=None, **key):
        apart = None if apart is None else np.resize(np.asarray(apart).astype(int), num_samples)
        return super().plan(num_samples, embeddings, apart=apart, together=together, **key)


BROKEN: list[tuple[Any, str]] = [
    (IgnoresApart, r"apart: promised that conflicts count the pairs of one id in a batch, found 0 for 120 pairs"),
    (
        CountsButDoesNotPart,
        r"apart: promised that 2 samples of one id are in as many of 10 batches, found .* \(pairs\)",
    ),
    (ChangesForDifferentIds, "apart: promised the same plan for different ids, found 10 of 10 batches differ"),
    (CrossesSources, "together: promised batches of one source each, found a batch of both"),
    (OneSource, "together: promised batches of each source that fills one, found batches of one source only"),
    (TakesAnyIds, "ConfigError: promised a ConfigError of one line for apart with an id too few, found no error"),
    (Repeats, "sampler 'planned': plan: promised a plan with no_repeats True .*PlanError: planned: .* a sample twice"),
    (LeavesOut, r"plan: promised .* covers_all True, found PlanError: planned: promises .* visits 4 \(N = "),
    (ReadsTheGlobalState, "'planned': global random state: promised plans that do not depend on it, found .* batches"),
    (ReadsTorchsGlobalState, "global random state: promised plans that do not depend on it"),
    (DrawsFromTheGlobalState, "global random state: promised that planning does not change it, found another state"),
    (Counts, "pure function: promised equal plans for equal arguments, found 10 of 10 batches differ"),
    (IgnoresTheSeed, "seed, epoch and round: .* or on none of them, found that they depend on epoch and round"),
    (IgnoresTheRound, "seed, epoch and round: .* found that they depend on epoch and seed"),
    (ReadsTheThreads, "torch threads: promised plans that do not depend on their number"),
    (WritesToTheEmbeddings, "embeddings: promised that planning leaves them unchanged"),
    (WritesInPlace, r"embeddings: promised that planning leaves them unchanged, found other values \(N = 41, seed 0"),
    (FailsOnDuplicates, r"plan: .* found ValueError: all rows are equal \(.*, all rows equal\)"),
    (PlansTooFew, "ConfigError: promised a ConfigError of one line for 0 samples for batches of 4, found no error"),
    (OtherError, "ConfigError: promised a ConfigError of one line for 0 samples .*, found AssertionError"),
    (CannotCheck, r"check: promised no error or a ConfigError, found TypeError: no numbers \(N = 4\)"),
    (NoNumbers, "ConfigError: promised a message with both numbers for .*, found 'too few samples'"),
    (RefusesAll, "check: promised that some N up to 1,048,576 is accepted, found a ConfigError for each"),
    (OneBatchLess, r"plan: .* PlanError: planned: \(10, 4\) batches were promised, found \(9, 4\)"),
    (OtherEpoch, r"name, seed, epoch and round of the plan: promised \('planned', 0, 1, 0\), found"),
    (NeedsNoEmbeddings, "needs_embeddings: promised plans that do not depend on embeddings"),
    (TakesAnyEmbeddings, "PlanError: promised a PlanError of one line for no embeddings, found no error"),
    (ReadsTheOrderOfRows, "rows: promised plans that do not depend on the rows' order"),
    (Mutable, "sampler 'mutable': frozen: promised that attributes cannot be set, found that batch_size can be set"),
    (DoesNotPickle, "picklable: promised a sampler that pickles, found TypeError: cannot pickle a lock"),
    (WritesToPools, "plan: .* found ValueError: .*read-only.*pools planned last first, from read-only arrays"),
    (SharesReadOnlyMemory, "plan: .* found UserWarning: The given NumPy array is not writable"),
    (CountsPools, "map_pools: promised plans that do not depend on the map over pools"),
    (IgnoresTheMap, "map_pools: promised that a PoolSampler plans its pools by it, found that it was not called"),
    (OneRoundForAll, "plan_rounds: promised the plans of the single rounds"),
]


@pytest.mark.parametrize(("sampler", "message"), BROKEN, ids=[sampler.__name__ for sampler, _ in BROKEN])
def test_a_broken_promise_is_named_in_one_line(sampler, message):
    before = torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(AssertionError) as raised:
        check_sampler(sampler(batch_size=4))
    assert re.search(message, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == torch.get_num_threads()


@pytest.mark.parametrize("sampler", [Planned(batch_size=4), Planned(batch_size=32), Pools(batch_size=4)])
def test_samplers_outside_the_package_pass(sampler):
    check_sampler(sampler)


def test_a_name_takes_parameters_and_a_sampler_none():
    check_sampler("s")
    check_sampler("shuffle", batch_size=7)
    with pytest.raises(ConfigError, match="sampler 'shuffle': unknown parameter 'pool'"):
        check_sampler("shuffle", pool=12)
    with pytest.raises(ConfigError, match="check_sampler: parameters need the name of a sampler"):
        check_sampler(Shuffle(batch_size=4), batch_size=5)


def test_a_sampler_that_needs_many_samples_is_checked_with_as_many():
    check_sampler("osgd", batch_size=2, k=100, q=10)


@pytest.mark.parametrize("num_samples", [2, 41])
def test_extreme_embeddings_hold_every_sample(num_samples):
    cases = extreme_embeddings(num_samples)
    assert len(cases) > 40
    assert {len(embeddings) for embeddings in cases.values()} == {num_samples}
