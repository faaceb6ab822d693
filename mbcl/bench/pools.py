"""Planners on the same random pools as the published one, and on whole data sets: time and loss of the same plans.

Letters: N samples of a data set, M samples of a pool.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import gmean
from torch import Tensor

from mbcl.bench.embeddings import DataSet
from mbcl.bench.measure import RANDOM_PARTITIONS, Worth, clock_of, random_batches, timed_plan, worth
from mbcl.bench.published import plan_published
from mbcl.bench.settings import PlannerBenchSettings
from mbcl.config.sampler_spec import Spec
from mbcl.seeding import numpy_generator

PUBLISHED = "published"
RANDOM = "random"
RATIOS = ("speedup", "ntxent_ratio", "clip_ratio")
WHOLE_PARTITIONS = 4
"""Random partitions of a whole data set; their mean loss is the reference for random batches."""


@dataclass(frozen=True, kw_only=True)
class Measured(Worth):
    """The measurements of one plan of one pool: the seconds of making it; its losses, same-class share and coverage.

    ``stages``: the seconds of each stage, for the published planner.
    """

    seconds: float
    stages: dict[str, float] | None = None


def measured(batches_SB: Tensor, data: DataSet, settings: PlannerBenchSettings, **times: Any) -> Measured:
    """Measure a plan that took these ``seconds`` and ``stages``."""
    return Measured(**vars(worth(batches_SB, data, settings.temperature)), **times)


def pool_rows(num_samples: int, pool: int, num_pools: int, seed: int) -> list[Tensor]:
    """Draw at most ``num_pools`` random pools that share no sample; (M,) rows each."""
    order = torch.from_numpy(numpy_generator(seed, "bench/pools").permutation(num_samples))
    return [order[start : start + pool] for start in range(0, num_samples - pool + 1, pool)][:num_pools]


def baseline(data: DataSet, settings: PlannerBenchSettings, seed: int) -> Measured:
    """Plan one pool with the published planner and measure the plan."""
    z1_MD, z2_MD = (z.cpu().numpy() for z in (data.embeddings.z1, data.embeddings.z2))
    size, clock = settings.batch_size, clock_of(settings.device)
    rows_KB, stages = plan_published(z1_MD, z2_MD, batch_size=size, seed=seed, clock=clock)
    return measured(torch.from_numpy(rows_KB), data, settings, seconds=sum(stages.values()), stages=stages)


def pools_of(name: str, settings: PlannerBenchSettings, seed: int) -> Iterator[tuple[int, DataSet]]:
    """Yield the number and the samples of each pool of one data set and seed."""
    data = settings.data_set(name, settings.pool * settings.pools, seed)
    for number, rows_M in enumerate(pool_rows(len(data), settings.pool, settings.pools, seed)):
        yield number, data.take(rows_M)


def compare(name: str, specs: Sequence[Spec], settings: PlannerBenchSettings) -> list[dict[str, Any]]:
    """Return one row each for random batches, the published planner and every sampler.

    The planners take turns on each pool, so that other load on the machine slows all of them alike.
    """
    plans_by_method: dict[str, list[Measured]] = defaultdict(list)
    samplers = {spec.text: spec.in_pool(settings.batch_size, settings.pool) for spec in specs}
    for seed in range(settings.seeds):
        for number, data in pools_of(name, settings, seed):
            batches = random_batches(len(data), settings.batch_size, RANDOM_PARTITIONS, seed)
            plans_by_method[RANDOM].append(measured(batches, data, settings, seconds=0.0))
            plans_by_method[PUBLISHED].append(baseline(data, settings, seed))
            for spec in specs:
                plan, seconds = timed_plan(samplers[spec.text], data, seed=seed, epoch=number, spec=spec)
                plans_by_method[spec.text].append(measured(plan.batches, data, settings, seconds=seconds))
    published, chance = plans_by_method[PUBLISHED], plans_by_method[RANDOM]
    rows = []
    for method, plans in plans_by_method.items():
        seconds = mean_of(plans, "seconds")
        row = {"data_set": name, "method": method, "plans": len(plans), "seconds": seconds}
        if method != RANDOM:
            row["speedup"] = mean_of(published, "seconds") / seconds
        row |= means_of(plans, published, chance)
        stages = [plan.stages for plan in plans if plan.stages is not None]
        if stages:
            row["stages"] = {stage: float(np.mean([each[stage] for each in stages])) for stage in stages[0]}
        row["each"] = {key: [getattr(plan, key) for plan in plans] for key in ("seconds", "ntxent", "clip")}
        rows.append(row)
    return rows


def mean_of(plans: Sequence[Measured], key: str) -> float:
    """Return the mean of an attribute over plans."""
    return float(np.mean([getattr(plan, key) for plan in plans]))


def means_of(plans: Sequence[Measured], published: Sequence[Measured], chance: Sequence[Measured]) -> dict[str, float]:
    """Compute the means over plans; every ratio is one of two means, over the published or random plans."""
    row: dict[str, float] = {}
    for loss in ("ntxent", "clip"):
        mean, published_mean, chance_mean = (mean_of(group, loss) for group in (plans, published, chance))
        row |= {loss: mean, f"{loss}_ratio": mean / published_mean, f"{loss}_lift": mean / chance_mean}
    return row | {share: mean_of(plans, share) for share in ("same_class", "coverage")}


def geometric_means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each planner's geometric means of its ratios over the data sets, and the least of each ratio."""
    means = []
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != RANDOM):
        values = {ratio: [row[ratio] for row in rows if row["method"] == method] for ratio in RATIOS}
        mean = {"method": method} | {ratio: float(gmean(numbers)) for ratio, numbers in values.items()}
        means.append(mean | {f"least_{ratio}": min(numbers) for ratio, numbers in values.items()})
    return means


def compare_whole(data: DataSet, specs: Sequence[Spec], settings: PlannerBenchSettings) -> list[dict[str, Any]]:
    """Return one row each for random batches, the published planner and every sampler.

    The published planner takes random pools, of which at most ``settings.pools`` are planned: their mean loss
    stands for all pools, and their mean seconds are multiplied by the number of pools.
    """
    pools = pool_rows(len(data), settings.pool, settings.pools, 0)
    published = [baseline(data.take(rows_M), settings, 0) for rows_M in pools]
    batches = random_batches(len(data), settings.batch_size, WHOLE_PARTITIONS, 0)
    chance = [measured(batches, data, settings, seconds=0.0)]

    def row(method: str, plans: Sequence[Measured]) -> dict[str, Any]:
        sizes = {"data_set": data.name, "method": method, "num_samples": len(data), "plans": len(plans)}
        return sizes | {"seconds": mean_of(plans, "seconds")} | means_of(plans, published, chance)

    rows = [row(RANDOM, chance), row(PUBLISHED, published)]
    num_pools = len(data) // settings.pool
    rows[-1] |= {"seconds": rows[-1]["seconds"] * num_pools, "pools": num_pools, "pools_planned": len(pools)}
    rows[-1]["coverage"] = num_pools * settings.pool / len(data)
    for spec in specs:
        sampler = spec.whole(settings.batch_size)
        # Warm-up, not counted: it loads compiled code, and on a GPU allocates memory from the driver.
        _, first_seconds = timed_plan(sampler, data, seed=0, spec=spec)
        plans = []
        for seed in range(settings.seeds):
            plan, seconds = timed_plan(sampler, data, seed=seed, spec=spec)
            plans.append(measured(plan.batches, data, settings, seconds=seconds))
        rows.append(row(spec.text, plans) | {"first_seconds": first_seconds})
    return rows
