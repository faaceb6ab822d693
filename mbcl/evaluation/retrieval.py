"""Retrieval of a split's images: each of two augmented views must retrieve the other among those of all images."""

from __future__ import annotations

from mbcl.evaluation.subject import Subject
from mbcl.metrics import retrieval


def measure(subject: Subject) -> dict[str, float]:
    """Measure ``retrieval/{u2v,v2u}/{top1,top5,top10,mrr,mean_rank,median_rank}``; see :func:`mbcl.metrics.retrieval`.

    Views are projected in evaluation mode, as published.
    """
    u, v = (subject.projected(features) for features in subject.view_features)
    metrics = retrieval(u, v, similarity=subject.settings.similarity)
    return {f"retrieval/{key}": value for key, value in metrics.items()}
