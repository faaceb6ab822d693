"""Gains over the baseline in relation to a key that the study sweeps, or to a metric of the batches.

A gain is the paired difference on the headline metric, a :class:`~mbcl.study.comparisons.Comparison`. Those that a
search has chosen are no gains: its settings lie where results have led it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mbcl.study.comparisons import EQUAL_STEPS, Comparison, compare
from mbcl.study.record import StudyRecord
from mbcl.study.settings import Setting, baselines, labels, measured_settings
from mbcl.study.statistics import primary_metrics

MIN_VALUES = 3
"""Minimum number of values of a key from which gains are related to it."""
MEASURED = ("train/same_class", "plan/lift")
"""Metrics of the batches that gains are related to."""


@dataclass(frozen=True)
class GainLine:
    """Gains with one control of settings that differ in a key alone, in ascending order of its values."""

    label: str
    control: str
    points: tuple[tuple[float, Comparison], ...]


@dataclass(frozen=True)
class KeyGains:
    """The gains of a study by the values of a key.

    ``tied`` are keys that change with it in lockstep, ``without`` the settings that have the key but no number.
    """

    key: str
    tied: tuple[str, ...]
    lines: tuple[GainLine, ...]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeasuredGains:
    """The gains of a study by the mean of a metric over the finished seeds of each setting.

    ``baselines`` has the means of the baseline settings themselves.
    """

    metric: str
    points: tuple[tuple[float, Comparison], ...]
    baselines: tuple[tuple[float, str], ...]


def gains_of(study: StudyRecord) -> list[Comparison]:
    """Return the paired differences on the headline metric, with either control."""
    metric = next(iter(primary_metrics(study)), "")
    return [c for c in compare(study, metric) if c.n and not c.chosen_by] if metric else []


def gains_by_key(study: StudyRecord) -> list[KeyGains]:
    """Relate the gains to every numeric key that has at least :data:`MIN_VALUES` values in settings alike in all else.

    Keys that change in lockstep with it, such as tied ones, do not tell settings apart. Of several such keys the one
    that most settings have, baselines included, stands for all.
    """
    gains = gains_of(study)
    compared = {c.setting for c in gains}
    all_settings = measured_settings(study)
    settings = [s for s in all_settings if s.id in compared]
    references = [setting.columns for setting in baselines(study, all_settings)]
    keys = dict.fromkeys(key for setting in settings for key in setting.columns)
    having = {key: [s for s in settings if _is_number(s.columns.get(key))] for key in keys}
    found: list[KeyGains] = []
    known: set[frozenset[int]] = set()
    for key in sorted(keys, key=lambda key: -sum(key in setting.columns for setting in all_settings)):
        tied = _in_lockstep(key, having[key])
        groups: dict[str, list[Setting]] = {}
        for setting in having[key]:
            groups.setdefault(repr(_rest(setting.columns, key, tied)), []).append(setting)
        parts = {frozenset(s.id for s in group) for group in groups.values() if len(group) > 1}
        values = [len({s.columns[key] for s in group}) for group in groups.values()]
        if max(values, default=0) < MIN_VALUES or parts <= known:
            continue
        known |= parts
        lines = _lines(key, tied, list(groups.values()), references, gains)
        without = tuple(s.label for s in settings if key in s.columns and s not in having[key])
        found.append(KeyGains(key, tuple(dict.fromkeys(other for other, _ in sorted(tied))), tuple(lines), without))
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(key: str, columns: Mapping[str, Any]) -> tuple[str, str]:
    """Return a key and the component that it is a parameter of: the k of osgd is not the k of spectral."""
    part = key.partition(".")[0]
    return key, "" if part == key else repr(columns.get(part))


def _in_lockstep(key: str, settings: Sequence[Setting]) -> set[tuple[str, str]]:
    """Return the other keys of which each value goes with one value of this key, and the reverse."""
    pairs: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for setting in settings:
        for other, value in setting.columns.items():
            if other != key:
                kind = _kind(other, setting.columns)
                pairs.setdefault(kind, set()).add((repr(setting.columns[key]), repr(value)))
    return {
        kind
        for kind, found in pairs.items()
        if len(found) > 1 and len(found) == len({own for own, _ in found}) == len({other for _, other in found})
    }


def _rest(columns: Mapping[str, Any], key: str, tied: set[tuple[str, str]]) -> dict[str, Any]:
    return {other: value for other, value in columns.items() if other != key and _kind(other, columns) not in tied}


def _lines(
    key: str,
    tied: set[tuple[str, str]],
    groups: Sequence[Sequence[Setting]],
    references: Sequence[Mapping[str, Any]],
    gains: Sequence[Comparison],
) -> list[GainLine]:
    """Return a line for each group and control, named by what tells the groups from each other and the baselines."""
    rests = [_rest(group[0].columns, key, tied) for group in groups]
    # With the baselines beside them the names are those of the tables: `refined (pool=128)`.
    others = [rest for columns in references if (rest := _rest(columns, key, tied)) not in rests]
    names = labels([*rests, *{repr(other): other for other in others}.values()])
    lines = []
    for group, name in zip(groups, names, strict=False):
        value_of = {setting.id: setting.columns[key] for setting in group}
        for control in dict.fromkeys(c.control for c in gains):
            points = [(float(value_of[c.setting]), c) for c in gains if c.setting in value_of and c.control == control]
            if points:
                lines.append(GainLine(name, control, tuple(sorted(points, key=lambda point: point[0]))))
    return lines


def gains_by_metric(study: StudyRecord, metric: str) -> MeasuredGains:
    """Relate the gains to the mean of a final metric over the finished seeds of each setting."""
    settings = measured_settings(study)
    means = {s.id: statistics.fmean(values) for s in settings if (values := s.values_of(metric))}
    points = tuple((means[c.setting], c) for c in gains_of(study) if c.setting in means)
    compared = {c.baseline for _, c in points if c.control == EQUAL_STEPS}
    references = tuple((means[s.id], s.label) for s in settings if s.id in compared and s.id in means)
    return MeasuredGains(metric, points, references)
