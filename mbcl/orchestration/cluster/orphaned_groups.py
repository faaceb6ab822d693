"""Gives back what a trial's driver had reserved when it died.

The workers of a trial live in a placement group that their Train controller made. Ray removes such a group with the
*job*, not with its maker: a driver that is killed takes its controller along, the group stays, and the restarted driver
would wait for ever for the CPUs that its predecessor holds. Ray Train's own cleaner asks the dashboard, which a local
sweep does not start; the GCS itself knows of every group whether its maker still lives.
"""

from __future__ import annotations

import time

import ray

from mbcl.orchestration.cluster.ray_internals import PlacementGroupInfo, actor_is_dead, live_jobs, placement_groups


def actor_groups() -> list[PlacementGroupInfo]:
    """The placement groups of all jobs that an actor made, dead or alive.

    Those of Ray Tune, for the trials' drivers, were made by a sweep's process and are not among them.
    """
    return [group for group in placement_groups() if group.creator_actor_id]


def num_waiting_groups(seconds: float) -> int:
    """Count the worker groups of this job that have waited for resources for longer than so many seconds."""
    own, latest = ray.get_runtime_context().get_job_id(), time.time() - seconds
    return sum(group.job_id == own and not group.created and group.requested_at < latest for group in actor_groups())


def remove_orphaned_groups() -> int:
    """Remove the placement groups whose maker, an actor, has died: of this job, and of jobs that have ended.

    A controller that is killed with its whole job sees its workers die first. It may then make a group for new ones
    after Ray has given the job's groups back, and that group would hold its resources as long as the cluster stands.

    Idempotent; may be called in any process of the job.

    Returns:
        How many were removed.
    """
    groups = actor_groups()
    own = ray.get_runtime_context().get_job_id()
    others = live_jobs() - {own} if any(group.job_id != own for group in groups) else set()
    orphaned = [
        group
        for group in groups
        # A group that is made after its maker's death was noted carries no mark; then the maker is looked up.
        if group.job_id not in others
        and not group.detached
        and (group.creator_dead or actor_is_dead(group.creator_actor_id))
    ]
    for group in orphaned:
        group.remove()
    return len(orphaned)
