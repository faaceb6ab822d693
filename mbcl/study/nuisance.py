"""Nuisance keys: every setting takes its own best value of them, and fresh seeds measure the chosen ones.

A nuisance hyperparameter is one that is tuned for a fair comparison of the others (Godbole et al., Deep Learning Tuning
Playbook, 2023), such as a temperature or a learning rate. A setting without its nuisance keys is an *arm*, and each of
its combinations of nuisance values a *candidate*. Tuning trials measure all candidates on the validation split with
seeds of their own; confirmation trials measure the best candidate of each arm on the study's seeds.

The best of more candidates is better by chance, so all arms have equally many, and an arm is confirmed only if all of
them were tried. A training that diverged is a result: its candidate was tried and is the worst, so it is not chosen,
and ``--resume`` does not run it again. Any other failure leaves the arm without a choice until ``--resume`` has
repeated the trial.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mbcl.errors import pluralize
from mbcl.study.record import StudyRecord, TrialRecord
from mbcl.study.settings import nuisance_text, settings_of


@dataclass(frozen=True)
class Candidate:
    """One combination of nuisance values of an arm, in words its ``label``.

    ``value`` is the mean of the search metric over the tuning seeds; None if a seed has none.
    """

    setting: int
    label: str
    nuisance: dict[str, Any]
    trials: Sequence[TrialRecord]
    value: float | None

    @property
    def failed(self) -> int:
        """Number of trials that failed for another reason than divergence."""
        return sum(trial.status == "failed" and not trial.diverged for trial in self.trials)

    @property
    def diverged(self) -> int:
        """Number of trials that diverged."""
        return sum(trial.has_diverged for trial in self.trials)

    @property
    def tried(self) -> bool:
        """Whether all its trials have a result."""
        return all(trial.status == "finished" or trial.has_diverged for trial in self.trials)


@dataclass(frozen=True)
class Choice:
    """The tuning of one arm.

    ``chosen`` is None as long as there is no choice, for the reason ``missing``. Confirmation trials that exist keep
    the choice that they were made for.
    """

    arm: int
    label: str
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    missing: str

    @property
    def impossible(self) -> bool:
        """Whether there will be no choice: all candidates were tried, and none has a value."""
        return self.chosen is None and all(each.tried for each in self.candidates)

    def describe(self, metric: str) -> str:
        """Describe the choice, or why there is none, in one line."""
        if self.chosen is None:
            return f"{self.label}: nothing is chosen: {self.missing}"
        diverged = sum(each.diverged > 0 for each in self.candidates)
        tried = f"{len(self.candidates)} candidates" + (f", of which {diverged} diverged," if diverged else "")
        value = "" if self.chosen.value is None else f" ({self.chosen.value:.4f})"
        return f"{self.label}: {self.chosen.label}, the best of {tried} by {metric}{value}"


def choices(study: StudyRecord) -> list[Choice]:
    """Return the tuning of every arm in the order of the study; empty without nuisance keys."""
    by_arm: dict[int, list[Candidate]] = {}
    confirmed: dict[int, dict[str, Any]] = {}
    names: dict[int, str] = {}
    for setting in settings_of(study):
        number, trials, arm = setting.id, setting.trials, setting.trials[0].arm
        if arm is None:
            continue
        names[arm] = setting.arm_label
        if trials[0].stage == "confirmation":
            confirmed[arm] = trials[0].nuisance
            continue
        values = [trial.value_of(study.metric) if trial.status == "finished" else None for trial in trials]
        measured = [value for value in values if value is not None]
        mean = statistics.fmean(measured) if len(measured) == len(trials) else None
        by_arm.setdefault(arm, []).append(
            Candidate(number, nuisance_text(study, trials[0]), trials[0].nuisance, trials, mean)
        )
    return [
        Choice(arm, names[arm], tuple(found), *_choose(found, confirmed.get(arm), maximise=study.mode == "max"))
        for arm, found in sorted(by_arm.items())
    ]


def unconfirmed(study: StudyRecord) -> list[Choice]:
    """Return the choices, made or to be made, of the arms that have no confirmation trials yet."""
    confirmed = {trial.arm for trial in study.trials.values() if trial.stage == "confirmation"}
    return [choice for choice in choices(study) if not choice.impossible and choice.arm not in confirmed]


def _choose(
    candidates: Sequence[Candidate], confirmed: dict[str, Any] | None, *, maximise: bool
) -> tuple[Candidate | None, str]:
    """Return the best candidate, the first one in a tie, or the reason why there is none."""
    if confirmed is not None:
        return next((each for each in candidates if each.nuisance == confirmed), None), ""
    if failed := sum(each.failed for each in candidates):
        return None, f"{pluralize(failed, 'tuning trial')} failed, so the candidates are not equally many; --resume"
    if not all(each.tried for each in candidates):
        return None, "tuning is not finished"
    measured = [(each.value, each) for each in candidates if each.value is not None]
    if not measured:
        diverged = all(each.diverged for each in candidates)
        return None, "every candidate diverged" if diverged else "no candidate has a value"
    sign = -1 if maximise else 1
    return min(measured, key=lambda pair: sign * pair[0])[1], ""


def describe_choices(study: StudyRecord) -> list[str]:
    """Return a line about the choice of every arm; empty without nuisance keys."""
    return [choice.describe(study.metric) for choice in choices(study)]


def first_candidates(study: StudyRecord) -> StudyRecord:
    """Return the study with the first candidate of each arm alone, as if there were no nuisance keys.

    It has the comparisons that the study will have once the values are chosen.
    """
    if not study.nuisance:
        return study
    arms = {number: trials[0].arm for number, trials in study.settings().items()}
    first = {arm: number for number, arm in reversed(arms.items())}
    trials = {
        key: trial.model_copy(
            update={
                "stage": "",
                "arm": None,
                "equal_passes": None if trial.equal_passes is None else first[arms[trial.equal_passes]],
            }
        )
        for key, trial in study.trials.items()
        if trial.setting == first[trial.arm]
    }
    return study.model_copy(update={"trials": trials, "nuisance": []})
