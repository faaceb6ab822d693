"""A sampler whose every plan is checked, and the data sets that it is checked with.

Letters: N samples of the data set, B samples a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mbcl.errors import ConfigError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import PoolMap, Sampler, check_plan, serial
from mbcl.testing._promises import broken, one_line

MAX_SAMPLES = 2**20
"""The largest data set that is tried to find one that the sampler accepts."""


@dataclass(frozen=True)
class CheckedPlanner:
    """A sampler whose every plan is checked; ``subject`` is what error messages call it."""

    sampler: Sampler
    subject: str

    def __call__(
        self,
        embeddings: Embeddings,
        *,
        seed: int = 0,
        epoch: int = 0,
        round: int = 0,
        map_pools: PoolMap = serial,
        description: str = "random embeddings",
    ) -> BatchPlan:
        """Plan all samples of the embeddings and check the plan.

        Raises:
            AssertionError: if a promise about a single plan is broken.
        """
        sampler, num_samples = self.sampler, len(embeddings)
        case = f"(N = {num_samples}, seed {seed}, epoch {epoch}, round {round}, {description})"
        promised = f"a plan with no_repeats {sampler.no_repeats} and covers_all {sampler.covers_all}"
        before = [tensor.clone() for tensor in (embeddings.z1, embeddings.z2, embeddings.indices)]
        try:
            plan = sampler.plan(num_samples, embeddings, seed=seed, epoch=epoch, round=round, map_pools=map_pools)
            check_plan(plan, sampler, num_samples)
        except Exception as error:
            raise self.broken("plan", promised, f"{one_line(error)} {case}") from error
        if not all(map(torch.equal, before, (embeddings.z1, embeddings.z2, embeddings.indices))):
            raise self.broken("embeddings", "that planning leaves them unchanged", f"other values {case}")
        key, expected = (plan.sampler, plan.seed, plan.epoch, plan.round), (sampler.name, seed, epoch, round)
        if key != expected:
            raise self.broken("name, seed, epoch and round of the plan", str(expected), str(key))
        return plan

    def with_sampler(self, sampler: Sampler) -> CheckedPlanner:
        """Return a planner of another sampler, which errors call the same."""
        return CheckedPlanner(sampler, self.subject)

    def broken(self, promise: str, promised: str, found: str) -> AssertionError:
        """Return the error for a broken promise."""
        return broken(self.subject, promise, promised, found)

    def expect_equal(self, plan: BatchPlan, other: BatchPlan, promise: str, promised: str) -> None:
        """Check that two plans are equal.

        Raises:
            AssertionError: if they are not.
        """
        if plan.digest != other.digest:
            different = int((plan.batches != other.batches).any(dim=1).sum())
            found = f"{different} of {len(plan)} batches differ (seed {plan.seed}, epoch {plan.epoch})"
            raise self.broken(promise, promised, found)

    def accepted_sizes(self) -> list[int]:
        """Return some N that the sampler accepts, ascending; the last is not a multiple of B if any of them is not.

        Raises:
            AssertionError: if none is accepted.
        """
        batch = self.sampler.batch_size
        sizes = [size for size in (batch, batch + 1, 4 * batch + 3, 10 * batch, 10 * batch + 1) if self._accepts(size)]
        size = 20 * batch
        while not sizes:
            if size > MAX_SAMPLES:
                raise self.broken("check", f"that some N up to {MAX_SAMPLES:,} is accepted", "a ConfigError for each")
            sizes = [each for each in (size, size + 1) if self._accepts(each)]
            size *= 2
        return sizes

    def _accepts(self, num_samples: int) -> bool:
        try:
            self.sampler.check(num_samples)
        except ConfigError:
            return False
        except Exception as error:
            found = f"{one_line(error)} (N = {num_samples})"
            raise self.broken("check", "no error or a ConfigError", found) from error
        return True
