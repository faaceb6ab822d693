"""The settings of a study: their swept keys as flat columns, their labels, and which of them is the baseline."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mbcl.config import components
from mbcl.study.record import StudyRecord, TrialRecord

FIXED_COLUMNS = ("trial_id", "status", "error", "sampler", "objective", "seed")
"""What every row of ``results.csv`` starts with; a swept key of the same name adds no second column."""

MOST_DIGITS = 8
"""A float of more characters was not typed by anybody."""


@dataclass(frozen=True)
class Setting:
    """Trials that differ in nothing but their seed."""

    id: int
    label: str
    columns: dict[str, Any]
    """``sampler`` and ``objective``, then the swept keys, flat."""
    trials: tuple[TrialRecord, ...]


def ordered_trials(study: StudyRecord) -> dict[str, TrialRecord]:
    """The trials by id in the order of the study, whatever order the mapping has."""
    return dict(sorted(study.trials.items(), key=lambda item: (item[1].ordinal, item[0])))


def flatten(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys to plain values.

    The name of a block takes the block's own key, so that ``sampler: {name: spectral, k: 4}`` is ``sampler`` and
    ``sampler.k`` in a table and ``sampler`` can be filtered on whether a sweep gave it as a block or not.

    Example:
        >>> flatten({"sampler": {"name": "spectral", "k": 4}, "train.epochs": 5})
        {'sampler': 'spectral', 'sampler.k': 4, 'train.epochs': 5}
    """
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        if not isinstance(value, Mapping):
            flat[key] = value
            continue
        if "name" in value:
            flat[key] = value["name"]
        rest = {f"{key}.{part}": inner for part, inner in value.items() if part != "name"}
        flat.update(flatten(rest))
    return flat


def text_of(value: Any) -> str:
    """A value of the space file as one would type it there; floats in full, so that they read back exactly."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _in_label(value: Any) -> str:
    """A value in a label: a float that was drawn with four digits, the tables have all."""
    text = text_of(value)
    return f"{value:.4g}" if isinstance(value, float) and len(text) > MOST_DIGITS else text


def swept_columns(study: StudyRecord) -> list[str]:
    """The flat swept keys of all trials in first-seen order, those of one block side by side.

    ``sampler``, ``objective`` and ``seed`` are columns of every trial and are not repeated.
    """
    blocks: dict[str, dict[str, None]] = {}
    for trial in ordered_trials(study).values():
        for key, value in trial.parameters.items():
            blocks.setdefault(key, {}).update(dict.fromkeys(flatten({key: value})))
    columns = dict.fromkeys(column for block in blocks.values() for column in block)
    return [column for column in columns if column not in FIXED_COLUMNS]


def settings_of(study: StudyRecord) -> list[Setting]:
    """The settings in the order of the study, with labels that say what differs between them."""
    groups: dict[int, list[TrialRecord]] = {}
    for trial in ordered_trials(study).values():
        groups.setdefault(trial.setting, []).append(trial)
    first = [trials[0] for trials in groups.values()]
    columns = [columns_of(trial.sampler, trial.objective, trial.parameters) for trial in first]
    return [
        Setting(number, label, flat, tuple(trials))
        for (number, trials), label, flat in zip(groups.items(), labels(columns), columns, strict=True)
    ]


def columns_of(sampler: str, objective: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a setting with these swept keys."""
    own = {"sampler": sampler, "objective": objective}
    return own | {key: value for key, value in flatten(parameters).items() if key not in FIXED_COLUMNS}


def canonical(column: str, value: Any) -> Any:
    """The canonical name behind a published alias; anything else as it is."""
    return components.canonical(column, value) if column in components.COMPONENTS and isinstance(value, str) else value


def _is_default(column: str, columns: Mapping[str, Any]) -> bool:
    """Whether a parameter of a registered part has the value that it has when a user gives none."""
    part, _, parameter = column.partition(".")
    if part not in components.COMPONENTS or part not in columns:
        return False
    # An old study may name a part that is gone.
    known = components.defaults(part, str(columns[part])) or {}
    return parameter in known and bool(known[parameter] == columns[column])


def labels(settings: list[dict[str, Any]]) -> list[str]:
    """Short names such as ``spectral (k=4)`` that hold only what differs between the settings.

    Args:
        settings: the flat columns of each setting.

    Returns:
        One label a setting, all different.
    """
    shown = [_differing(columns, settings) for columns in settings]
    short = _short_names(key for keys in shown for key in keys)
    found = [_label(columns, keys, short) for columns, keys in zip(settings, shown, strict=True)]
    counts = Counter(found)
    return [f"{label} #{i}" if counts[label] > 1 else label for i, label in enumerate(found)]


def _differing(columns: dict[str, Any], settings: list[dict[str, Any]]) -> list[str]:
    """The columns that belong into the label of one setting."""
    keys = []
    for key in columns:
        part = key.partition(".")[0]
        # A parameter is compared with its own kind: the k of osgd and the k of spectral are different things.
        peers = settings if key == part else [other for other in settings if other.get(part) == columns.get(part)]
        same_kind = len(peers) == len(settings)
        values = {text_of(other[key]) if key in other else None for other in peers}
        if len(values) > 1 or (not same_kind and not _is_default(key, columns)):
            keys.append(key)
    return keys


def _short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last word of a dotted key, or all of it where that would be ambiguous."""
    distinct = dict.fromkeys(keys)
    counts = Counter(key.rpartition(".")[2] for key in distinct)
    return {key: key.rpartition(".")[2] if counts[key.rpartition(".")[2]] == 1 else key for key in distinct}


def _label(columns: dict[str, Any], keys: list[str], short: dict[str, str]) -> str:
    words = []
    rest = list(keys)
    for part in ("sampler", "objective"):
        inner = [key for key in rest if key.startswith(f"{part}.")]
        if part in rest or inner:
            details = ", ".join(f"{key.rpartition('.')[2]}={_in_label(columns[key])}" for key in inner)
            words.append(f"{columns[part]} ({details})" if details else str(columns[part]))
            rest = [key for key in rest if key != part and key not in inner]
    words += [f"{short[key]}={_in_label(columns[key])}" for key in rest]
    return ", ".join(words) or str(columns["sampler"])


def by_part(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Flat columns with the name of a block under the block's own key, and our names behind published ones.

    Example:
        >>> by_part({"sampler.name": "s", "sampler.k": 4})
        {'sampler': 'shuffle', 'sampler.k': 4}
    """
    own = {key.removesuffix(".name"): value for key, value in columns.items()}
    return {key: canonical(key, value) for key, value in own.items()}


def fits(columns: Mapping[str, Any], baseline: Mapping[str, Any]) -> bool:
    """Whether flat columns are what a baseline asks for; a block of it may name only some of its keys."""
    found = by_part(columns)
    return all(key in found and found[key] == wanted for key, wanted in by_part(flatten(baseline)).items())


def singled_out(settings: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any]) -> list[bool]:
    """Which settings are the baseline, by their flat columns.

    What no setting sweeps is the same for all of them and does not decide; a baseline that is every one of several
    settings singles none out.
    """
    swept = {key for columns in settings for key in by_part(columns)}
    wanted = {key: value for key, value in by_part(flatten(baseline)).items() if key in swept}
    found = [bool(wanted) and fits(columns, wanted) for columns in settings]
    return [False] * len(found) if len(found) > 1 and all(found) else found


def baselines(study: StudyRecord, settings: list[Setting]) -> list[Setting]:
    """The settings that are the study's baseline; see :func:`singled_out`."""
    found = singled_out([setting.columns for setting in settings], study.baseline)
    return [setting for setting, is_one in zip(settings, found, strict=True) if is_one]


def baseline_for(study: StudyRecord, setting: Setting, candidates: list[Setting]) -> Setting | None:
    """The baseline that a setting is compared with.

    Where several settings match (a sampler swept together with a batch size), it is the one that agrees in every swept
    key that the baseline does not name; the parameters of a part of another name need not. None if that does not single
    one out, or if the setting is a baseline itself.
    """
    if any(candidate.id == setting.id for candidate in candidates):
        return None
    if len(candidates) == 1:
        return candidates[0]
    named = set(by_part(flatten(study.baseline)))
    agreeing = [c for c in candidates if _agree(by_part(setting.columns), by_part(c.columns), named)]
    return agreeing[0] if len(agreeing) == 1 else None


def _agree(ours: Mapping[str, Any], theirs: Mapping[str, Any], named: set[str]) -> bool:
    """Whether two settings differ in nothing but what a baseline names."""
    # What other parts have for parameters cannot be the same.
    others = {part for part in {key.partition(".")[0] for key in named} if ours.get(part) != theirs.get(part)}
    compared = [key for key in {**ours, **theirs} if key not in named and key.partition(".")[0] not in others]
    return all(key in ours and key in theirs and ours[key] == theirs[key] for key in compared)
