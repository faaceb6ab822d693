"""Figures of gains over the baseline: against a key that the study sweeps, and against a metric of the batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from mbcl.report import pictures
from mbcl.report.answer import capped
from mbcl.report.pictures import (
    GRID,
    INK,
    MUTED,
    SERIES,
    Picture,
    Values,
    file_name,
    new_row,
    place_legend,
    render,
    shorten,
)
from mbcl.report.row_figures import limits
from mbcl.report.wording import listed, number
from mbcl.study.comparisons import EQUAL_PASSES, EQUAL_STEPS, Comparison
from mbcl.study.gains import MEASURED, KeyGains, gains_by_key, gains_by_metric
from mbcl.study.metric_glossary import direction
from mbcl.study.record import StudyRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG_RATIO = 8
"""Ratio of the largest value of a key to the least from which its axis is logarithmic."""
MAX_LINES = len(SERIES)
MAX_TICKS = 8
WIDTH, HEIGHT = 4.9, 3.2
"""Size of one panel in inches."""
PANELS_ACROSS = 3
MIN_DOTS = 3
"""Minimum number of settings from which gains are drawn against a metric of the batches."""
BASELINE = "baseline"
CONTROLS = {EQUAL_STEPS: "at equal epochs", EQUAL_PASSES: "at equal forward passes"}
_SHIFT = 0.014
"""Distance of points with the same value, as a share of the axis."""


class _Dot(NamedTuple):
    """A gain in a figure: the name of its study, of its series, and what it is drawn against."""

    study: str
    series: str
    x: float
    gain: Comparison


def draw_gains(study: StudyRecord) -> list[Picture]:
    """Draw the gains of a study against every key that it sweeps, and against the metrics of its batches."""
    return [*_all_by_key({"": study}), *_all_against({"": study})]


def draw_gains_of_several(studies: Mapping[str, StudyRecord]) -> list[Picture]:
    """Draw the gains of named studies: against a key with a panel a study, and otherwise with a colour a study."""
    return [*_all_by_key(studies), *_all_against(studies)]


def _all_by_key(studies: Mapping[str, StudyRecord]) -> list[Picture]:
    found = {name: {gains.key: gains for gains in gains_by_key(study)} for name, study in studies.items()}
    keys = dict.fromkeys(key for by_key in found.values() for key in by_key)
    return [
        _by_key(key, studies, {name: by_key[key] for name, by_key in found.items() if key in by_key}) for key in keys
    ]


def _by_key(key: str, studies: Mapping[str, StudyRecord], panels: Mapping[str, KeyGains]) -> Picture:
    """Draw the gains against a key, with a panel for each study that sweeps it."""
    sizes = Counter[str]()
    for gains in panels.values():
        for line in gains.lines:
            sizes[line.label] += len(line.points)
    most = {label for label, _ in sizes.most_common(MAX_LINES)}
    colours = dict(zip([label for label in sizes if label in most], SERIES, strict=False))
    panels = {name: gains for name, gains in panels.items() if any(line.label in most for line in gains.lines)}
    across = min(len(panels), PANELS_ACROSS)
    figure, row = new_row(WIDTH + 2.45 * (across - 1), HEIGHT, len(panels), across)
    dots: list[_Dot] = []
    at: list[tuple[Axes, float, float]] = []
    for axes, (name, gains) in zip(row, panels.items(), strict=True):
        lines = [line for line in gains.lines if line.label in colours]
        shift_of = _scale(axes, [value for line in lines for value, _ in line.points])
        for place, line in enumerate(lines):
            shown = [_Dot(name, line.label, value, gain) for value, gain in line.points]
            xs = [shift_of(dot.x, place - (len(lines) - 1) / 2) for dot in shown]
            at += _draw(axes, xs, shown, colours[line.label], joined=True)
            dots += shown
        axes.set_xlabel(key, color=INK)
        if len(studies) > 1:
            axes.set_title(shorten(name, 30), fontsize=9, color=INK)
        _zero(axes, [studies[name].equivalence])
    _finish(figure, row, dots, colours, joined=True)
    tied = sorted({other for gains in panels.values() for other in gains.tied})
    note = f" With {key} changes {listed(tied)}." if tied else ""
    if without := [label for gains in panels.values() for label in gains.without]:
        note += f" Not shown, as they have no number there: {listed(capped(list(dict.fromkeys(without))))}."
    if len(sizes) > len(colours):
        note += f" Shown: the {len(colours)} of {len(sizes)} groups of settings with most values."
    picture = _picture(
        figure,
        file_name("gain_by", key),
        f"Gain over the baseline by {key}",
        "A line joins settings that differ in this key alone." + note,
        key,
        dots,
        at,
        [studies[name] for name in panels],
    )
    return replace(picture, wide=len(panels) > 1)


def _all_against(studies: Mapping[str, StudyRecord]) -> list[Picture]:
    return [picture for metric in MEASURED if (picture := _against(metric, studies)) is not None]


def _against(metric: str, studies: Mapping[str, StudyRecord]) -> Picture | None:
    """Draw the gains against a metric of the batches, with a colour a group of settings, or a study if several."""
    found = {name: gains_by_metric(study, metric) for name, study in studies.items()}
    groups = _groups(studies[""]) if "" in studies else {}
    dots = [
        _Dot(name, name or groups[gain.setting], mean, gain)
        for name, gains in found.items()
        for mean, gain in gains.points
    ]
    if len({(dot.study, dot.gain.setting) for dot in dots}) < MIN_DOTS:
        return None
    series = list(dict.fromkeys(dot.series for dot in dots))
    colours = {name: SERIES[i % len(SERIES)] for i, name in enumerate(series)}
    figure, row = new_row(WIDTH, HEIGHT, 1)
    at = []
    for name, colour in colours.items():
        shown = [dot for dot in dots if dot.series == name]
        at += _draw(row[0], [dot.x for dot in shown], shown, colour, joined=False)
    dots = [dot for name in colours for dot in dots if dot.series == name]
    references = [(name, label, mean) for name, gains in found.items() for mean, label in gains.baselines]
    for name, _, mean in references:
        row[0].plot([mean], [0.0], "|", color=colours.get(name, MUTED), markersize=11, markeredgewidth=1.6)
        at.append((row[0], mean, 0.0))
    row[0].set_xlabel(metric, color=INK)
    _zero(row[0], [studies[name].equivalence for name in found if found[name].points])
    _finish(figure, row, dots, colours, joined=False)
    note = " A bar on the line of zero is a baseline." if references else ""
    note += " Lifts at different temperatures do not compare." if metric == "plan/lift" else ""
    return _picture(
        figure,
        file_name("gain_against", metric),
        f"Gain over the baseline against {metric}",
        f"A dot is one setting at its {metric} of the last epoch, the mean over the finished seeds.{note}",
        metric,
        dots,
        at,
        [studies[name] for name in found if found[name].points],
        references,
    )


def _groups(study: StudyRecord) -> dict[int, str]:
    """Return the group of every setting: that of the lines of the first swept key, otherwise its sampler."""
    samplers = {setting: trials[0].sampler for setting, trials in study.settings().items()}
    lines = [line for gains in gains_by_key(study)[:1] for line in gains.lines]
    by_line = {gain.setting: line.label for line in lines for _, gain in line.points}
    return samplers | by_line if len(set(by_line.values())) <= MAX_LINES else samplers


def _scale(axes: Axes, values: Sequence[float]) -> Callable[[float, float], float]:
    """Scale the axis for the values of a key and mark them; return a function that moves a value by so many places."""
    ticks = sorted(set(values))
    low, high = ticks[0], ticks[-1]
    logarithmic = low > 0 and high / low >= LOG_RATIO
    if logarithmic:
        pictures.log_scale(axes, "x")
    if len(ticks) <= MAX_TICKS:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    if logarithmic:
        return lambda value, places: value * (high / low) ** (_SHIFT * places)
    return lambda value, places: value + (high - low) * _SHIFT * places


def _draw(
    axes: Axes, xs: Sequence[float], dots: Sequence[_Dot], colour: str, *, joined: bool
) -> list[tuple[Axes, float, float]]:
    """Draw gains with their intervals and return their places."""
    at = []
    for x, dot in zip(xs, dots, strict=True):
        if (low := dot.gain.ci_low) is not None and (high := dot.gain.ci_high) is not None:
            axes.plot([x, x], [low, high], color=colour, linewidth=1.3, alpha=0.55)
        at.append((axes, x, _difference(dot.gain)))
    for control in CONTROLS:
        points = [(x, _difference(d.gain)) for x, d in zip(xs, dots, strict=True) if d.gain.control == control]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, **_style(control, joined=joined))
    return at


def _style(control: str, *, joined: bool) -> dict[str, Any]:
    style: dict[str, Any] = {"linestyle": "-" if joined else "", "marker": "o", "markersize": 5, "linewidth": 1.5}
    if control == EQUAL_PASSES:
        style |= {"linestyle": "--" if joined else "", "markerfacecolor": "none"}
    return style


def _difference(gain: Comparison) -> float:
    assert gain.difference is not None
    return gain.difference


def _zero(axes: Axes, margins: Iterable[float]) -> None:
    """Draw the line of no gain, and the band of gains that do not matter where all studies have the same."""
    if len(margin := set(margins)) == 1:
        axes.axhspan(-max(margin), max(margin), color=GRID, alpha=0.5, linewidth=0, zorder=0)
    axes.axhline(0, color=MUTED, linewidth=1, linestyle="--", zorder=1)


def _finish(
    figure: Figure, row: Sequence[Axes], dots: Sequence[_Dot], colours: Mapping[str, str], *, joined: bool
) -> None:
    """Set the common limits and the legend."""
    from matplotlib.lines import Line2D

    gains = [dot.gain for dot in dots]
    row[0].set_ylim(*limits([0.0, *(each for gain in gains for each in gain.differences)], gains))
    for axes in row:
        axes.margins(x=0.07)
    metrics = {gain.metric for gain in gains}
    row[0].set_ylabel(f"{metrics.pop() + ', ' if len(metrics) == 1 else ''}setting minus baseline", color=INK)
    entries = [(shorten(name), colour, EQUAL_STEPS) for name, colour in colours.items()]
    if any(gain.control == EQUAL_PASSES for gain in gains):
        entries += [(text, MUTED, control) for control, text in CONTROLS.items()]
    names = [name for name, *_ in entries]
    handles = [Line2D([], [], color=colour, **_style(control, joined=joined)) for _, colour, control in entries]
    columns = 2 if max(map(len, names)) <= 26 else 1
    figure.set_figheight(figure.get_figheight() + 0.16 * (len(names) // columns))
    place_legend(figure, handles, names, columns, handle_length=2.4)


def _picture(
    figure: Figure,
    name: str,
    title: str,
    caption: str,
    against: str,
    dots: Sequence[_Dot],
    at: Sequence[tuple[Axes, float, float]],
    studies: Sequence[StudyRecord],
    references: Sequence[tuple[str, str, float]] = (),
) -> Picture:
    rows: list[tuple[Any, ...]] = [
        (d.study, d.gain.label, d.gain.control, d.x, d.gain.difference, d.gain.ci_low, d.gain.ci_high, d.gain.n)
        for d in dots
    ]
    rows += [(study, label, BASELINE, mean, 0.0, None, None, None) for study, label, mean in references]
    columns = ("study", "setting", "control", against, "difference", "ci_low", "ci_high", "pairs")
    skipped = 0 if any(dot.study for dot in dots) else 1
    metrics = list(dict.fromkeys(dot.gain.metric for dot in dots))
    margins = {study.equivalence for study in studies}
    controls = {dot.gain.control for dot in dots}
    these = "this study" if len(studies) == 1 else "these studies"
    parts = [
        f"{listed(metrics)}: paired difference from the setting's own baseline with its 95 % interval"
        + (", filled at equal epochs, hollow at equal forward passes." if EQUAL_PASSES in controls else "."),
        caption,
    ]
    if lower := [metric for metric in metrics if direction(metric) < 0]:
        parts.append(f"Lower is better for {listed(lower)}.")
    if len(margins) == 1:
        parts.append(f"Grey band: differences up to {max(margins):g}, which do not matter in {these}.")
    if any(dot.gain.ci_low is None for dot in dots):
        parts.append("Without an interval: one pair of seeds, or seeds that diverged.")
    return render(
        figure,
        name,
        title=title,
        caption=" ".join(parts),
        alt=f"{title}. " + "; ".join(_in_words(against, dot) for dot in dots),
        values=Values(columns[skipped:], [row[skipped:] for row in rows], at),
    )


def _in_words(against: str, dot: _Dot) -> str:
    where = f"{dot.study}, " if dot.study else ""
    return f"{where}{dot.gain.title}, {against} {dot.x:g}: {number(dot.gain.difference, signed=True)}"
