"""The source of confirmation trials: those of an arm are added once all its candidates are tried. Imports no Ray."""

from __future__ import annotations

from collections.abc import Callable

from mbcl.orchestration.search_space.confirmation import confirmation
from mbcl.orchestration.search_space.expansion import Trials, TrialSpec, record_of
from mbcl.orchestration.search_space.schema import Space
from mbcl.study.nuisance import unconfirmed
from mbcl.study.record import StudyRecord


class ConfirmationSource:
    """A :class:`~mbcl.orchestration.scheduling.trial_queue.SettingSource` of the settings that tuning has chosen.

    Args:
        space: a space with nuisance keys.
        study: the record, to which new trials are added.
        trials: the trials of the space.
        added: called with the new trials of each chosen setting.
    """

    def __init__(
        self, space: Space, study: StudyRecord, trials: Trials, *, added: Callable[[list[TrialSpec]], None]
    ) -> None:
        self._space = space
        self._study = study
        self._trials = trials
        self._added = added
        self._has_news = True  # whether a setting has ended since the last look at the choices

    @property
    def left(self) -> int:
        """Number of trials that are still to be added."""
        return len(unconfirmed(self._study)) * len(self._space.seeds)

    def propose(self) -> list[str]:
        """Add the trials of the first arm that has a choice and no trials yet; empty if there is none now."""
        if not self._has_news:
            return []
        for choice in unconfirmed(self._study):
            if choice.chosen is not None:
                specs = confirmation(self._space, self._trials, choice.chosen.setting)
                evaluation = choice.chosen.trials[0].evaluation
                self._study.trials.update({spec.trial_id: record_of(spec, evaluation=evaluation) for spec in specs})
                self._added(specs)
                return [spec.trial_id for spec in specs]
        self._has_news = False
        return []

    def tell(self, setting: int) -> None:
        """Take the end of a setting; its results are in the record."""
        self._has_news = True
