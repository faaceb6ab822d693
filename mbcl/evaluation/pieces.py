"""The pieces of an evaluation: each is measured, stored and reused independently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mbcl.config.evaluation import Evaluation, Metric
from mbcl.engine.evaluation_checks import corruptions_of
from mbcl.evaluation import corrupted, measures
from mbcl.evaluation.measures import Measured
from mbcl.evaluation.subject import Subject

Measure = Callable[[Subject], Measured]

_PIECES: Mapping[Metric, tuple[Measure, tuple[str, ...]]] = {
    "retrieval": (measures.measure_retrieval, ("similarity", "draws")),
    "knn": (measures.measure_knn, ("knn",)),
    "probe": (measures.measure_probe, ("probe",)),
    "repr": (measures.measure_repr, ()),
}
"""By metric, its function and the settings that it depends on, besides split and batch size."""


@dataclass(frozen=True)
class Piece:
    """A metric, or one severity of the corrupted ones; ``request`` has the settings that it depends on."""

    title: str
    request: dict[str, Any]
    measure: Measure


def note_of_views(settings: Evaluation) -> dict[str, int]:
    """Return a part of requests that tells draws which share views from earlier results, of two views a draw."""
    return {"views": settings.draws + 1} if settings.draws > 1 else {}


def has_earlier_draws(result: Mapping[str, Any]) -> bool:
    """Tell whether a stored result has several draws of two views each: not those of :func:`note_of_views`."""
    return "views" not in result["asked"] and any(len(values) > 1 for values in result.get("draws", {}).values())


def pieces_of(settings: Evaluation, data: str) -> list[Piece]:
    """List the pieces of an evaluation in the order of its metrics; ``data`` is the clean data set's name.

    Raises:
        DataError, ConfigError: see :func:`mbcl.engine.evaluation_checks.corruptions_of`.
    """
    dump = settings.model_dump(mode="json")

    def piece(title: str, metric: Metric, measure: Measure, keys: Sequence[str], **extra: Any) -> Piece:
        request = {key: dump[key] for key in ("split", "batch_size", *keys)}
        if "draws" in keys:
            request |= note_of_views(settings)
        return Piece(title, {"metric": metric, **request, **extra}, measure)

    pieces = []
    for metric in settings.metrics:
        if metric != "corrupted":
            measure, keys = _PIECES[metric]
            pieces.append(piece(metric, metric, measure, keys))
            continue
        block = {key: dump["corrupted"][key] for key in ("meanings", "dir")}
        for severity, names in corruptions_of(settings.corrupted, data).items():
            measure_one = partial(corrupted.measure, severity=severity, corruptions=names)
            extra = {"corrupted": block, "severity": severity, "corruptions": list(names)}
            pieces.append(
                piece(f"corrupted, severity {severity}", metric, measure_one, ("similarity", "draws"), **extra)
            )
    return pieces
