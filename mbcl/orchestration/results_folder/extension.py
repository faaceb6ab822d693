"""``--extend``: a study takes the further seeds, settings and draws of a space that has all of its trials.

Trials are the same if their experiments are. A trial keeps its name, of which the ordinal is that of the space in which
it was made; its number in the order of the study is that of the new space.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mbcl.errors import ConfigError, pluralize
from mbcl.orchestration.search_space.baseline import resolved_baseline
from mbcl.orchestration.search_space.domains import is_drawn, short
from mbcl.orchestration.search_space.expansion import Trials, TrialSpec, record_of
from mbcl.orchestration.search_space.schema import SpaceFile
from mbcl.study.record import StudyRecord, TrialRecord


def digest_of(trial_id: str) -> str:
    """Return the digest of the experiment in a trial's name."""
    return trial_id.rpartition("-")[2]


def with_known_ids(trials: Trials, known: Iterable[str]) -> Trials:
    """Return the trials of a space under the names that a study has for them."""
    by_digest: dict[str, list[str]] = {}
    for trial_id in sorted(known):
        by_digest.setdefault(digest_of(trial_id), []).append(trial_id)
    specs = []
    for spec in trials.specs:
        names = by_digest.get(digest_of(spec.trial_id))
        specs.append(replace(spec, trial_id=names.pop(0)) if names else spec)
    return replace(trials, specs=tuple(specs))


def extend(study: StudyRecord, file: SpaceFile, trials: Trials, space_digest: str, changed: str) -> list[str]:
    """Add the trials of a space to a study's record, in place, and number all by the order of the space.

    Args:
        study: the record.
        file: the new space.
        trials: its trials, under the names of the study.
        space_digest: that of the new space.
        changed: the first key of the base experiment that differs, with both values; empty if none does.

    Returns:
        Notes for the user.

    Raises:
        ConfigError: if a trial of the study is none of the space, or the comparison would be another one.
    """
    _check(study, file, trials, changed)
    added = [spec for spec in trials.specs if spec.trial_id not in study.trials]
    old = dict(study.trials)
    by_setting: dict[int, TrialRecord] = {}
    for spec in trials.specs:
        if spec.trial_id in old:
            by_setting.setdefault(spec.setting, old[spec.trial_id])
    study.trials = {spec.trial_id: _record(spec, old, by_setting.get(spec.setting)) for spec in trials.specs}
    study.space_digest, study.question = space_digest, file.space.question
    study.searched = study.searched or any(is_drawn(domain) for domain in file.space.space.values())
    return [f"{pluralize(len(added), 'trial')} added to the {len(old)} of the study"]


def _record(spec: TrialSpec, old: dict[str, TrialRecord], sibling: TrialRecord | None) -> TrialRecord:
    """Return the record of a trial: what the study has of it, with the numbers of the space.

    ``sibling`` is a trial of its setting that the study has.
    """
    drawn = sibling.drawn if sibling else None
    evaluation = sibling.evaluation if sibling else _evaluation(spec, old)
    fresh = record_of(spec, drawn, evaluation)
    if spec.trial_id not in old:
        return fresh
    numbers = ("ordinal", "setting", "parameters", "is_control", "equal_passes", "stage", "arm", "nuisance")
    return old[spec.trial_id].model_copy(update={key: getattr(fresh, key) for key in numbers})


def _evaluation(spec: TrialSpec, old: dict[str, TrialRecord]) -> dict[str, object]:
    """Return the block of an earlier ``--eval-only`` for a new setting; empty if there was none, or it is swept."""
    if any(key.split(".")[0] == "evaluation" for key in spec.parameters):
        return {}
    return next((record.evaluation for record in old.values() if record.evaluation), {})


def _check(study: StudyRecord, file: SpaceFile, trials: Trials, changed: str) -> None:
    space = file.space
    for key, then, now in (
        ("search.metric", study.metric, space.search.metric),
        ("search.mode", study.mode, space.search.mode),
        ("baseline", study.baseline, resolved_baseline(space)),
        ("equivalence", study.equivalence, space.equivalence),
        ("nuisance.keys", study.nuisance, space.nuisance.keys if space.nuisance else []),
    ):
        if then != now:
            raise ConfigError(f"--extend: {file.path}: {key} was {short(then)}, now it is {short(now)}; it must stay")
    missing = [key for key in study.trials if key not in trials.by_id]
    if missing:
        record = study.trials[missing[0]]
        values = ", ".join(f"{key} = {short(value)}" for key, value in (record.parameters | record.nuisance).items())
        reason = f"; {changed}: what the study was given by --set is given again" if changed else ""
        raise ConfigError(
            f"--extend: {file.path} lacks {len(missing)} of the study's {pluralize(len(study.trials), 'trial')}, the "
            f"first with {values}, seed {record.seed}; a space that extends a study has all of its trials{reason}"
        )
    tuned = {key for key, record in study.trials.items() if record.stage == "tuning"}
    chosen = any(record.stage == "confirmation" for record in study.trials.values())
    if chosen and tuned != {spec.trial_id for spec in trials.specs if spec.stage == "tuning"}:
        raise ConfigError(
            f"--extend: {file.path} has further candidates of nuisance.keys, but the study has chosen among the others "
            "already; allowed: further seeds"
        )
