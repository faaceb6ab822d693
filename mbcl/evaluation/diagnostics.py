"""Label-free diagnostics of the features: alignment, uniformity, effective rank."""

from __future__ import annotations

from mbcl.evaluation.subject import Subject
from mbcl.metrics import alignment, effective_rank, uniformity


def measure(subject: Subject) -> dict[str, float]:
    """Measure ``repr/alignment`` of augmented views, ``repr/uniformity`` and ``repr/effective_rank`` of clean images.

    See :func:`mbcl.metrics.alignment`, :func:`mbcl.metrics.uniformity` and :func:`mbcl.metrics.effective_rank`.
    """
    return {
        "repr/alignment": alignment(*subject.view_features),
        "repr/uniformity": uniformity(subject.features),
        "repr/effective_rank": effective_rank(subject.features),
    }
