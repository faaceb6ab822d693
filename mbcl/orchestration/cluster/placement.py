"""On which nodes of a cluster the small processes of a trial run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """On which nodes of a cluster the processes of a trial that reserve no CPUs run; anywhere by default.

    A node that offers the custom resource ``driver`` keeps the drivers and planners of trials, one that offers
    ``task`` the planning of pools and evaluations. ``cluster.yaml`` gives the first to its head, which no spot market
    takes away, and the second to the workers, which have the CPUs.

    Args:
        driver: whether some node offers ``driver``.
        task: whether some node offers ``task``.
    """

    driver: bool = False
    task: bool = False

    @property
    def for_driver(self) -> dict[str, float]:
        """The custom resources that a driver or planner asks for."""
        return {"driver": 1} if self.driver else {}

    @property
    def for_task(self) -> dict[str, float]:
        """The custom resources that a planning or evaluation task asks for."""
        return {"task": 1} if self.task else {}
