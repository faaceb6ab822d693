"""The best of what was tuned: chosen by the metric of the search, on the validation split, never by the test split."""

from __future__ import annotations

import math
import statistics

from mbcl.study.record import StudyRecord
from mbcl.study.settings import Setting


def reached(study: StudyRecord, setting: Setting) -> list[float]:
    """What the finished seeds of a setting reach by the metric of the search."""
    found = [trial.metrics.get(study.metric) for trial in setting.trials if trial.status == "finished"]
    return [float(value) for value in found if value is not None and math.isfinite(value)]


def best_of(study: StudyRecord, settings: list[Setting]) -> Setting | None:
    """The setting whose mean over seeds is best by the metric of the search, the first of equal ones.

    Of settings with more and with fewer finished seeds only those with the most are ranked: a mean over few is as good
    by luck more easily.

    Returns:
        None if none has finished.
    """
    measured = [(values, s) for s in settings if (values := reached(study, s))]
    if not measured:
        return None
    most = max(len(values) for values, _ in measured)
    sign = -1 if study.mode == "max" else 1
    ranked = [(sign * statistics.fmean(values), s) for values, s in measured if len(values) == most]
    return min(ranked, key=lambda found: found[0])[1]


def champions(study: StudyRecord, settings: list[Setting], candidates: list[Setting]) -> list[tuple[Setting, Setting]]:
    """The best setting of each sampler and objective with the best of its baseline's.

    Args:
        study: the study.
        settings: all of its settings.
        candidates: those that its baseline matches: the same choice is made among them.
    """
    named = {key.partition(".")[0] for key in study.baseline}
    keys = {s.id: {"sampler": s.columns["sampler"], "objective": s.columns["objective"]} for s in settings}
    ids = {candidate.id for candidate in candidates}
    groups: dict[tuple[str, str], list[Setting]] = {}
    for setting in settings:
        if setting.id not in ids:
            groups.setdefault((keys[setting.id]["sampler"], keys[setting.id]["objective"]), []).append(setting)
    pairs = []
    for group in groups.values():
        champion = best_of(study, group)
        peers = [
            candidate
            for candidate in candidates
            if all(
                keys[candidate.id][part] == keys[group[0].id][part] for part in keys[group[0].id] if part not in named
            )
        ]
        reference = best_of(study, peers)
        if champion is not None and reference is not None:
            pairs.append((champion, reference))
    return pairs
