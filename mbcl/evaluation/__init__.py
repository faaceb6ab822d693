"""Evaluation: metrics of a checkpoint under given settings; one function for single checkpoints and sweeps."""

from mbcl.evaluation.baselines import BASELINES
from mbcl.evaluation.run import EVALUATION_FILE, evaluate, usable_device
from mbcl.evaluation.weights import INITIAL, find_weights, of_epochs
from mbcl.export import Weights

__all__ = [
    "BASELINES",
    "EVALUATION_FILE",
    "INITIAL",
    "Weights",
    "evaluate",
    "find_weights",
    "of_epochs",
    "usable_device",
]
