"""Planning for a training: from the embeddings of all ranks, before the steps or beside them, one plan for all ranks.

The engine and :mod:`mbcl.torch` plan here. ``mbcl.planning`` is the command ``mbcl plan``.
"""

from mbcl.planner.chunks import random_chunks
from mbcl.planner.embedding_cache import EmbeddingCache
from mbcl.planner.plan_service import LocalPlanService, make_plan, plan_rounds, share_plan
from mbcl.planner.plans import (
    PlanKey,
    PlannedBatches,
    PlanService,
    plan_of,
    plan_state,
    planned_of,
    planned_state,
)

__all__ = [
    "EmbeddingCache",
    "LocalPlanService",
    "PlanKey",
    "PlanService",
    "PlannedBatches",
    "make_plan",
    "plan_of",
    "plan_rounds",
    "plan_state",
    "planned_of",
    "planned_state",
    "random_chunks",
    "share_plan",
]
