"""A CIFAR-100-sized plan in parallel Ray tasks: wall seconds by the number of tasks, and whether the plan is the same.

    python benchmarks/planner_tasks.py [--tasks 1 2] [--samplers spectral kmeans refined] [--pools 39] [--repeats 3]

The embeddings are a mixture of 100 Gaussian classes (``mix_1`` of ``mbcl bench planner``). Every sampler plans pools of
1,280 in batches of 32, as the planner actor of a training does. Samplers take their turn, repeat by repeat; the least
wall time of each is printed, since other load only ever adds to it.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

from mbcl.bench.embeddings import mixture
from mbcl.config.sampler_spec import parse_spec
from mbcl.orchestration.cluster.capacity import Node
from mbcl.orchestration.cluster.connection import cluster
from mbcl.orchestration.trial.planner_actor import TaskMap

BATCH_SIZE = 32
POOL = 1280


def measure(tasks: list[int], names: list[str], num_pools: int, repeats: int) -> None:
    """Print a row for every sampler and number of tasks."""
    data = mixture(1, num_pools * POOL, 0)
    # A pool of 1,280 each also where a sampler would take the whole data set as one.
    samplers = {name: parse_spec(name).in_pool(BATCH_SIZE, POOL) for name in names}
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    digests: dict[tuple[str, int], set[str]] = defaultdict(set)
    for repeat in range(-1, repeats):
        for name, sampler in samplers.items():
            for num_tasks in tasks:
                start = time.perf_counter()
                plan = sampler.plan(len(data), data.embeddings, map_pools=TaskMap(num_tasks))
                if repeat >= 0:  # the one before: processes start, compiled code is loaded
                    seconds[name, num_tasks].append(time.perf_counter() - start)
                digests[name, num_tasks].add(plan.digest)
    print(f"| sampler | tasks | wall seconds | speed-up over {tasks[0]} | same plan |")
    print("| --- | --- | --- | --- | --- |")
    for name in names:
        for num_tasks in tasks:
            best, first = min(seconds[name, num_tasks]), min(seconds[name, tasks[0]])
            same = len(set.union(*(digests[name, other] for other in tasks))) == 1
            print(f"| {name} | {num_tasks} | {best:.2f} | {first / best:.2f} | {'yes' if same else 'NO'} |", flush=True)


def main() -> None:
    """Start a local Ray with as many CPUs as the most tasks, measure, print a table for the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--samplers", nargs="+", default=["spectral", "kmeans", "refined"])
    parser.add_argument("--pools", type=int, default=39)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with cluster(None, [Node(max(options.tasks))], verbose=False):
        measure(options.tasks, options.samplers, options.pools, options.repeats)


if __name__ == "__main__":
    main()
