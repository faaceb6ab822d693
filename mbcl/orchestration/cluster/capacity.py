"""The resources of a trial, the capacity of the machine or cluster, and how many trials run at a time. Imports no Ray.

Ray waits without limit for resources that do not exist, so requests are checked against the capacity before the first
trial starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mbcl.errors import ConfigError, ResourcesError, pluralize
from mbcl.orchestration.search_space.resources_block import Resources

DRIVER_CPUS = 0.001
"""CPUs of a trial's driver beside its workers; Ray Tune refuses a trial without any resources."""
DRIVER_SLOTS = 2
"""Units of the custom resource ``driver`` that a trial takes on a cluster that offers it: its driver and planner."""
MAX_AUTO_THREADS = 4
"""Maximum number of threads that ``auto`` gives a worker; the other cores plan, with ``planner.overlap``."""
AUTO_CPUS_PER_GPU = 2
"""CPUs that ``auto`` reserves for a worker with a GPU: one for its training thread, one for planner and processes."""
MIN_AUTO_CPUS = 0.45
"""Minimum CPUs that ``auto`` reserves for a worker; a smaller share is an error, because the machine is overloaded."""


@dataclass(frozen=True)
class Node:
    """One machine of the cluster.

    Args:
        cpus, gpus: their numbers.
        memory: free memory in bytes; None if it is not counted.
    """

    cpus: float
    gpus: float = 0
    memory: int | None = None


@dataclass(frozen=True)
class TrialResources:
    """The resources of one trial.

    Args:
        workers: number of training processes.
        cpus_per_worker: CPUs that Ray reserves for each.
        gpus_per_worker: 0 or 1.
        threads: number of torch threads in each, independent of the load of the machine.
    """

    workers: int
    cpus_per_worker: float
    gpus_per_worker: int
    threads: int

    @property
    def cpus(self) -> float:
        """CPUs of the workers, one of which may be the driver, and of the driver. Evaluation and planner reserve none.

        Both run while training waits, except that with ``planner.overlap`` the planner uses the CPUs that training
        leaves, at least one.
        """
        return (milli(self.cpus_per_worker) * self.workers + milli(DRIVER_CPUS)) / 1000

    @property
    def gpus(self) -> int:
        """GPUs of the workers. The evaluation reserves one after the workers have released theirs."""
        return self.workers * self.gpus_per_worker

    def describe(self) -> str:
        """Describe the worker without the shares of CPUs that drivers take: ``2 workers with 1 CPU each``."""
        gpu = f" and {pluralize(self.gpus_per_worker, 'GPU')}" if self.gpus_per_worker else ""
        cpus = pluralize(round(self.cpus_per_worker, 2) or self.cpus_per_worker, "CPU", "g")
        return f"{pluralize(self.workers, 'worker')} with {cpus}{gpu}{' each' * (self.workers > 1)}"

    def __str__(self) -> str:
        gpu = f", {self.gpus_per_worker} GPU" if self.gpus_per_worker else ""
        workers = pluralize(self.workers, "worker")
        return f"{workers} with {self.cpus_per_worker:g} CPU{gpu} each; {self.cpus:g} CPU in all"


def milli(amount: float) -> int:
    """Convert an amount of a resource to whole thousandths: fixed-point sums and quotients are exact."""
    return round(amount * 1000)


def resolve_resources(
    requested: Resources,
    nodes: Sequence[Node],
    *,
    num_trials: int | None = None,
    drivers: float | None = None,
    sizes: Sequence[int] = (),
) -> TrialResources:
    """Resolve ``auto`` on these nodes, and a range of workers to the largest number that fits.

    Args:
        requested: the resources block.
        nodes: the nodes.
        num_trials: number of trials of the study; None for more than fit at a time.
        drivers: as for :func:`max_concurrency`.
        sizes: the numbers of workers that a trial may have, ascending; by default all of the block.

    Raises:
        ConfigError: if the request exceeds the capacity of the nodes; the message contains the numbers.
    """
    *larger, smallest = reversed(sizes or requested.numbers_of_workers)
    for workers in larger:
        try:
            resources = _resolve(requested, workers, nodes, num_trials)
            max_concurrency(resources, nodes, requested, drivers=drivers)
        except ConfigError:
            continue
        return resources
    return _resolve(requested, smallest, nodes, num_trials)


def _resolve(requested: Resources, workers: int, nodes: Sequence[Node], num_trials: int | None) -> TrialResources:
    """Resolve the block for a number of workers. Raises ConfigError."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    use_gpu = gpus >= 1 if requested.gpu == "auto" else bool(requested.gpu)
    if use_gpu and gpus < workers:
        raise ResourcesError(
            f"resources: found gpu: {str(requested.gpu).lower()} and workers: {workers}, which need "
            f"{pluralize(workers, 'GPU')}; there are {gpus:g}"
            f"{' (resources.gpu: false trains on CPUs)' if requested.gpu == 'auto' else ''}"
        )
    explicit = requested.cpus_per_worker != "auto"
    threads = 1
    if explicit:
        threads = max(1, int(requested.cpus_per_worker))
        total = milli(requested.cpus_per_worker) * workers
    else:
        if not use_gpu:
            threads = _auto_threads(workers, nodes, num_trials)
        total = _auto_total(requested, workers, nodes, AUTO_CPUS_PER_GPU if use_gpu else threads)
    per_worker = _beside_drivers(total, workers, nodes)
    if not explicit and per_worker < MIN_AUTO_CPUS:
        trials = requested.max_concurrent_trials
        if trials != "auto" and milli(cpus) >= workers * milli(MIN_AUTO_CPUS):
            raise ResourcesError(
                f"resources.max_concurrent_trials: found {trials}; {trials * workers} workers need at least "
                f"{pluralize(trials * workers * MIN_AUTO_CPUS, 'CPU', 'g')}, there are {cpus:g} "
                f"(resources.cpus_per_worker sets a smaller share)"
            )
        raise ResourcesError(
            f"resources.workers: {pluralize(workers, 'worker')} need{'s' * (workers == 1)} at least "
            f"{pluralize(workers * MIN_AUTO_CPUS, 'CPU', 'g')}, there are {cpus:g} (resources.cpus_per_worker "
            f"sets a smaller share)"
        )
    return TrialResources(workers, per_worker, int(use_gpu), threads)


def _auto_threads(workers: int, nodes: Sequence[Node], num_trials: int | None) -> int:
    """Return the threads of a worker: one, or as many as keep all cores busy where trials are fewer than cores.

    Two one-threaded trials have more throughput than one two-threaded trial, whose threads wait for each other in
    small layers; hence also the bound. The number does not depend on ``max_concurrent_trials``, because the last bits
    of a sum depend on it.
    """
    if num_trials is None:
        return 1
    at_a_time = min(num_trials, sum(int(node.cpus) for node in nodes) // workers)

    def fit(threads: int) -> bool:
        return sum(int(node.cpus) // threads for node in nodes) >= at_a_time * workers

    return max([1, *(threads for threads in range(2, MAX_AUTO_THREADS + 1) if at_a_time and fit(threads))])


def _auto_total(requested: Resources, workers: int, nodes: Sequence[Node], most: int) -> int:
    """Return the thousandths of a CPU of a trial: its even share, at most ``most`` CPUs a worker."""
    trials = 1 if requested.max_concurrent_trials == "auto" else requested.max_concurrent_trials
    return min(milli(most) * workers, milli(sum(node.cpus for node in nodes)) // trials)


def _beside_drivers(total: int, workers: int, nodes: Sequence[Node]) -> float:
    """Return the CPUs of a worker, in whole thousandths: its share of a trial's, less what drivers take.

    So trials whose shares fill a node fit into it with their drivers. Ray may place the drivers of all trials on any of
    several nodes. Where they would take half of a share there, it stays whole, and :func:`max_concurrency` decides.

    Args:
        total: thousandths of a CPU of a trial.
        workers: the number of workers.
        nodes: the nodes.
    """
    share = total // workers
    drivers = milli(DRIVER_CPUS) * max(1, milli(sum(node.cpus for node in nodes)) // max(1, total))
    per_node = [(milli(node.cpus), milli(node.cpus) * workers // max(1, total)) for node in nodes]
    least = min([share, *((cpus - drivers) // slots for cpus, slots in per_node if slots)])
    return (least if 2 * least > share else share) / 1000


@dataclass(frozen=True)
class Concurrency:
    """The number of trials that run at a time.

    Args:
        num_trials: the number.
        limit: the limiting resource, described with numbers.
    """

    num_trials: int
    limit: str

    def __str__(self) -> str:
        return f"{self.num_trials} at a time ({self.limit})"


def max_concurrency(
    resources: TrialResources,
    nodes: Sequence[Node],
    requested: Resources,
    *,
    drivers: float | None = None,
    memory: int | None = None,
) -> Concurrency:
    """Return how many trials run at a time, which the scarcest resource limits.

    Args:
        resources: the resources of one trial.
        nodes: the nodes that exist or can be started.
        requested: the resources block.
        drivers: the cluster's amount of the custom resource ``driver``; None if drivers and planners do not request it.
        memory: an estimate of the memory of a trial in bytes, which limits ``auto`` alone; None if unknown.

    Raises:
        ConfigError: if no trial fits, or fewer than ``resources.max_concurrent_trials``.
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    # Drivers that request `driver` take no CPUs.
    each = resources.cpus if drivers is None else resources.cpus - DRIVER_CPUS
    text = f"{pluralize(cpus, 'CPU', 'g')}, of which a trial takes {each:g}"
    limits = [Concurrency(milli(cpus) // milli(each), text)]
    if resources.gpus:
        text = f"{pluralize(gpus, 'GPU', 'g')}, of which a trial takes {resources.gpus}"
        limits.append(Concurrency(int(gpus) // resources.gpus, text))
    # Ray may place drivers that do not request `driver` on any node, in the worst case all on the same one: those of as
    # many trials as then still fit.
    num_trials = max(1, limits[0].num_trials) if drivers is None else 0
    while (num_slots := _num_slots(resources, nodes, num_trials)) < num_trials * resources.workers and num_trials > 1:
        num_trials -= 1
    limits.append(
        Concurrency(
            num_slots // resources.workers,
            f"room for {pluralize(num_slots, 'worker')} on {pluralize(len(nodes), 'node')}, of which a trial has "
            f"{resources.workers}",
        )
    )
    if drivers is not None:
        text = f"{drivers:g} of the resource 'driver', of which a trial takes {DRIVER_SLOTS}"
        limits.append(Concurrency(int(drivers) // DRIVER_SLOTS, text))
    scarcest = min(limits, key=lambda limit: limit.num_trials)
    if scarcest.num_trials < 1:
        missing = "; ".join(limit.limit for limit in limits if limit.num_trials < 1)
        raise ResourcesError(f"resources: not one trial fits: it needs {resources}; there are {missing}")
    num_requested = requested.max_concurrent_trials
    if num_requested == "auto":
        return min([scarcest, *_by_memory(nodes, memory)], key=lambda limit: limit.num_trials)
    if num_requested > scarcest.num_trials:
        raise ResourcesError(
            f"resources.max_concurrent_trials: found {num_requested}, but only {scarcest.num_trials} fit: there are "
            f"{scarcest.limit}; a trial needs {resources}"
        )
    return Concurrency(num_requested, "resources.max_concurrent_trials")


def _by_memory(nodes: Sequence[Node], memory: int | None) -> Iterator[Concurrency]:
    """Yield how many trials fit into the memory of the nodes, where both are known: at least one, as it may fit yet."""
    free = [node.memory for node in nodes if node.memory is not None]
    if memory and len(free) == len(nodes):
        num_trials = max(1, sum(amount // memory for amount in free))
        text = f"{sum(free) / 2**30:.1f} GiB of free memory, of which a trial takes about {memory / 2**30:.1f}"
        yield Concurrency(num_trials, text)


def _num_slots(resources: TrialResources, nodes: Sequence[Node], num_drivers: int) -> int:
    """Return the number of workers that fit on all nodes, each of which may have ``num_drivers`` drivers, too."""
    cpus = max(1, milli(resources.cpus_per_worker))
    slots = [max(0, milli(node.cpus) - num_drivers * milli(DRIVER_CPUS)) // cpus for node in nodes]
    if resources.gpus_per_worker:
        slots = [min(of_node, int(node.gpus)) for of_node, node in zip(slots, nodes, strict=True)]
    return sum(slots)
