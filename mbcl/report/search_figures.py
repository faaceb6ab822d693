"""Figures of a search: all its settings as parallel coordinates, and which key mattered."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mbcl.report import pictures
from mbcl.report.pictures import INK, MUTED, SERIES, Picture, Values, new_axes, render, shorten
from mbcl.report.wording import number
from mbcl.study.record import StudyRecord
from mbcl.study.settings import Setting, measured_settings, text_of

MIN_SETTINGS = 8
"""Minimum number of settings from which importances are estimated."""
MAX_LINES = 400
MAX_AXES = 8
LOG_RATIO = 20
"""Ratio of the largest value of a key to the least from which its axis is logarithmic."""
ABSENT = -0.12
"""Where a line crosses the axis of a key that its setting does not have."""


def draw_search(study: StudyRecord) -> list[Picture]:
    """Draw the settings of a study whose values were drawn; empty for other studies."""
    if not study.is_search:
        return []
    measured = [
        (s, statistics.fmean(values)) for s in measured_settings(study) if (values := s.values_of(study.metric))
    ]
    sign = 1 if study.mode == "max" else -1
    ranked = sorted(measured, key=lambda pair: sign * pair[1])[-MAX_LINES:]
    keys = _varied([setting for setting, _ in ranked])
    if len(measured) < 2 or not keys:
        return []
    drawn = [_parallel(study, ranked, keys, len(measured))]
    if len(measured) >= MIN_SETTINGS:
        drawn += _importances(study, measured)
    return drawn


def _varied(settings: Sequence[Setting]) -> list[str]:
    """Return the keys of which these settings have several values, absence among them."""
    keys = dict.fromkeys(key for setting in settings for key in setting.columns)
    return [key for key in keys if len({repr(setting.columns.get(key)) for setting in settings}) > 1]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Scale:
    """The axis of a key: where a value lies on it, from 0 to 1, and the texts of its ends or categories."""

    def __init__(self, values: Sequence[Any]) -> None:
        present = [value for value in values if value is not None]
        self.ticks: dict[float, str] = {}
        self._log = False
        if all(map(_is_number, present)):
            self._low, self._high = min(present), max(present)
            self._log = self._low > 0 and self._high / self._low >= LOG_RATIO
            self._places: dict[str, float] | None = None
            self.ticks = {self.place(end): f"{end:.3g}" for end in (self._low, self._high)}
        else:
            names = sorted({text_of(value) for value in present})
            self._places = {name: index / max(1, len(names) - 1) for index, name in enumerate(names)}
            self.ticks = {place: name for name, place in self._places.items()}

    def place(self, value: Any) -> float:
        """Return where a value lies."""
        if value is None:
            return ABSENT
        if self._places is not None:
            return self._places[text_of(value)]
        low, high, at = (math.log(v) if self._log else v for v in (self._low, self._high, value))
        return 0.5 if high == low else (at - low) / (high - low)


def _parallel(study: StudyRecord, ranked: Sequence[tuple[Setting, float]], keys: Sequence[str], total: int) -> Picture:
    """Draw a line for each of the best settings of ``total`` through its values, the best ones on top and in colour.

    The keys are those that these settings vary: no axis is without a value.
    """
    from matplotlib import colormaps

    keys = keys[:MAX_AXES]
    scales = {key: _Scale([setting.columns.get(key) for setting, _ in ranked]) for key in keys}
    results = _Scale([value for _, value in ranked])
    names = [*keys, study.metric]
    figure, axes = new_axes(max(4.9, 1.15 * len(names)), 3.4)
    rows, at = [], []
    for rank, (setting, value) in enumerate(ranked):
        places = [*(scales[key].place(setting.columns.get(key)) for key in keys), results.place(value)]
        share = rank / max(1, len(ranked) - 1)
        colour = colormaps["viridis"](share)
        axes.plot(range(len(names)), places, color=colour, linewidth=0.8 + share, alpha=0.35 + 0.6 * share)
        rows.append((setting.label, *(setting.columns.get(key) for key in keys), value))
        at.append((axes, len(names) - 1.0, places[-1]))
    for column, scale in enumerate((*scales.values(), results)):
        axes.axvline(column, color=MUTED, linewidth=1)
        for place, text in scale.ticks.items():
            axes.text(column + 0.04, place, shorten(text, 14), color=INK, fontsize=8, va="center")
    if any(place == ABSENT for line in axes.lines for place in line.get_ydata()):  # type: ignore[union-attr]
        axes.text(0.04, ABSENT, "not there", color=MUTED, fontsize=8, va="center")
    axes.set_xticks(range(len(names)), [shorten(name, 20) for name in names], rotation=18, ha="right")
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    best, result = ranked[-1]
    return render(
        figure,
        "parallel",
        title="Settings of the search",
        caption=f"A line is a setting, drawn through its values to its mean {study.metric}; the best are bright and on "
        "top. Axes of numbers are logarithmic where they span much."
        + (f" Shown are the best {MAX_LINES} of {total}." if total > MAX_LINES else ""),
        alt=f"Parallel coordinates of {len(ranked)} settings; the best is {best.label} with {number(result)}",
        values=Values(("setting", *keys, study.metric), rows, at),
    )


def _importances(study: StudyRecord, measured: Sequence[tuple[Setting, float]]) -> list[Picture]:
    """Draw the importances of the keys, of all settings together or, where their keys differ, of each sampler's."""
    groups: dict[str, list[tuple[Setting, float]]] = {}
    for setting, value in measured:
        groups.setdefault(str(setting.columns["sampler"]), []).append((setting, value))
    groups = {f" ({sampler})": group for sampler, group in groups.items() if len(group) >= MIN_SETTINGS}
    parts = {"": measured} | (groups if len(groups) > 1 or len(next(iter(groups.values()), ())) < len(measured) else {})
    found = {key + suffix: value for suffix, part in parts.items() for key, value in importances(part).items()}
    if not found:
        return []
    figure, axes = new_axes(4.9, 0.75 + 0.42 * len(found))
    axes.barh(range(len(found)), list(found.values()), height=0.3, color=SERIES[0])
    pictures.name_rows(axes, list(found))
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the variance that the key explains", color=INK)
    several = " Rows with a sampler in parentheses are of its settings alone." if len(parts) > 1 else ""
    return [
        render(
            figure,
            "importances",
            title=f"Which key mattered for {study.metric}",
            caption="fANOVA (Hutter et al. 2014), as Optuna computes it: the share of the variance of the settings' "
            "means that a key explains, by a random forest. It is of the ranges that were searched, and rough with few "
            f"settings ({len(measured)} here).{several}",
            alt="Importances: " + ", ".join(f"{key} {value:.2f}" for key, value in found.items()),
            values=Values(
                ("key", "importance"), list(found.items()), [(axes, v, i) for i, v in enumerate(found.values())]
            ),
        )
    ]


def importances(measured: Sequence[tuple[Setting, float]]) -> dict[str, float]:
    """Return Optuna's fANOVA importances of the keys that all settings have, the largest first.

    Returns:
        Nothing if no such key varies, if all settings are equally good, or if Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        return {}
    settings = [setting for setting, _ in measured]
    keys = [key for key in _varied(settings) if all(setting.columns.get(key) is not None for setting in settings)]
    if not keys or len({value for _, value in measured}) < 2:
        return {}
    columns: dict[str, list[Any]] = {key: [setting.columns[key] for setting in settings] for key in keys}
    distributions = {key: _distribution(values) for key, values in columns.items()}
    with _quiet(optuna):
        study = optuna.create_study()
        for index, (_, value) in enumerate(measured):
            params = {
                key: values[index] if all(map(_is_number, values)) else text_of(values[index])
                for key, values in columns.items()
            }
            study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=value))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _distribution(values: Sequence[Any]) -> Any:
    """Return the distribution of Optuna that spans some values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not all(map(_is_number, values)):
        return CategoricalDistribution(sorted({text_of(value) for value in values}))
    low, high = float(min(values)), float(max(values))
    return FloatDistribution(low, high, log=low > 0 and high / low >= LOG_RATIO)


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Silence Optuna's messages during the block."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
