"""Removal of placement groups that a dead driver left behind.

The workers of a trial run in a placement group that their Train controller created. Ray removes such a group when the
*job* ends, not when its creator dies: a driver that is killed takes its controller along, the group stays, and the
restarted driver would wait for ever for the CPUs of the old group. Ray Train's own cleaner needs the dashboard, which a
local sweep does not start; the GCS records for every group whether its creator is alive.
"""

from __future__ import annotations

import time

import ray

from mbcl.orchestration.cluster.ray_internals import PlacementGroupInfo, actor_is_dead, live_jobs, placement_groups


def actor_groups() -> list[PlacementGroupInfo]:
    """Return the placement groups, of all jobs, that were created by an actor, dead or alive.

    The groups of Ray Tune, for the trials' drivers, are not among them: a sweep's process created them.
    """
    return [group for group in placement_groups() if group.creator_actor_id]


def num_waiting_groups(seconds: float) -> int:
    """Count the worker groups of this job that have waited for resources for more than ``seconds``."""
    own, latest = ray.get_runtime_context().get_job_id(), time.time() - seconds
    return sum(group.job_id == own and not group.created and group.requested_at < latest for group in actor_groups())


def remove_orphaned_groups() -> int:
    """Remove the placement groups whose creator, an actor, has died: those of this job and of jobs that have ended.

    A controller that is killed with its whole job sees its workers die first. It may then create a group for new
    workers after Ray has removed the job's groups. That group would keep its resources until the cluster is stopped.

    Idempotent; may be called in any process of the job.

    Returns:
        The number of removed groups.
    """
    groups = actor_groups()
    own = ray.get_runtime_context().get_job_id()
    others = live_jobs() - {own} if any(group.job_id != own for group in groups) else set()
    orphaned = [
        group
        for group in groups
        # A group created after the GCS noted the death of its creator is not marked, so look up the creator, too.
        if group.job_id not in others
        and not group.detached
        and (group.creator_dead or actor_is_dead(group.creator_actor_id))
    ]
    for group in orphaned:
        group.remove()
    return len(orphaned)


def remove_own_groups() -> None:
    """Remove the placement groups that this process created: Ray Tune leaves those of its drivers when interrupted."""
    own = ray.get_runtime_context().get_job_id()
    for group in placement_groups():
        if group.job_id == own and not group.creator_actor_id:
            group.remove()
