"""Metrics of a representation: retrieval, nearest neighbours, linear probe, alignment, uniformity, effective rank."""

from mbcl.metrics._diagnostics import alignment, effective_rank, uniformity
from mbcl.metrics._neighbours import knn
from mbcl.metrics._probe import LinearProbe, choose_probe, fit_probe
from mbcl.metrics._retrieval import both_directions, ranks, retrieval, retrieval_within

__all__ = [
    "LinearProbe",
    "alignment",
    "both_directions",
    "choose_probe",
    "effective_rank",
    "fit_probe",
    "knn",
    "ranks",
    "retrieval",
    "retrieval_within",
    "uniformity",
]
