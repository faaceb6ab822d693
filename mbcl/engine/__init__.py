"""The training engine: one trainer for a single process, torchrun and Ray Train."""

from mbcl.engine.evaluation_checks import check_evaluation
from mbcl.engine.memory import MemoryNeed, memory_need
from mbcl.engine.plan_service import LocalPlanService, make_plan, share_plan
from mbcl.engine.planning_costs import planning_cost
from mbcl.engine.protocols import BaseObserver, Observer, PlanKey, PlannedBatches, PlanService, Row
from mbcl.engine.setup import DataSizes, SplitData, check_model, data_sizes, load_data
from mbcl.engine.tracking import check_trackers
from mbcl.engine.trainer import Trainer, TrainingOutcome, train

__all__ = [
    "BaseObserver",
    "DataSizes",
    "LocalPlanService",
    "MemoryNeed",
    "Observer",
    "TrainingOutcome",
    "PlanKey",
    "PlanService",
    "PlannedBatches",
    "Row",
    "SplitData",
    "Trainer",
    "check_evaluation",
    "check_model",
    "check_trackers",
    "data_sizes",
    "load_data",
    "make_plan",
    "memory_need",
    "planning_cost",
    "share_plan",
    "train",
]
