"""What one trial needs, what the machine or cluster has, and how many trials fit at a time. No Ray here.

Ray waits for ever for resources that never come, so everything is compared before the first trial starts.
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
"""Ray Tune refuses a trial driver with no resources at all; it only waits for others."""
DRIVER_SLOTS = 2
"""How much of the custom resource ``driver`` a trial takes where a cluster has it: its driver and its planner."""
AUTO_CPUS_PER_WORKER = 2
"""What ``auto`` reserves for a worker: one CPU for its training thread, one for the planner and Ray's own processes."""
MIN_AUTO_CPUS = 0.45
"""The smallest share that ``auto`` gives a worker: below, the machine is asked for too much."""


@dataclass(frozen=True)
class Node:
    """One machine of the cluster."""

    cpus: float
    gpus: float = 0


@dataclass(frozen=True)
class TrialResources:
    """What one trial needs.

    Args:
        workers: training processes.
        cpus_per_worker: what Ray reserves for each.
        gpus_per_worker: 0 or 1.
        threads: how many threads torch uses in each, whatever runs beside it.
    """

    workers: int
    cpus_per_worker: float
    gpus_per_worker: int
    threads: int

    @property
    def cpus(self) -> float:
        """All CPUs of a trial: workers and driver. Evaluation and planner reserve none.

        They run while workers wait; with ``planner.overlap`` the planner uses what training leaves, at least one.
        """
        return (milli(self.cpus_per_worker) * self.workers + milli(DRIVER_CPUS)) / 1000

    @property
    def gpus(self) -> int:
        """All GPUs of a trial. The evaluation takes one after the workers gave theirs back."""
        return self.workers * self.gpus_per_worker

    def __str__(self) -> str:
        gpu = f", {self.gpus_per_worker} GPU" if self.gpus_per_worker else ""
        workers = pluralize(self.workers, "worker")
        return f"{workers} with {self.cpus_per_worker:g} CPU{gpu} each; {self.cpus:g} CPU in all"


def milli(amount: float) -> int:
    """An amount of a resource in thousandths, which unlike its sums and quotients are exact."""
    return round(amount * 1000)


def this_machine() -> list[Node]:
    """This machine as a cluster of one node: the CPUs that this process may use, and the GPUs that torch sees."""
    import torch

    return [Node(usable_cpus(), torch.cuda.device_count())]


def usable_cpus(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """The CPUs that this process may use: of the machine, its affinity mask, and the quotas of its control groups.

    Args:
        cgroups: where control groups are mounted.
        membership: the file that names this process's groups.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cpus, math.floor(min(_quotas(cgroups, membership), default=cpus))))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """The CPU quotas, in CPUs, of this process's control groups and of those above them, versions 1 and 2."""
    try:
        groups = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / "cpu" if controllers else cgroups
        relative = Path(path.lstrip("/"))
        # In a container the path may be the host's; then the mount itself is this process's group.
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
    asked: Resources,
    nodes: Sequence[Node],
    *,
    cpus_a_worker: int = AUTO_CPUS_PER_WORKER,
    drivers: float | None = None,
    sizes: Sequence[int] = (),
) -> TrialResources:
    """Decide what ``auto`` means on these nodes, and of a range of workers the most that fit.

    Args:
        asked: the resources block.
        nodes: what there is.
        cpus_a_worker: the most that ``auto`` reserves for a worker.
        drivers: as :func:`max_concurrency` takes it.
        sizes: the numbers of workers that a trial may have, ascending; by default all that are asked for.

    Raises:
        ConfigError: if it cannot be decided within what the nodes have; the text holds the numbers.
    """
    *more, least = reversed(sizes or asked.numbers_of_workers)
    for workers in more:
        try:
            need = _resolve(asked, workers, nodes, cpus_a_worker)
            max_concurrency(need, nodes, asked, drivers=drivers)
        except ConfigError:
            continue
        return need
    return _resolve(asked, least, nodes, cpus_a_worker)


def _resolve(asked: Resources, workers: int, nodes: Sequence[Node], cpus_a_worker: int) -> TrialResources:
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    use_gpu = gpus >= 1 if asked.gpu == "auto" else bool(asked.gpu)
    if use_gpu and gpus < workers:
        raise ConfigError(
            f"resources: found gpu: {str(asked.gpu).lower()} and workers: {workers}, which need "
            f"{pluralize(workers, 'GPU')}; there are {gpus:g}"
            f"{' (resources.gpu: false trains on CPUs)' if asked.gpu == 'auto' else ''}"
        )
    explicit = asked.cpus_per_worker != "auto"
    per_worker = float(asked.cpus_per_worker) if explicit else _auto_cpus(asked, workers, nodes, cpus_a_worker)
    if not explicit and per_worker < MIN_AUTO_CPUS:
        trials = asked.max_concurrent_trials
        if trials != "auto" and milli(cpus) >= workers * milli(MIN_AUTO_CPUS):
            raise ConfigError(
                f"resources.max_concurrent_trials: found {trials}; {trials * workers} workers need at least "
                f"{trials * workers * MIN_AUTO_CPUS:g} CPUs, there are {cpus:g} (resources.cpus_per_worker sets a "
                f"smaller share)"
            )
        raise ConfigError(
            f"resources.workers: {pluralize(workers, 'worker')} need{'s' * (workers == 1)} at least "
            f"{workers * MIN_AUTO_CPUS:g} CPUs, there are {cpus:g} (resources.cpus_per_worker sets a smaller share)"
        )
    # One thread unless more is asked for: on busy cores two threads of a small network wait for each other, which made
    # an epoch six times as long, and the last bits of a sum depend on the number of threads.
    return TrialResources(workers, per_worker, int(use_gpu), max(1, int(per_worker)) if explicit else 1)


def _auto_cpus(asked: Resources, workers: int, nodes: Sequence[Node], cpus_a_worker: int) -> float:
    """A trial's even share of the CPUs, at most ``cpus_a_worker`` a worker, rounded down to what Ray counts."""
    cpus = sum(node.cpus for node in nodes)
    trials = 1 if asked.max_concurrent_trials == "auto" else asked.max_concurrent_trials
    total = min(milli(cpus_a_worker) * workers, milli(cpus) // trials)
    # On several nodes the drivers of all trials may lie on one, where they must not take a worker's place.
    drivers = 1 if len(nodes) == 1 else max(1, milli(cpus) // max(1, total))
    return max(0, total - drivers * milli(DRIVER_CPUS)) // workers / 1000


@dataclass(frozen=True)
class Concurrency:
    """How many trials run at a time.

    Args:
        trials: so many.
        limit: what does not allow more, with numbers.
    """

    num_trials: int
    limit: str

    def __str__(self) -> str:
        return f"{self.num_trials} at a time ({self.limit})"


def max_concurrency(
    need: TrialResources, nodes: Sequence[Node], asked: Resources, *, drivers: float | None = None
) -> Concurrency:
    """How many trials run at a time, from the scarcest resource.

    Args:
        need: what one needs.
        nodes: what there is, or can be.
        asked: the resources block.
        drivers: how much there is of the custom resource ``driver``, if drivers and planners ask for it.

    Raises:
        ConfigError: if not even one fits, or fewer than ``resources.max_concurrent_trials``.
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    # Drivers that ask for `driver` take no CPUs.
    each = need.cpus if drivers is None else need.cpus - DRIVER_CPUS
    limits = [Concurrency(milli(cpus) // milli(each), f"{cpus:g} CPUs, of which a trial takes {each:g}")]
    if need.gpus:
        limits.append(Concurrency(int(gpus) // need.gpus, f"{gpus:g} GPUs, of which a trial takes {need.gpus}"))
    # Other drivers may lie on any node, and all of them on one.
    beside = max(1, limits[0].num_trials) if drivers is None else 0
    places = sum(_places(need, node, beside) for node in nodes)
    limits.append(
        Concurrency(
            places // need.workers,
            f"room for {pluralize(places, 'worker')} on {pluralize(len(nodes), 'node')}, of which a trial has "
            f"{need.workers}",
        )
    )
    if drivers is not None:
        text = f"{drivers:g} of the resource 'driver', of which a trial takes {DRIVER_SLOTS}"
        limits.append(Concurrency(int(drivers) // DRIVER_SLOTS, text))
    scarcest = min(limits, key=lambda found: found.num_trials)
    if scarcest.num_trials < 1:
        missing = "; ".join(found.limit for found in limits if found.num_trials < 1)
        raise ConfigError(f"resources: not one trial fits: it needs {need}; there are {missing}")
    wanted = asked.max_concurrent_trials
    if wanted == "auto":
        return scarcest
    if wanted > scarcest.num_trials:
        raise ConfigError(
            f"resources.max_concurrent_trials: found {wanted}, but only {scarcest.num_trials} fit: there are "
            f"{scarcest.limit}; a trial needs {need}"
        )
    return Concurrency(wanted, "resources.max_concurrent_trials")


def _places(need: TrialResources, node: Node, drivers: int) -> int:
    """How many workers fit on one node, beside so many drivers."""
    places = max(0, milli(node.cpus) - drivers * milli(DRIVER_CPUS)) // max(1, milli(need.cpus_per_worker))
    return min(places, int(node.gpus)) if need.gpus_per_worker else places
