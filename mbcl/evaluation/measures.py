"""Metrics of a split's images: retrieval, kNN, linear probe, and label-free diagnostics.

kNN and probe use frozen features of clean images; pretraining never saw the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mbcl.data.images import stratified_split
from mbcl.evaluation.subject import Subject
from mbcl.metrics import alignment, both_directions, choose_probe, effective_rank, knn, retrieval, uniformity

Measured = Mapping[str, float | Sequence[float]]
"""Metrics by their contract names: a value, or one for each draw of the views, whose mean is the metric."""


def measure_retrieval(subject: Subject) -> Measured:
    """Measure ``retrieval/{u2v,v2u}/{top1,top5,top10,mrr,mean_rank,median_rank}`` and ``retrieval/{mrr,top1}``.

    Each of two augmented views must retrieve the other among those of all images. Views are projected in evaluation
    mode, as published. See :func:`mbcl.metrics.retrieval`; those without a direction are the means of both.
    """
    found = []
    for u, v in subject.view_draws():
        metrics = retrieval(u, v, similarity=subject.settings.similarity)
        found.append(both_directions(metrics) | metrics)
    return {f"retrieval/{key}": [each[key] for each in found] for key in found[0]}


def measure_knn(subject: Subject) -> Measured:
    """Measure ``knn/top1``, the accuracy of a vote of the nearest training images; see :func:`mbcl.metrics.knn`."""
    settings = subject.settings.knn.model_dump()
    predicted = knn(subject.train_features, subject.train.labels, subject.features, **settings)
    return {"knn/top1": float((predicted == subject.images.labels).double().mean())}


def measure_probe(subject: Subject) -> Measured:
    """Measure ``probe/top1``, the accuracy of a linear classifier fitted on the training images.

    Its penalty is selected on a held-out part of them, stratified by class; see :func:`mbcl.metrics.choose_probe`.
    """
    settings, labels = subject.settings.probe, subject.train.labels
    _, held_out = stratified_split(labels, settings.held_out, subject.seed, "probe")
    probe = choose_probe(subject.train_features, labels, held_out, penalties=settings.penalties)
    return {"probe/top1": probe.accuracy(subject.features, subject.images.labels)}


def measure_repr(subject: Subject) -> Measured:
    """Measure ``repr/alignment`` of augmented views, ``repr/uniformity`` and ``repr/effective_rank`` of clean images.

    See :func:`mbcl.metrics.alignment`, :func:`mbcl.metrics.uniformity` and :func:`mbcl.metrics.effective_rank`.
    """
    return {
        "repr/alignment": alignment(*subject.view_features),
        "repr/uniformity": uniformity(subject.features),
        "repr/effective_rank": effective_rank(subject.features),
    }
