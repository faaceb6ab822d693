"""The resources of a trial, the capacity of the machine or cluster, and how many trials run at a time. Imports no Ray.

Ray waits without limit for resources that do not exist, so requests are checked against the capacity before the first
trial starts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mbcl.errors import ConfigError, pluralize
from mbcl.orchestration.search_space.resources_block import Resources

DRIVER_CPUS = 0.001
"""CPUs of a trial's driver, which only waits; Ray Tune refuses a trial without any resources."""
DRIVER_SLOTS = 2
"""Units of the custom resource ``driver`` that a trial takes on a cluster that offers it: its driver and planner."""
AUTO_CPUS_PER_WORKER = 2
"""CPUs that ``auto`` reserves for a worker: one for its training thread, one for the planner and Ray's processes."""
MIN_AUTO_CPUS = 0.45
"""Minimum CPUs that ``auto`` reserves for a worker; a smaller share is an error, because the machine is overloaded."""


@dataclass(frozen=True)
class Node:
    """One machine of the cluster."""

    cpus: float
    gpus: float = 0


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
        """CPUs of the workers and the driver. Evaluation and planner reserve none.

        Both run while the workers wait, except that with ``planner.overlap`` the planner uses the CPUs that training
        leaves, at least one.
        """
        return (milli(self.cpus_per_worker) * self.workers + milli(DRIVER_CPUS)) / 1000

    @property
    def gpus(self) -> int:
        """GPUs of the workers. The evaluation reserves one after the workers have released theirs."""
        return self.workers * self.gpus_per_worker

    def __str__(self) -> str:
        gpu = f", {self.gpus_per_worker} GPU" if self.gpus_per_worker else ""
        workers = pluralize(self.workers, "worker")
        return f"{workers} with {self.cpus_per_worker:g} CPU{gpu} each; {self.cpus:g} CPU in all"


def milli(amount: float) -> int:
    """Convert an amount of a resource to whole thousandths: fixed-point sums and quotients are exact."""
    return round(amount * 1000)


def this_machine() -> list[Node]:
    """Return this machine as a cluster of one node: the CPUs that this process may use, the GPUs that torch sees."""
    import torch

    return [Node(usable_cpus(), torch.cuda.device_count())]


def usable_cpus(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Return the number of CPUs that this process may use: the minimum of its affinity mask and cgroup quotas.

    Systems without affinity masks count the CPUs of the machine instead. The result is at least 1.

    Args:
        cgroups: mount point of the control groups.
        membership: file that lists the control groups of this process.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cpus, math.floor(min(_quotas(cgroups, membership), default=cpus))))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """Yield the quotas, in CPUs, of this process's control groups and their ancestors, of cgroup versions 1 and 2."""
    try:
        groups = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / "cpu" if controllers else cgroups
        relative = Path(path.lstrip("/"))
        # In a container the path may be the host's. The last ancestor, the mount itself, is then this process's group.
        for folder in [root / part for part in (relative, *relative.parents)]:
            try:
                if controllers:
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
                if quota != "max" and int(quota) > 0:
                    yield int(quota) / int(period)
            except (OSError, ValueError):
                continue


def resolve_resources(
    requested: Resources,
    nodes: Sequence[Node],
    *,
    auto_cpus_per_worker: int = AUTO_CPUS_PER_WORKER,
    drivers: float | None = None,
    sizes: Sequence[int] = (),
) -> TrialResources:
    """Resolve ``auto`` on these nodes, and a range of workers to the largest number that fits.

    Args:
        requested: the resources block.
        nodes: the nodes.
        auto_cpus_per_worker: maximum number of CPUs that ``auto`` reserves for a worker.
        drivers: as for :func:`max_concurrency`.
        sizes: the numbers of workers that a trial may have, ascending; by default all of the block.

    Raises:
        ConfigError: if the request exceeds the capacity of the nodes; the message contains the numbers.
    """
    *larger, smallest = reversed(sizes or requested.numbers_of_workers)
    for workers in larger:
        try:
            resources = _resolve(requested, workers, nodes, auto_cpus_per_worker)
            max_concurrency(resources, nodes, requested, drivers=drivers)
        except ConfigError:
            continue
        return resources
    return _resolve(requested, smallest, nodes, auto_cpus_per_worker)


def _resolve(requested: Resources, workers: int, nodes: Sequence[Node], auto_cpus_per_worker: int) -> TrialResources:
    """Resolve the block for a number of workers. Raises ConfigError."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    use_gpu = gpus >= 1 if requested.gpu == "auto" else bool(requested.gpu)
    if use_gpu and gpus < workers:
        raise ConfigError(
            f"resources: found gpu: {str(requested.gpu).lower()} and workers: {workers}, which need "
            f"{pluralize(workers, 'GPU')}; there are {gpus:g}"
            f"{' (resources.gpu: false trains on CPUs)' if requested.gpu == 'auto' else ''}"
        )
    explicit = requested.cpus_per_worker != "auto"
    if explicit:
        per_worker = float(requested.cpus_per_worker)
    else:
        per_worker = _auto_cpus(requested, workers, nodes, auto_cpus_per_worker)
    if not explicit and per_worker < MIN_AUTO_CPUS:
        trials = requested.max_concurrent_trials
        if trials != "auto" and milli(cpus) >= workers * milli(MIN_AUTO_CPUS):
            raise ConfigError(
                f"resources.max_concurrent_trials: found {trials}; {trials * workers} workers need at least "
                f"{pluralize(trials * workers * MIN_AUTO_CPUS, 'CPU', 'g')}, there are {cpus:g} "
                f"(resources.cpus_per_worker sets a smaller share)"
            )
        raise ConfigError(
            f"resources.workers: {pluralize(workers, 'worker')} need{'s' * (workers == 1)} at least "
            f"{pluralize(workers * MIN_AUTO_CPUS, 'CPU', 'g')}, there are {cpus:g} (resources.cpus_per_worker "
            f"sets a smaller share)"
        )
    # One thread unless `cpus_per_worker` is explicit: on busy cores the two threads of a small network wait for each
    # other, which made an epoch six times as long, and the last bits of a sum depend on the number of threads.
    return TrialResources(workers, per_worker, int(use_gpu), max(1, int(per_worker)) if explicit else 1)


def _auto_cpus(requested: Resources, workers: int, nodes: Sequence[Node], auto_cpus_per_worker: int) -> float:
    """Return the CPUs of a worker: a trial's even share, at most ``auto_cpus_per_worker``, in whole thousandths."""
    cpus = sum(node.cpus for node in nodes)
    trials = 1 if requested.max_concurrent_trials == "auto" else requested.max_concurrent_trials
    total = min(milli(auto_cpus_per_worker) * workers, milli(cpus) // trials)
    # Ray may place the drivers of all trials on one of several nodes, where they must not take a worker's CPUs.
    drivers = 1 if len(nodes) == 1 else max(1, milli(cpus) // max(1, total))
    return max(0, total - drivers * milli(DRIVER_CPUS)) // workers / 1000


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
    resources: TrialResources, nodes: Sequence[Node], requested: Resources, *, drivers: float | None = None
) -> Concurrency:
    """Return how many trials run at a time, which the scarcest resource limits.

    Args:
        resources: the resources of one trial.
        nodes: the nodes that exist or can be started.
        requested: the resources block.
        drivers: the cluster's amount of the custom resource ``driver``; None if drivers and planners do not request it.

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
    # Ray may place drivers that do not request `driver` on any node, in the worst case all on the same one.
    drivers_per_node = max(1, limits[0].num_trials) if drivers is None else 0
    num_slots = sum(_num_slots(resources, node, drivers_per_node) for node in nodes)
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
        raise ConfigError(f"resources: not one trial fits: it needs {resources}; there are {missing}")
    num_requested = requested.max_concurrent_trials
    if num_requested == "auto":
        return scarcest
    if num_requested > scarcest.num_trials:
        raise ConfigError(
            f"resources.max_concurrent_trials: found {num_requested}, but only {scarcest.num_trials} fit: there are "
            f"{scarcest.limit}; a trial needs {resources}"
        )
    return Concurrency(num_requested, "resources.max_concurrent_trials")


def _num_slots(resources: TrialResources, node: Node, num_drivers: int) -> int:
    """Return the number of workers that fit on a node together with ``num_drivers`` drivers."""
    num_slots = max(0, milli(node.cpus) - num_drivers * milli(DRIVER_CPUS)) // max(1, milli(resources.cpus_per_worker))
    return min(num_slots, int(node.gpus)) if resources.gpus_per_worker else num_slots
