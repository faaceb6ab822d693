"""The settings of a study: their swept keys as flat columns, their labels, and which of them is the baseline."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mbcl.config import components
from mbcl.study.record import Stage, StudyRecord, TrialRecord

FIXED_COLUMNS = ("trial_id", "status", "error", "sampler", "objective", "seed")
"""The first columns of ``results.csv``. A swept key of the same name adds no second column."""

MAX_DIGITS = 8
"""A float with more characters was drawn, not typed, and is rounded in labels."""


@dataclass(frozen=True)
class Setting:
    """A group of trials that differ only in their seed."""

    id: int
    label: str
    columns: dict[str, Any]
    """``sampler`` and ``objective``, then the flattened swept keys: ``{"sampler": "spectral", "sampler.k": 4}``."""
    trials: tuple[TrialRecord, ...]
    arm_label: str = ""
    """The label without nuisance values."""

    @property
    def stage(self) -> Stage:
        """Whether its trials choose nuisance values, or measure chosen ones; see :mod:`mbcl.study.nuisance`."""
        return next((trial.stage for trial in self.trials), "")

    @property
    def is_control(self) -> bool:
        """Whether it was added as the control of other settings."""
        return any(trial.is_control for trial in self.trials)

    @property
    def equal_passes(self) -> int | None:
        """Number of the setting that is its control of equal forward passes; None without one."""
        return next((trial.equal_passes for trial in self.trials), None)

    @property
    def finished(self) -> list[TrialRecord]:
        """The finished seeds."""
        return [trial for trial in self.trials if trial.status == "finished"]

    def values_of(self, metric: str) -> list[float]:
        """Return the finite values of a final metric over the finished seeds."""
        return [value for trial in self.finished if (value := trial.value_of(metric)) is not None]


def flatten(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested blocks to a mapping of dotted keys to plain values.

    The name of a block takes the block's own key: ``sampler: {name: spectral, k: 4}`` becomes ``sampler`` and
    ``sampler.k``. A table can then be filtered by ``sampler``, whether or not a sweep gave it as a block.

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
    """Format a value as the space file writes it; floats in full, so that they read back exactly."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _in_label(value: Any) -> str:
    """Format a value for a label; a drawn float gets four significant digits, the tables show all."""
    text = text_of(value)
    return f"{value:.4g}" if isinstance(value, float) and len(text) > MAX_DIGITS else text


def swept_columns(study: StudyRecord) -> list[str]:
    """Return the flattened swept keys of all trials in first-seen order, the keys of one block side by side.

    The fixed columns, such as ``sampler``, ``objective`` and ``seed``, are not repeated.
    """
    blocks: dict[str, dict[str, None]] = {}
    for trial in study.ordered().values():
        for key, value in (trial.parameters | trial.nuisance).items():
            blocks.setdefault(key, {}).update(dict.fromkeys(flatten({key: value})))
    columns = dict.fromkeys(column for block in blocks.values() for column in block)
    return [column for column in columns if column not in FIXED_COLUMNS]


def settings_of(study: StudyRecord) -> list[Setting]:
    """Return the settings in the order of the study, with labels that name their differences.

    In a study with nuisance keys the labels and columns of a setting are those of its arm, without its nuisance values:
    ``spectral (k=4)`` is the setting that measures the chosen values, ``tuning spectral (k=4), temperature=0.2`` one of
    its candidates.
    """
    groups = study.settings()
    columns = {n: columns_of(first.sampler, first.objective, first.parameters) for n, (first, *_) in groups.items()}
    arms: dict[int | str, list[int]] = {}
    for number, (first, *_) in groups.items():
        arms.setdefault(f"setting {number}" if first.arm is None else first.arm, []).append(number)
    flat = [shared_columns([columns[number] for number in arm]) for arm in arms.values()]
    by_setting = {
        n: (label, own) for arm, label, own in zip(arms.values(), labels(flat), flat, strict=True) for n in arm
    }
    return [
        Setting(number, _label_of_stage(study, label, trials[0]), own, tuple(trials), label)
        for number, trials in groups.items()
        for label, own in [by_setting[number]]
    ]


def shared_columns(candidates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the columns that all candidates of an arm share; a key in a block may be tied to a nuisance key."""
    first, *others = candidates
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def measured_settings(study: StudyRecord) -> list[Setting]:
    """Return the settings that the study measures: all but those that only choose nuisance values."""
    return [setting for setting in settings_of(study) if setting.stage != "tuning"]


def _label_of_stage(study: StudyRecord, label: str, trial: TrialRecord) -> str:
    return f"tuning {label}, {nuisance_text(study, trial)}" if trial.stage == "tuning" else label


def nuisance_text(study: StudyRecord, trial: TrialRecord) -> str:
    """Format a trial's nuisance values, without keys that are tied to others: ``temperature=0.2, lr=0.1``."""
    keys = [key for key in study.nuisance if key in trial.nuisance]
    return ", ".join(_key_values(trial.nuisance, keys, _short_names(study.nuisance)))


def columns_of(sampler: str, objective: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat columns of a setting with these swept keys."""
    fixed = {"sampler": sampler, "objective": objective}
    return fixed | {key: value for key, value in flatten(parameters).items() if key not in FIXED_COLUMNS}


def canonical(column: str, value: Any) -> Any:
    """Return the canonical name of a published alias, and any other value unchanged."""
    return components.canonical(column, value) if column in components.COMPONENTS and isinstance(value, str) else value


def _is_default(column: str, columns: Mapping[str, Any]) -> bool:
    """Return whether a parameter of a registered component has its default value."""
    part, _, parameter = column.partition(".")
    if part not in components.COMPONENTS or part not in columns:
        return False
    # An old study may name a component that no longer exists.
    default_values = components.defaults(part, str(columns[part])) or {}
    return parameter in default_values and bool(default_values[parameter] == columns[column])


def labels(settings: list[dict[str, Any]]) -> list[str]:
    """Build short labels such as ``spectral (k=4)`` that contain only the differences between settings.

    They are built from the flat columns of each setting and are unique.
    """
    varied: dict[tuple[str, str], tuple[bool, bool]] = {}
    shown = [_differing(columns, settings, varied) for columns in settings]
    mappings = {_owner(key) for keys in shown for key in keys if _owner(key) != key}
    shown = [  # a mapping whose entries differ is shown whole
        [key for key in columns if key in keys or _owner(key) in mappings]
        for columns, keys in zip(settings, shown, strict=True)
    ]
    short = _short_names(key for keys in shown for key in keys)
    names = [_label(columns, keys, short) for columns, keys in zip(settings, shown, strict=True)]
    counts = Counter(names)
    return [f"{label} #{i}" if counts[label] > 1 else label for i, label in enumerate(names)]


def _differing(
    columns: dict[str, Any], settings: list[dict[str, Any]], varied: dict[tuple[str, str], tuple[bool, bool]]
) -> list[str]:
    """Return the columns that belong in the label of one setting.

    ``varied`` has, by a key and the component that it is of, whether its values differ and whether all settings have
    this component; it is filled here, as settings share it.
    """
    keys = []
    for key in columns:
        part = key.partition(".")[0]
        kind = (key, "" if key == part else repr(columns.get(part)))
        if kind not in varied:
            # Compare a parameter only among settings of the same component: the k of osgd is not the k of spectral.
            peers = settings if key == part else [other for other in settings if other.get(part) == columns.get(part)]
            values = {text_of(other[key]) if key in other else None for other in peers}
            varied[kind] = len(values) > 1, len(peers) == len(settings)
        differs, same_kind = varied[kind]
        if differs or (not same_kind and not _is_default(key, columns)):
            keys.append(key)
    return keys


def _short_names(keys: Iterable[str]) -> dict[str, str]:
    """Map each dotted key to its last word, or to itself where the last word is ambiguous.

    Of a mapping by epoch, such as ``planner.schedule.pool.3``, the name is that of the mapping, ``pool``.
    """
    last_words = {key: key.rpartition(".")[2] for key in map(_owner, keys)}
    counts = Counter(last_words.values())
    return {key: word if counts[word] == 1 else key for key, word in last_words.items()}


def _owner(key: str) -> str:
    """Return a key itself, or of an entry of a mapping by epoch, whose last word is a number, that of the mapping."""
    mapping, _, word = key.rpartition(".")
    return mapping if word.isdecimal() else key


def _label(columns: dict[str, Any], keys: list[str], short: dict[str, str]) -> str:
    fragments = []
    rest = list(keys)
    for part in ("sampler", "objective"):
        inner = [key for key in rest if key.startswith(f"{part}.")]
        if part in rest or inner:
            details = ", ".join(f"{key.rpartition('.')[2]}={_in_label(columns[key])}" for key in inner)
            fragments.append(f"{columns[part]} ({details})" if details else str(columns[part]))
            rest = [key for key in rest if key != part and key not in inner]
    fragments += _key_values(columns, rest, short)
    return ", ".join(fragments) or str(columns["sampler"])


def _key_values(columns: Mapping[str, Any], keys: Iterable[str], short: Mapping[str, str]) -> list[str]:
    """Format keys with their values, the entries of a mapping by epoch together: ``pool={0: 256, 3: 32}``."""
    values: dict[str, list[str]] = {}
    for key in keys:
        text = _in_label(columns[key])
        values.setdefault(_owner(key), []).append(text if _owner(key) == key else f"{key.rpartition('.')[2]}: {text}")
    return [
        f"{short[key]}={texts[0]}" if key in columns else f"{short[key]}={{{', '.join(texts)}}}"
        for key, texts in values.items()
    ]


def by_part(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Normalise flat columns: ``KEY.name`` becomes ``KEY``, and published names become canonical ones.

    Example:
        >>> by_part({"sampler.name": "s", "sampler.k": 4})
        {'sampler': 'shuffle', 'sampler.k': 4}
    """
    renamed = {key.removesuffix(".name"): value for key, value in columns.items()}
    return {key: canonical(key, value) for key, value in renamed.items()}


def fits(columns: Mapping[str, Any], baseline: Mapping[str, Any]) -> bool:
    """Return whether flat columns match a baseline, which may name only some keys of a block."""
    normalised = by_part(columns)
    return all(key in normalised and normalised[key] == value for key, value in by_part(flatten(baseline)).items())


def singled_out(settings: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any]) -> list[bool]:
    """Mark the settings that match the baseline, by their flat columns.

    Keys of the baseline that are not swept are equal in all settings and are ignored. If all of several settings match,
    the baseline singles none out, and no setting is marked.
    """
    swept = {key for columns in settings for key in by_part(columns)}
    required = {key: value for key, value in by_part(flatten(baseline)).items() if key in swept}
    matches = [bool(required) and fits(columns, required) for columns in settings]
    return [False] * len(matches) if len(matches) > 1 and all(matches) else matches


def baselines(study: StudyRecord, settings: list[Setting]) -> list[Setting]:
    """Return the settings that match the study's baseline; see :func:`singled_out`.

    Controls and settings that only choose nuisance values are none of them.
    """
    settings = [setting for setting in settings if not setting.is_control and setting.stage != "tuning"]
    matches = singled_out([setting.columns for setting in settings], study.baseline)
    return [setting for setting, is_match in zip(settings, matches, strict=True) if is_match]


def baseline_for(baseline: Mapping[str, Any], setting: Setting, candidates: Sequence[Setting]) -> Setting | None:
    """Return the baseline setting that a setting is compared with.

    If several settings match the baseline (a sampler swept together with a batch size), the counterpart is the one
    that agrees in every swept key that the baseline does not name. Parameters of a component with another name, such as
    those of another sampler, are not compared.

    Returns:
        None if there is not exactly one counterpart, or if the setting is a baseline itself.
    """
    if any(candidate.id == setting.id for candidate in candidates):
        return None
    if len(candidates) == 1:
        return candidates[0]
    baseline_keys = set(by_part(flatten(baseline)))
    agreeing = [c for c in candidates if _agree(by_part(setting.columns), by_part(c.columns), baseline_keys)]
    return agreeing[0] if len(agreeing) == 1 else None


def _agree(ours: Mapping[str, Any], theirs: Mapping[str, Any], baseline_keys: set[str]) -> bool:
    """Return whether two settings agree in every key that the baseline does not name."""
    # Components with different names have different parameters, so these cannot agree and are left out.
    others = {part for part in {key.partition(".")[0] for key in baseline_keys} if ours.get(part) != theirs.get(part)}
    compared = [key for key in {**ours, **theirs} if key not in baseline_keys and key.partition(".")[0] not in others]
    return all(key in ours and key in theirs and ours[key] == theirs[key] for key in compared)
