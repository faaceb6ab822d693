"""The training engine: one trainer for a single process, torchrun and Ray Train."""

from mbcl.engine.evaluation_checks import check_evaluation
from mbcl.engine.memory import MemoryNeed, memory_need
from mbcl.engine.plan_times import forward_passes
from mbcl.engine.planning_costs import planning_cost
from mbcl.engine.protocols import BaseObserver, Observer, Row
from mbcl.engine.setup import (
    DataSizes,
    Samples,
    SplitData,
    check_model,
    check_samples,
    data_sizes,
    load_data,
    load_splits,
    split_data,
)
from mbcl.engine.tracking import check_trackers
from mbcl.engine.trainer import Trainer, TrainingOutcome, train

__all__ = [
    "BaseObserver",
    "DataSizes",
    "MemoryNeed",
    "Observer",
    "TrainingOutcome",
    "Row",
    "Samples",
    "SplitData",
    "Trainer",
    "check_evaluation",
    "check_model",
    "check_samples",
    "check_trackers",
    "data_sizes",
    "forward_passes",
    "load_data",
    "load_splits",
    "memory_need",
    "planning_cost",
    "split_data",
    "train",
]
