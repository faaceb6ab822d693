"""What this process may use of its machine: CPUs, GPUs and memory, within the limits of its control groups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from mbcl.orchestration.cluster.capacity import Node

CGROUPS = Path("/sys/fs/cgroup")
"""The mount point of the control groups."""
MEMBERSHIP = Path("/proc/self/cgroup")
"""The file that lists the control groups of this process."""


def this_machine() -> list[Node]:
    """Return this machine as a cluster of one node: the CPUs and memory for this process, the GPUs that torch sees."""
    import torch

    return [Node(usable_cpus(), torch.cuda.device_count(), usable_memory())]


def usable_cpus(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the number of CPUs that this process may use: the minimum of its affinity mask and cgroup quotas.

    Systems without affinity masks count the CPUs of the machine instead. The result is at least 1.

    Args:
        cgroups: mount point of the control groups.
        membership: file that lists the control groups of this process.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cpus, math.floor(min(_quotas(cgroups, membership), default=cpus))))


def usable_memory(
    cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP, meminfo: Path = Path("/proc/meminfo")
) -> int | None:
    """Return the memory in bytes that processes can still take: the minimum of the machine's and of cgroup limits.

    Args:
        cgroups: mount point of the control groups.
        membership: file that lists the control groups of this process.
        meminfo: file with the kernel's estimate of available memory.

    Returns:
        None on systems that do not say.
    """
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    return max(0, min([available, *_free_by_group(cgroups, membership)]))


def _free_by_group(cgroups: Path, membership: Path) -> Iterator[int]:
    """Yield for each limited control group of this process its limit minus what its processes hold."""
    for folder, is_v1 in _groups("memory", cgroups, membership):
        limit, used, cache = ("memory.max", "memory.current", "inactive_file")
        if is_v1:
            limit, used, cache = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        try:
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            held = int((folder / used).read_text()) - int(statistics[cache])  # the kernel drops such pages first
            yield int((folder / limit).read_text()) - held
        except (OSError, KeyError, ValueError):  # "max" is no limit
            continue


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """Yield the CPU quotas, in CPUs, of the control groups of this process."""
    for folder, is_v1 in _groups("cpu", cgroups, membership):
        try:
            if is_v1:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            else:
                quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max" and int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue


def _groups(controller: str, cgroups: Path, membership: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of this process's control groups and their ancestors, and whether they are of version 1."""
    try:
        groups = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in groups:
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controller if controllers else cgroups
        relative = Path(path.lstrip("/"))
        # In a container the path may be the host's. The last ancestor, the mount itself, is then this process's group.
        for part in (relative, *relative.parents):
            yield root / part, bool(controllers)
