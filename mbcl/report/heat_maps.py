"""Figures of values over two keys: a grid of numeric keys, and retrieval by corruption and severity."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mbcl.report import pictures
from mbcl.report.pictures import GRID, INK, MUTED, Picture, Values, new_axes, render, shorten
from mbcl.report.wording import number
from mbcl.study.record import StudyRecord
from mbcl.study.settings import Setting, measured_settings, text_of
from mbcl.study.statistics import final_metrics, primary_metrics

MAX_PANELS = 6
MAX_TEXTS = 10
"""Maximum number of columns of a panel whose cells have their values written in them."""
MIN_FILLED = 0.5
"""Minimum share of the cells of a grid that have a value: draws of a search are no grid."""
_CORRUPTED = re.compile(r"corrupted/clean/(.+)/(\d)/top1")


@dataclass(frozen=True)
class Panel:
    """One map: a name, and values by row and column."""

    name: str
    cells: Mapping[tuple[Any, Any], float]


def draw_grid(study: StudyRecord) -> list[Picture]:
    """Draw a map for each sampler whose settings are a grid of two or more numeric keys; a third one makes panels."""
    metric = next(iter(primary_metrics(study)), "")
    groups: dict[str, list[Setting]] = {}
    for setting in measured_settings(study):
        if not setting.is_control:
            groups.setdefault(str(setting.columns["sampler"]), []).append(setting)
    found = (_grid_of(sampler, settings, metric) for sampler, settings in groups.items())
    return [picture for picture in found if picture is not None]


def _grid_of(sampler: str, settings: Sequence[Setting], metric: str) -> Picture | None:
    keys = sorted(_numeric_keys(settings), key=lambda key: -len({setting.columns[key] for setting in settings}))[:3]
    if len(keys) < 2:
        return None
    (x, y), third = keys[:2], keys[2:]
    cells: dict[str, dict[tuple[Any, Any], list[float]]] = {}
    for setting in settings:
        name = f"{third[0]} = {text_of(setting.columns[third[0]])}" if third else sampler
        values = setting.values_of(metric)
        cells.setdefault(name, {}).setdefault((setting.columns[y], setting.columns[x]), []).extend(values)
    panels = [
        Panel(name, {at: statistics.fmean(values) for at, values in by_cell.items() if values})
        for name, by_cell in cells.items()
    ]
    size = len({setting.columns[x] for setting in settings}) * len({setting.columns[y] for setting in settings})
    if sum(len(panel.cells) for panel in panels) < MIN_FILLED * size * len(panels):
        return None
    rest = sorted(set(_numeric_keys(settings)) - set(keys))
    over = f" and over {', '.join(rest)}" if rest else ""
    return _draw(
        "grid_" + re.sub(r"\W", "_", sampler),
        panels[:MAX_PANELS],
        keys=(x, y),
        measure=metric,
        title=f"{metric} of {sampler} by {', '.join(keys)}",
        caption=f"Mean over the finished seeds{over}." + _left_out(len(panels), "values of " + "".join(third)),
    )


def _left_out(count: int, what: str) -> str:
    return f" Shown are {MAX_PANELS} of {count} {what}." if count > MAX_PANELS else ""


def _numeric_keys(settings: Sequence[Setting]) -> list[str]:
    """Return the keys that have several values in these settings, all of them numbers."""
    keys = dict.fromkeys(key for setting in settings for key in setting.columns)
    found = []
    for key in keys:
        values = [setting.columns.get(key) for setting in settings]
        if len(set(map(repr, values))) > 1 and all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in values
        ):
            found.append(key)
    return found


def draw_corruptions(study: StudyRecord, settings: Sequence[Setting]) -> list[Picture]:
    """Draw retrieval of the clean image by severity, and for each setting also by corruption."""
    metrics = [metric for metric in final_metrics(study) if _CORRUPTED.fullmatch(metric)]
    panels = []
    means: dict[str, dict[int, list[float]]] = {}
    for setting in settings:
        cells = {}
        for metric in metrics:
            kind, severity = _kind_of(metric)
            values = setting.values_of(metric)
            if values and kind == "mean":
                means.setdefault(setting.label, {})[severity] = values
            elif values:
                cells[kind, severity] = statistics.fmean(values)
        if cells:
            panels.append(Panel(setting.label, cells))
    drawn = [_by_severity(means)] if means else []
    if panels:
        drawn.append(
            _draw(
                "corrupted",
                panels[:MAX_PANELS],
                keys=("severity", "corruption"),
                measure="R@1",
                title="Retrieval of the clean image by corruption and severity",
                caption="Share of corrupted images whose own original is nearest of all; mean over the finished seeds."
                + _left_out(len(panels), "settings"),
            )
        )
    return drawn


def _kind_of(metric: str) -> tuple[str, int]:
    match = _CORRUPTED.fullmatch(metric)
    assert match is not None
    return match[1], int(match[2])


def _by_severity(means: Mapping[str, Mapping[int, list[float]]]) -> Picture:
    """Draw the mean over the corruptions by severity, with the range of the seeds."""
    figure, axes = new_axes(4.7, 2.9 + 0.16 * len(means))
    rows: list[tuple[Any, ...]] = []
    at = []
    for index, (label, by_severity) in enumerate(means.items()):
        severities = sorted(by_severity)
        mean, low, high = ([f(by_severity[s]) for s in severities] for f in (statistics.fmean, min, max))
        pictures.draw_curve(axes, index, label, severities, mean, (low, high))
        rows += [(label, *values) for values in zip(severities, mean, low, high, strict=True)]
        at += [(axes, float(x), y) for x, y in zip(severities, mean, strict=True)]
    axes.set_xticks(sorted({severity for by_severity in means.values() for severity in by_severity}))
    axes.set_xlabel("severity", color=INK)
    axes.set_ylabel("R@1 of the clean image", color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    pictures.add_legend(figure, axes, 1)
    return render(
        figure,
        "corrupted_by_severity",
        title="Retrieval of the clean image by severity",
        caption="Mean over the corruptions and the seeds; the band reaches from the lowest to the highest seed.",
        alt="Mean over the corruptions by severity. "
        + "; ".join(f"{label} at {severity}: {number(mean)}" for label, severity, mean, *_ in rows),
        values=Values(("setting", "severity", "mean", "low", "high"), rows, at),
    )


def _draw(
    name: str, panels: Sequence[Panel], *, keys: tuple[str, str], measure: str, title: str, caption: str
) -> Picture:
    """Draw maps of common scale, two beside each other."""
    from matplotlib.figure import Figure

    columns, lines = (list(dict.fromkeys(at[i] for panel in panels for at in panel.cells)) for i in (1, 0))
    columns = sorted(columns)
    numeric = all(isinstance(line, int | float) for line in lines)
    digits = 3 if len(columns) * min(2, len(panels)) <= 6 else 2
    lines = sorted(lines) if numeric else lines
    across = min(2, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(4.9, 0.9 + down * (0.55 + 0.23 * len(lines))), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    everything = [value for panel in panels for value in panel.cells.values()]
    low, high = min(everything), max(everything)
    rows: list[tuple[Any, ...]] = []
    at = []
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        values = [[panel.cells.get((line, column), math.nan) for column in columns] for line in lines]
        image = axes.pcolormesh(values, cmap="viridis", vmin=low, vmax=high, edgecolors="none")
        if not numeric:  # names are read from the top
            axes.invert_yaxis()
        for i, line in enumerate(lines):
            for j, column in enumerate(columns):
                if (value := panel.cells.get((line, column))) is None:
                    continue
                rows.append((panel.name, text_of(line), text_of(column), value))
                at.append((axes, j + 0.5, i + 0.5))
                if len(columns) * across <= MAX_TEXTS:
                    colour = "#000000" if value - low > 0.6 * (high - low) else "#ffffff"
                    axes.text(
                        j + 0.5, i + 0.5, f"{value:.{digits}f}", ha="center", va="center", color=colour, fontsize=7.5
                    )
        axes.set_title(shorten(panel.name, 30), fontsize=9, color=INK)
        axes.set_xticks([i + 0.5 for i in range(len(columns))], [shorten(text_of(v), 10) for v in columns])
        axes.set_yticks([i + 0.5 for i in range(len(lines))], [shorten(text_of(v), 20) for v in lines])
        axes.tick_params(length=0, labelcolor=INK, labelsize=8)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_facecolor("none")
    figure.supxlabel(keys[0], fontsize=9, color=INK)
    figure.supylabel(keys[1], fontsize=9, color=INK)
    bar = figure.colorbar(image, ax=grid, shrink=0.9, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, labelcolor=INK, length=3, labelsize=8)
    best = max(rows, key=lambda row: row[3])
    return render(
        figure,
        name,
        title=title,
        caption=caption,
        alt=f"{title}: from {number(low)} to {number(high)}, the highest for {best[0]} at {best[1]} and {best[2]}",
        values=Values(("panel", keys[1], keys[0], measure), rows, at),
    )
