"""Class evaluations: kNN and linear probe on frozen features of clean images; pretraining never saw the labels."""

from __future__ import annotations

from mbcl.data.images import stratified_split
from mbcl.evaluation.subject import Subject
from mbcl.metrics import choose_probe, knn


def measure_knn(subject: Subject) -> dict[str, float]:
    """Measure ``knn/top1``, the accuracy of a vote of the nearest training images; see :func:`mbcl.metrics.knn`."""
    settings = subject.settings.knn
    predicted = knn(
        subject.train_features,
        subject.train.labels,
        subject.features,
        k=settings.k,
        weighting=settings.weighting,
        temperature=settings.temperature,
    )
    return {"knn/top1": float((predicted == subject.images.labels).double().mean())}


def measure_probe(subject: Subject) -> dict[str, float]:
    """Measure ``probe/top1``, the accuracy of a linear classifier fitted on the training images.

    Its penalty is selected on a held-out part of them, stratified by class; see :func:`mbcl.metrics.choose_probe`.
    """
    settings, labels = subject.settings.probe, subject.train.labels
    _, held_out = stratified_split(labels, settings.held_out, subject.seed, "probe")
    probe = choose_probe(subject.train_features, labels, held_out, penalties=settings.penalties)
    return {"probe/top1": probe.accuracy(subject.features, subject.images.labels)}
