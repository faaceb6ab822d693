"""The plan of a data set from the plans of its pools: communities joined, ``mix``, and samples parted over all pools.

Letters: N samples of the data set, M samples of a pool, B samples a batch, G communities of K samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from mbcl.errors import PlanError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers._base import Ints, PoolPlan, Sampler
from mbcl.samplers._conflicts import Margin, Rules, count_conflicts, neighbour_table
from mbcl.samplers._groups import Groups
from mbcl.samplers._separation import mixed, separate_batches
from mbcl.samplers._threads import planning_thread
from mbcl.seeding import numpy_generator


class Pooling(Sampler, Protocol):
    """What merging asks of a sampler that plans pools."""

    @property
    def mix(self) -> float: ...
    @property
    def skip(self) -> int | None: ...
    @property
    def margin(self) -> Margin: ...
    @property
    def separates(self) -> bool: ...
    @property
    def merged_width(self) -> int: ...
    def pool_sizes(self, num_samples: int) -> list[int]: ...


def merged(
    sampler: Pooling,
    embeddings: Embeddings,
    pools: Sequence[Ints],
    planned: Sequence[PoolPlan],
    seed: int,
    key: tuple[int, int],
    groups: Groups,
) -> BatchPlan:
    """Merge the plans of a round's pools, apply ``mix``, and part groups over the pools.

    Random pools are merged in their order. Pools that ``PoolSampler.cut`` made of one hold similar samples, so in
    their order training would pass from cluster to cluster: their batches are merged in random order, as are sources.

    Args:
        sampler: the sampler that planned the pools.
        embeddings: row p holds data-set position p.
        pools: the data-set positions of each pool.
        planned: the plan of each pool.
        seed: of the plan.
        key: epoch and round.
        groups: of all samples.

    Raises:
        PlanError: if the batches are not those that the sampler promises.
    """

    def generator(purpose: str) -> np.random.Generator:
        return numpy_generator(seed, f"sampler/{sampler.name}/{purpose}", *key)

    num_samples = len(embeddings)
    batches = np.concatenate([pool[plan.rows] for pool, plan in zip(pools, planned, strict=True)])
    table_NP = None
    if sampler.skip:
        table_NP = neighbour_table(pools, [plan.neighbours for plan in planned], num_samples)
    rules = Rules(embeddings, table_NP, sampler.margin, groups.apart)
    parts = sampler.separates or groups.apart is not None
    if sampler.merged_width < sampler.batch_size:
        rng = generator("communities")
        batches = groups.each_source(batches, lambda rows_gK: _composed(rows_gK, sampler.batch_size, rng))
        if parts:
            with planning_thread():
                batches = groups.each_source(batches, lambda rows_sB: separate_batches(rows_sB, rules))
    scores = [plan.scores for plan in planned if plan.scores is not None]
    scores_S = np.concatenate(scores) if scores and not sampler.mix else None
    if groups.together is not None or len(pools) > len(sampler.pool_sizes(num_samples)):
        order = generator("merged").permutation(len(batches))
        batches, scores_S = batches[order], None if scores_S is None else scores_S[order]
    if len(batches) != (promised := groups.plan_length(sampler, num_samples)):
        raise PlanError(f"{sampler.name}: {len(batches)} batches instead of {promised}")
    rng = generator("mix")
    batches = groups.each_source(batches, lambda rows_sB: mixed(rows_sB, sampler.mix, rng))
    if groups.apart is not None and sampler.no_repeats:
        scores_S = None
        batches = groups.parted(batches, generator("apart"))
    conflicts_S = None
    if parts:
        with planning_thread():
            conflicts_S = torch.from_numpy(count_conflicts(batches, rules))
    scores_of = None if scores_S is None else torch.from_numpy(scores_S)
    plan = BatchPlan(torch.from_numpy(batches), sampler.name, seed, *key, scores_of, conflicts_S)
    return plan.validate(num_samples, distinct=sampler.no_repeats)


def _composed(rows_GK: Ints, batch_size: int, rng: np.random.Generator) -> Ints:
    """(S, B) batches of random communities, in random order within a batch."""
    return rng.permuted(rng.permutation(rows_GK).reshape(-1, batch_size), axis=1)
