"""The trials that measure what tuning chose: of every arm its best candidate, on seeds that took no part in the choice.

Names and numbers depend on the arm and the candidate alone, not on when the choice was made, so that ``--resume`` makes
the same trials from the study's record.
"""

from __future__ import annotations

from dataclasses import replace

from mbcl.errors import ConfigError
from mbcl.orchestration.search_space.expansion import Trials, TrialSpec, replicate
from mbcl.orchestration.search_space.schema import Space
from mbcl.study.record import StudyRecord


def confirmation(space: Space, trials: Trials, candidate: int) -> list[TrialSpec]:
    """Return the trials that measure a candidate, a setting of tuning, in place of its arm."""
    tuning = [spec for spec in trials.specs if spec.stage == "tuning"]
    first = {spec.setting: spec for spec in reversed(tuning)}
    spec = first[candidate]
    assert spec.arm is not None
    control = None if spec.equal_passes is None else first[spec.equal_passes].arm
    start = len(tuning) + spec.arm * len(space.seeds)
    number = len(first) + spec.arm
    specs = replicate(
        space.seeds, number, spec.parameters, spec.experiment, trials.total, first=start, nuisance=spec.nuisance
    )
    return [
        replace(
            each,
            is_control=spec.is_control,
            equal_passes=None if control is None else len(first) + control,
            stage="confirmation",
            arm=spec.arm,
        )
        for each in specs
    ]


def with_confirmations(space: Space, trials: Trials, study: StudyRecord) -> Trials:
    """Return the trials of a space with those of the choices that the study's record has.

    Raises:
        ConfigError: if the record has a choice that is no candidate of the space.
    """
    candidates = [spec for spec in trials.specs if spec.stage == "tuning"]
    specs: list[TrialSpec] = []
    for number, records in study.settings().items():
        if records[0].stage != "confirmation":
            continue
        chosen = [c for c in candidates if (c.arm, c.nuisance) == (records[0].arm, records[0].nuisance)]
        if not chosen:
            raise ConfigError(
                f"setting {number} of the study confirms no candidate of this space; study.json is damaged"
            )
        specs += confirmation(space, trials, chosen[0].setting)
    return replace(trials, specs=(*trials.specs, *specs))
