"""Model selection: the best tuned settings by the search metric.

The search metric is measured on the validation split. The test split never takes part in the choice.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

from mbcl.study.record import StudyRecord
from mbcl.study.settings import Setting


class Champions(NamedTuple):
    """A setting and the baseline setting that it is compared with, each the best of so many candidates."""

    setting: Setting
    reference: Setting
    candidates: int = 1
    reference_candidates: int = 1

    @property
    def chosen(self) -> bool:
        """Whether results have chosen one of them."""
        return max(self.candidates, self.reference_candidates) > 1


def best_of(study: StudyRecord, settings: list[Setting]) -> Setting | None:
    """Return the setting with the best mean of the search metric over its seeds, the first one in a tie.

    Only the settings with the largest number of finished seeds are ranked: a mean over fewer seeds is more often good
    by chance.

    Returns:
        None if no setting has a finished seed.
    """
    measured = [(values, s) for s in settings if (values := s.values_of(study.metric))]
    if not measured:
        return None
    max_seeds = max(len(values) for values, _ in measured)
    sign = -1 if study.mode == "max" else 1
    ranked = [(sign * statistics.fmean(values), s) for values, s in measured if len(values) == max_seeds]
    return min(ranked, key=lambda pair: pair[0])[1]


def champions(study: StudyRecord, settings: list[Setting], candidates: list[Setting]) -> list[Champions]:
    """Pair the best setting of each sampler and objective with the best of its baseline settings.

    Both are chosen by the same rule, :func:`best_of`. The best of more candidates is better by chance, so the number of
    those that were tried, stopped ones included, stands beside each.

    Returns:
        One pair for each sampler and objective for which both exist; the references are among the candidates, which
        match the study's baseline.
    """
    parts = ("sampler", "objective")
    # A candidate is a peer if it has the same sampler and objective, except for what the baseline names.
    shared = [part for part in parts if part not in {key.partition(".")[0] for key in study.baseline}]
    ids = {candidate.id for candidate in candidates}
    groups: dict[tuple[str, ...], list[Setting]] = {}
    for setting in settings:
        if setting.id not in ids:
            groups.setdefault(tuple(setting.columns[part] for part in parts), []).append(setting)
    pairs = []
    for group in groups.values():
        peers = [c for c in candidates if all(c.columns[part] == group[0].columns[part] for part in shared)]
        champion, reference = best_of(study, group), best_of(study, peers)
        if champion is not None and reference is not None:
            pairs.append(Champions(champion, reference, _num_tried(group), _num_tried(peers)))
    return pairs


def _num_tried(settings: list[Setting]) -> int:
    """Return the number of settings that took part in a choice: a seed has finished, diverged or was stopped."""
    ended = ("finished", "stopped")
    return sum(any(trial.status in ended or trial.has_diverged for trial in each.trials) for each in settings)
