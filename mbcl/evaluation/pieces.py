"""What an evaluation consists of: pieces that are measured, kept and found again each by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mbcl.config.evaluation import Evaluation, Metric
from mbcl.engine.evaluation_checks import corruptions_of
from mbcl.evaluation import classes, corrupted, diagnostics, retrieval
from mbcl.evaluation.subject import Subject

Measure = Callable[[Subject], dict[str, float]]

_PIECES: Mapping[Metric, tuple[Measure, tuple[str, ...]]] = {
    "retrieval": (retrieval.measure, ("similarity",)),
    "knn": (classes.measure_knn, ("knn",)),
    "probe": (classes.measure_probe, ("probe",)),
    "repr": (diagnostics.measure, ()),
}
"""By metric what measures it, and the settings that it follows from, besides the split and the size of batches."""


@dataclass(frozen=True)
class Piece:
    """A metric, or one severity of the corrupted ones.

    Args:
        title: for people.
        asked: the settings that it follows from, as plain data.
        measure: what measures it.
    """

    title: str
    asked: dict[str, Any]
    measure: Measure


def pieces_of(settings: Evaluation, data: str) -> list[Piece]:
    """The pieces of an evaluation in the order of its metrics.

    Args:
        settings: what is asked for.
        data: the clean data set's name.

    Raises:
        DataError, ConfigError: as :func:`mbcl.engine.evaluation_checks.corruptions_of`.
    """
    dump = settings.model_dump(mode="json")

    def piece(title: str, metric: Metric, measure: Measure, keys: Sequence[str], **more: Any) -> Piece:
        asked = {key: dump[key] for key in ("split", "batch_size", *keys)}
        return Piece(title, {"metric": metric, **asked, **more}, measure)

    found = []
    for metric in settings.metrics:
        if metric != "corrupted":
            measure, keys = _PIECES[metric]
            found.append(piece(metric, metric, measure, keys))
            continue
        block = {key: dump["corrupted"][key] for key in ("meanings", "dir")}
        for severity, names in corruptions_of(settings.corrupted, data).items():
            one = partial(corrupted.measure, severity=severity, corruptions=names)
            more = {"corrupted": block, "severity": severity, "corruptions": list(names)}
            found.append(piece(f"corrupted, severity {severity}", metric, one, ("similarity",), **more))
    return found
