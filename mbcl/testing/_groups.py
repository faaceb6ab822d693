"""The contract test of samplers with groups: ``apart`` and ``together`` of :meth:`mbcl.samplers.Sampler.plan`.

Letters: N samples of the data set, S batches of a plan, B samples a batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mbcl.errors import ConfigError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import PoolMap, with_groups
from mbcl.seeding import numpy_generator
from mbcl.testing._checked_plans import CheckedPlanner
from mbcl.testing._extremes import random_views
from mbcl.testing._promises import one_line

Ids = NDArray[np.int64]


def check_groups(planner: CheckedPlanner, num_samples: int, map_pools: PoolMap) -> None:
    """Check plans with groups of every kind, if the sampler's ``plan`` takes groups and does not refuse them.

    Args:
        planner: plans and checks.
        num_samples: an N that the sampler accepts.
        map_pools: another map over pools.
    """
    sampler = planner.sampler
    if not {"apart", "together"} <= set(inspect.signature(sampler.plan).parameters):
        return
    embeddings = Embeddings(*random_views(num_samples))
    try:
        sampler.plan(num_samples, embeddings, apart=np.arange(num_samples))
    except ConfigError:
        return  # as "all batches", which no group can change
    _check_apart(planner, embeddings)
    _check_together(planner, num_samples, map_pools)
    for name in ("apart", "together"):
        for description, ids in _unusable_ids(num_samples).items():
            _expect_refusal(planner, f"{name} with {description}", partial(_plan, planner, embeddings, **{name: ids}))


def _unusable_ids(num_samples: int) -> dict[str, object]:
    """Return ids that are to be refused, by a description."""
    return {
        "an id too few": np.arange(num_samples - 1),
        "an id too many": np.arange(num_samples + 1),
        "two ids a sample": np.zeros((num_samples, 2), dtype=np.int64),
        "fractions": np.linspace(0, 1, num_samples),
    }


def _plan(planner: CheckedPlanner, embeddings: Embeddings, **groups: object) -> BatchPlan:
    return planner.sampler.plan(len(embeddings), embeddings, **groups)  # type: ignore[arg-type]


def _check_apart(planner: CheckedPlanner, embeddings: Embeddings) -> None:
    """Check that different ids change nothing, and that others are parted where possible and counted elsewhere."""
    sampler, num_samples = planner.sampler, len(embeddings)
    numbers = np.arange(num_samples)
    plan = _plan(planner, embeddings)
    planner.expect_equal(plan, _plan(planner, embeddings, apart=numbers), "apart", "the same plan for different ids")
    length = sampler.plan_length(num_samples)
    draws = numpy_generator(0, "testing/groups").integers(0, num_samples, num_samples)
    cases = {"equal ids": numbers * 0, "pairs": numbers // 2, "random ids": draws, "as few as B": numbers % length}
    for description, apart in cases.items():
        parted = planner.with_sampler(with_groups(sampler, apart=apart))(embeddings, description=description)
        planner.expect_equal(parted, _plan(planner, embeddings, apart=apart), "apart", "a pure function")
        shared = _pairs_of_one_group(parted, apart)
        if parted.conflicts is None or parted.conflicts < shared:
            found = f"{parted.conflicts} for {shared} pairs ({description})"
            raise planner.broken("apart", "that conflicts count the pairs of one id in a batch", found)
        largest = np.bincount(apart[parted.batches.numpy().ravel()]).max()
        if sampler.no_repeats and shared and largest <= length:
            found = f"{shared} pairs share one ({description})"
            raise planner.broken("apart", f"that {largest} samples of one id are in as many of {length} batches", found)


def _pairs_of_one_group(plan: BatchPlan, apart: Ids) -> int:
    """Count the ordered pairs of two samples of one id in one batch, one batch after the other."""
    total = 0
    for batch in plan.batches.numpy():
        _, counts = np.unique(apart[batch], return_counts=True)
        total += int((counts * (counts - 1)).sum())
    return total


def _check_together(planner: CheckedPlanner, num_samples: int, map_pools: PoolMap) -> None:
    """Check that batches are of one source each, of all sources, and do not depend on the map over pools."""
    embeddings = Embeddings(*random_views(2 * num_samples + 1))
    names = np.array(["a", "b"])[np.arange(2 * num_samples + 1) % 2]
    names[-1] = "alone"
    sampler = planner.with_sampler(with_groups(planner.sampler, together=names))
    plan = sampler(embeddings, description="two sources")
    planner.expect_equal(plan, sampler(embeddings, map_pools=map_pools), "together", "plans that no map changes")
    if any(len(set(names[batch])) > 1 for batch in plan.batches.numpy()):
        raise planner.broken("together", "batches of one source each", "a batch of both")
    if {str(name) for name in names[plan.batches.flatten().numpy()]} != {"a", "b"}:
        raise planner.broken("together", "batches of each source that fills one", "batches of one source only")
    visits = [{*sampler(embeddings, epoch=epoch).batches.flatten().tolist()} for epoch in range(2)]
    if planner.sampler.covers_all and any(len(each) != plan.batches.numel() for each in visits):
        raise planner.broken("together", "plans that visit no sample twice", "a repeated one")


def _expect_refusal(planner: CheckedPlanner, description: str, call: Callable[[], object]) -> None:
    promised = f"a ConfigError of one line for {description}"
    try:
        call()
    except ConfigError as error:
        if "\n" in str(error):
            raise planner.broken("ConfigError", promised, "several lines") from error
    except Exception as error:
        raise planner.broken("ConfigError", promised, one_line(error)) from error
    else:
        raise planner.broken("ConfigError", promised, "no error")
