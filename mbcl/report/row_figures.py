"""Charts of one row a setting: a dot for every seed, the mean, and its interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mbcl.report import pictures
from mbcl.report.pictures import (
    ACCENT,
    BAD,
    GOOD,
    GRID,
    INK,
    MUTED,
    SERIES,
    Picture,
    Values,
    file_name,
    new_axes,
    render,
    shorten,
)
from mbcl.report.wording import number
from mbcl.study.comparisons import Comparison, compare
from mbcl.study.metric_glossary import direction
from mbcl.study.record import StudyRecord
from mbcl.study.settings import Setting, baselines
from mbcl.study.statistics import Estimate, primary_metrics, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_WIDTH, ROW_BASE, ROW_HEIGHT = 4.9, 0.75, 0.52
"""Size of a chart of rows in inches; wider ones are illegible on a phone."""
MAX_ROW_LABEL = 38
"""Maximum length of a name that has a verdict beside it."""
_Row = tuple[str, float, Estimate | Comparison, Sequence[tuple[int, float]]]
"""The name of a row, its mean, the estimate with its interval, and the value of every seed."""


def draw_rows(study: StudyRecord, settings: list[Setting], note: str = "", prefix: str = "") -> list[Picture]:
    """Draw the differences from the baseline on the headline's metric, then the primary metrics themselves.

    ``prefix`` begins the names of figures, which tell those of several studies apart.
    """
    metrics, ids = primary_metrics(study), {setting.id for setting in settings}
    compared = [c for metric in metrics[:1] for c in compare(study, metric) if c.setting in ids]
    drawn = [_difference(study, compared, note, prefix)]
    drawn += [_final(study, settings, metric, note, prefix) for metric in metrics if metric != "retrieval/top1"]
    return [picture for picture in drawn if picture is not None]


def limits(values: Sequence[float], estimates: Iterable[Estimate | Comparison]) -> tuple[float, float]:
    """Return axis limits around all seeds and intervals; very wide intervals are clipped at twice the seeds' span."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) * 0.05 or 1.0
    for result in estimates:
        if result.ci_low is not None and result.ci_high is not None:
            low, high = min(low, result.ci_low), max(high, result.ci_high)
    low, high = max(low, min(values) - 2 * span), min(high, max(values) + 2 * span)
    return low - 0.08 * span, high + 0.08 * span


def _draw_row(
    axes: Axes, row: int, colour: str, values: Sequence[float], mean: float, result: Estimate | Comparison
) -> None:
    """Draw dots for the seeds, a diamond for their mean, and a bar for the interval if there is one."""
    if result.ci_low is not None and result.ci_high is not None:
        axes.plot([result.ci_low, result.ci_high], [row, row], color=colour, linewidth=5, alpha=0.35)
    axes.scatter(values, [row] * len(values), s=22, color=colour, zorder=3, linewidths=0)
    axes.scatter([mean], [row], s=54, marker="D", facecolor="none", edgecolor=INK, linewidths=1.3, zorder=4)


def _row_values(axes: Axes, measure: str, shown: Sequence[_Row]) -> Values:
    """Return the values of rows: the mean of each with its interval, and every seed."""
    table: list[tuple[Any, ...]] = []
    at = []
    for row, (label, mean, result, seeds) in enumerate(shown):
        table.append((label, "mean", mean, result.ci_low, result.ci_high))
        table += [(label, seed, value, None, None) for seed, value in seeds]
        at += [(axes, value, float(row)) for value in (mean, *(value for _, value in seeds))]
    return Values(("setting", "seed", measure, "ci_low", "ci_high"), table, at)


def _verdict_style(result: Comparison, margin: float) -> tuple[str, str]:
    """Return the colour and the short form of a verdict, which is the one after Holm's correction."""
    if result.differs:
        return {"better": GOOD, "worse": BAD}.get(result.verdict, ACCENT), result.verdict
    if result.equivalent(margin):
        return ACCENT, f"within ±{margin:g}"
    return MUTED, result.verdict.partition(" (")[0]


def _difference(study: StudyRecord, comparisons: Sequence[Comparison], note: str, prefix: str) -> Picture | None:
    """Draw paired differences from the baseline, a dot for every seed, and the margin of equivalence."""
    shown = [c for c in comparisons if c.differences]
    if not shown:
        return None
    metric, margin = shown[0].metric, study.equivalence
    figure, axes = new_axes(ROW_WIDTH, ROW_BASE + ROW_HEIGHT * len(shown))
    axes.axvspan(-margin, margin, color=GRID, alpha=0.5, linewidth=0, zorder=0)
    axes.axvline(0, color=MUTED, linewidth=1, linestyle="--", zorder=1)
    pictures.name_rows(axes, [shorten(c.title, MAX_ROW_LABEL) for c in shown])
    for row, result in enumerate(shown):
        colour, verdict = _verdict_style(result, margin)
        _draw_row(axes, row, colour, result.differences, result.difference or 0.0, result)
        axes.text(1, row - 0.3, verdict, transform=axes.get_yaxis_transform(), va="bottom", ha="right", color=colour)
    axes.set_xlim(*limits([0.0, *(d for c in shown for d in c.differences)], shown))
    axes.set_xlabel(f"{metric}, setting minus baseline", color=INK)
    rows = [(c.title, c.difference or 0.0, c, list(zip(c.seeds, c.differences, strict=True))) for c in shown]
    return render(
        figure,
        prefix + file_name("difference", metric),
        title=f"{metric}: difference from the baseline",
        caption="A dot is one pair of seeds, the diamond the mean, the bar the 95 % paired t interval; one pair has no "
        "interval. Colours are those of the verdicts after Holm's correction: green better, red worse, grey undecided. "
        f"Grey band: differences up to {margin:g}, which do not matter in this study.{note}",
        alt=f"Paired differences in {metric}. "
        + "; ".join(f"{c.title}: mean {number(c.difference, signed=True)}, n={c.n}, {c.verdict}" for c in shown),
        values=_row_values(axes, "difference", rows),
    )


def _final(study: StudyRecord, settings: list[Setting], metric: str, note: str, prefix: str) -> Picture | None:
    """Draw the final metric of every seed of every setting."""
    colours = {s.id: SERIES[i % len(SERIES)] for i, s in enumerate(settings)}
    values = {s.id: [(t.seed, v) for t in s.finished if (v := t.value_of(metric)) is not None] for s in settings}
    estimates = {s.setting: result for s in summarise(study) if (result := s.metrics.get(metric))}
    shown = [s for s in settings if s.id in estimates]
    if not shown:
        return None
    if study.is_search:  # the best first
        shown.sort(key=lambda s: -(direction(metric) or 1) * estimates[s.id].mean)
    figure, axes = new_axes(ROW_WIDTH, ROW_BASE + ROW_HEIGHT * len(shown))
    for row, setting in enumerate(shown):
        result = estimates[setting.id]
        _draw_row(axes, row, colours[setting.id], [v for _, v in values[setting.id]], result.mean, result)
    reference, line = baselines(study, shown), ""
    if len(reference) == 1 and len(shown) > 1:
        axes.axvline(estimates[reference[0].id].mean, color=MUTED, linewidth=1, linestyle="--", zorder=1)
        line = " The dashed line is the mean of the baseline."
    pictures.name_rows(axes, [s.label for s in shown])
    axes.set_xlim(*limits([v for s in shown for _, v in values[s.id]], [estimates[s.id] for s in shown]))
    axes.set_xlabel(metric, color=INK)
    bar = "the bar its 95 % interval; a setting with one finished seed has no interval"
    return render(
        figure,
        prefix + file_name("final", metric),
        title=metric,
        caption=f"A dot is one seed, the diamond the mean{'' if study.is_search else f', {bar}'}.{line} "
        f"The axis does not start at 0, and very wide intervals run out of it.{note}",
        alt=f"Final {metric}. "
        + "; ".join(f"{s.label}: mean {number(estimates[s.id].mean)}, n={estimates[s.id].n}" for s in shown),
        values=_row_values(
            axes, metric, [(s.label, estimates[s.id].mean, estimates[s.id], values[s.id]) for s in shown]
        ),
    )
