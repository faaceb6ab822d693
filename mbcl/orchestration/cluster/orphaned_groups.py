"""Gives back what a trial's driver had reserved when it died.

The workers of a trial live in a placement group that their Train controller made. Ray removes such a group with the
*job*, not with its maker: a driver that is killed takes its controller along, the group stays, and the restarted driver
would wait for ever for the CPUs that its predecessor holds. Ray Train's own cleaner asks the dashboard, which a local
sweep does not start; the GCS itself knows of every group whether its maker still lives.
"""

from __future__ import annotations

import time

import ray
from ray._private.state import state  # noqa: TID251
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]  # noqa: TID251
from ray.util.placement_group import PlacementGroup, remove_placement_group

DEAD = "DEAD"
"""How Ray's table of actors calls one that will not come back."""


def groups_of_actors() -> list[PlacementGroupTableData]:
    """The placement groups of all jobs, waiting ones too, that an actor made, dead or alive.

    Groups that a sweep's process made (Ray Tune's, for the drivers) have no actor as their maker.
    """
    table = state._connect_and_get_accessor().get_placement_group_table()
    return [
        found
        for found in map(PlacementGroupTableData.FromString, table)
        if found.state != PlacementGroupTableData.REMOVED and not ray.ActorID(found.creator_actor_id).is_nil()
    ]


def num_waiting_groups(seconds: float) -> int:
    """How many worker groups of this job have waited for room for longer than so many seconds."""
    own, latest = ray.get_runtime_context().get_job_id(), time.time() - seconds
    return sum(
        found.creator_job_id.hex() == own
        and found.state != PlacementGroupTableData.CREATED
        and found.stats.creation_request_received_ns / 1e9 < latest
        for found in groups_of_actors()
    )


def remove_orphaned_groups() -> int:
    """Remove the placement groups whose maker, an actor, has died: of this job, and of jobs that have ended.

    A controller that is being killed with its whole job sees its workers die first, and may make a group for new ones
    when Ray has given the job's groups back already. It would hold its resources as long as the cluster stands.

    May be called at any time, in any process of the job, and any number of times.

    Returns:
        How many were removed.
    """
    found = groups_of_actors()
    own = ray.get_runtime_context().get_job_id()
    foreign = any(group.creator_job_id.hex() != own for group in found)
    others = {job["JobID"] for job in state.job_table() if not job["IsDead"]} - {own} if foreign else set()
    removed = 0
    for group in found:
        if group.creator_job_id.hex() in others or group.is_detached:
            continue
        maker = ray.ActorID(group.creator_actor_id)
        # It may be made after its maker's death was noted, so that the group's mark alone would not tell.
        if group.creator_actor_dead or state.actor_table(maker.hex()).get("State") == DEAD:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
            removed += 1
    return removed
