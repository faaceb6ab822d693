"""Planners on whole data sets, where samplers are not limited to pools of about a thousand samples.

Letters: N samples, M samples of a pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mbcl.bench.embeddings import DataSet
from mbcl.bench.measure import random_batches, timed_plan
from mbcl.bench.pools import PUBLISHED, RANDOM, Measured, Protocol, baseline, mean_of, means_of, measured, pool_rows
from mbcl.config.sampler_spec import Spec

PARTITIONS = 4
"""Random partitions of the data set; their mean loss is the reference for random batches."""


def compare_whole(data: DataSet, specs: Sequence[Spec], protocol: Protocol) -> list[dict[str, Any]]:
    """Return one row each for random batches, the published planner and every sampler.

    The published planner takes random pools, of which at most ``protocol.num_pools`` are planned: their mean loss
    stands for all pools, and their mean seconds are multiplied by the number of pools.
    """
    pools = pool_rows(len(data), protocol.pool, protocol.num_pools, 0)
    published = [baseline(data.take(rows_M), protocol, 0) for rows_M in pools]
    chance = [measured(random_batches(len(data), protocol.batch_size, PARTITIONS, 0), data, protocol, 0.0)]

    def row(method: str, plans: Sequence[Measured]) -> dict[str, Any]:
        sizes = {"data_set": data.name, "method": method, "num_samples": len(data), "plans": len(plans)}
        return sizes | {"seconds": mean_of(plans, "seconds")} | means_of(plans, published, chance)

    rows = [row(RANDOM, chance), row(PUBLISHED, published)]
    num_pools = len(data) // protocol.pool
    rows[-1] |= {"seconds": rows[-1]["seconds"] * num_pools, "pools": num_pools, "pools_planned": len(pools)}
    rows[-1]["coverage"] = num_pools * protocol.pool / len(data)
    for spec in specs:
        sampler = spec.whole(protocol.batch_size)
        # Warm-up, not counted: it loads compiled code, and on a GPU allocates memory from the driver.
        _, first_seconds = timed_plan(sampler, data, protocol.clock, seed=0)
        plans = []
        for seed in range(protocol.seeds):
            plan, seconds = timed_plan(sampler, data, protocol.clock, seed=seed)
            plans.append(measured(plan.batches, data, protocol, seconds))
        rows.append(row(spec.text, plans) | {"first_seconds": first_seconds})
    return rows
