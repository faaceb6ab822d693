"""The nodes of a cluster that run a trial's driver, planner and tasks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """The nodes for the processes of a trial that reserve no CPUs; by default any node.

    Nodes that offer the custom resource ``driver`` run the drivers and planners of trials. Nodes that offer ``task``
    run the planning and evaluation tasks. ``cluster.yaml`` gives ``driver`` to its head, which is not preempted, and
    ``task`` to the workers, which have the CPUs. The fields are whether a node offers them.
    """

    driver: bool = False
    task: bool = False

    @property
    def for_driver(self) -> dict[str, float]:
        """The custom resources of a driver or planner."""
        return {"driver": 1} if self.driver else {}

    @property
    def for_task(self) -> dict[str, float]:
        """The custom resources of a planning or evaluation task."""
        return {"task": 1} if self.task else {}
