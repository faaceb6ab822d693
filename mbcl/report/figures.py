"""The figures of a study: final metrics of every seed, curves against the work of a training, time by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mbcl.report import pictures
from mbcl.report.curves import AXES, MetricCurve, curve, stage_seconds
from mbcl.report.gain_figures import draw_gains
from mbcl.report.heat_maps import draw_corruptions, draw_grid
from mbcl.report.pictures import (
    GRID,
    INK,
    MUTED,
    SERIES,
    Picture,
    Values,
    file_name,
    log_scale,
    new_axes,
    render,
    shorten,
)
from mbcl.report.row_figures import ROW_BASE, ROW_HEIGHT, ROW_WIDTH, draw_rows
from mbcl.report.search_figures import draw_search
from mbcl.report.wording import listed, number
from mbcl.study.histories import History
from mbcl.study.metric_glossary import direction
from mbcl.study.record import StudyRecord
from mbcl.study.settings import Setting, baselines, measured_settings
from mbcl.study.statistics import estimate, primary_metrics, validation_metric
from mbcl.study.trial_table import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = ("train/loss", "plan/lift", "plan/loss", "synthetic/distance", "synthetic/excess")
MAX_SETTINGS = 24
"""Maximum number of settings in a figure; more cannot be told apart. The tables show all of them."""
MAX_SEARCHED = 8
"""Maximum number of settings of a search in curves: other figures show all of them."""
MAX_POINTS = 1200
"""Maximum number of points of all curves of a figure together: the page stays small, and no screen shows more."""
MAX_HALF_LEGEND = 26
"""Maximum length of labels, in characters, with which a legend has two columns."""
_CURVE_NOTES = {
    "train/loss": "Samplers that choose hard batches raise the training loss, so lower is not better here.",
    "plan/lift": "At 1 (dashed) a planned batch is as hard as a random one; above 1 it is harder.",
    "plan/loss": "Loss of the planned batches under the embeddings that the planner had.",
    "synthetic/distance": "A step is not the same work for every sampler: updates and samples stand in the tables.",
    "synthetic/excess": "Where no optimum is known, above the least loss that restarts found.",
}
_VALIDATION_NOTE = "Measured on the validation split, never on the test split."


def draw(study: StudyRecord, histories: dict[int, History]) -> list[Picture]:
    """Draw every figure for which the study has data."""
    settings, note = chosen_settings(study)
    fewer, fewer_note = chosen_settings(study, MAX_SEARCHED if study.is_search else MAX_SETTINGS)
    with pictures.style():
        rows = draw_rows(study, settings, note)
        drawn: list[Picture | None] = [*rows[:1], *draw_gains(study), *rows[1:]]
        drawn += [*draw_search(study), *draw_grid(study), *draw_corruptions(study, settings)]
        for metric in (validation_metric(study), *CURVES):
            drawn += _curves(fewer, histories, metric, fewer_note)
        drawn.append(_times(fewer, histories, fewer_note))
    return [picture for picture in drawn if picture is not None]


def chosen_settings(study: StudyRecord, number: int = MAX_SETTINGS) -> tuple[list[Setting], str]:
    """Return the settings to draw, and a note for the caption if some are left out."""
    settings = measured_settings(study)
    if len(settings) <= number:
        return settings, ""
    metric = next(iter(primary_metrics(study)), "")
    means = {s.id: result.mean for s in settings if (result := estimate(s.values_of(metric)))}
    always = {s.id for s in baselines(study, settings)}
    sign = direction(metric) or 1
    ranked = sorted(settings, key=lambda s: (s.id not in always, s.id not in means, -sign * means.get(s.id, 0.0)))
    drawn = {s.id for s in ranked[:number]}
    best = "highest" if sign > 0 else "lowest"
    note = f" Shown: the baseline and the {best} means, {number} of {len(settings)} settings."
    return [s for s in settings if s.id in drawn], note


def _curves(settings: list[Setting], histories: dict[int, History], metric: str, note: str) -> list[Picture]:
    """Draw the curves of a metric against every measure of work that all of them have."""
    found = [(i, s, line) for i, s in enumerate(settings) if (line := curve(s, histories, metric))]
    if not found:
        return []
    lines = [(i, s, line.thinned(MAX_POINTS // len(found))) for i, s, line in found]
    seeds = max(line.seeds for _, _, line in lines)
    early = [s for _, s, _ in lines if all(trial.status != "finished" for trial in s.trials)]
    stopped = [s for s in early if any(trial.stopped for trial in s.trials)]
    for sentence, group in (
        ("Stopped early, where the line ends: {}.", stopped),
        ("No trial has finished yet for {}; shown is what there is.", [s for s in early if s not in stopped]),
    ):
        if group:
            note = f" {sentence.format(listed([shorten(s.label) for s in group]))}{note}"
    band = "Mean over the seeds; the band reaches from the lowest to the highest seed." if seeds > 1 else "One seed."
    caption = f"{band} {_CURVE_NOTES.get(metric, _VALIDATION_NOTE)}{note}"
    if metric.startswith("synthetic/"):
        return [_curve_against("steps", "step", lines, metric, caption)]
    axes = [axis for axis in AXES if all(axis in line.work for _, _, line in lines)]
    return [_curve_against(axis, AXES[axis], lines, metric, caption) for axis in axes]


def _curve_against(
    axis: str, axis_label: str, lines: list[tuple[int, Setting, MetricCurve]], metric: str, caption: str
) -> Picture:
    """Draw the numbered curves of settings against one measure of work."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    columns = 2 if max(len(shorten(s.label)) for _, s, _ in lines) <= MAX_HALF_LEGEND else 1
    figure, axes = new_axes(4.7, 2.9 + 0.16 * (len(lines) // columns))
    for i, setting, line in lines:
        low_high = (line.low, line.high) if line.seeds > 1 else None
        pictures.draw_curve(axes, i, setting.label, line.work.get(axis, line.epochs), line.mean, low_high)
    if metric == "plan/lift":
        axes.axhline(1, color=MUTED, linewidth=1, linestyle="--", zorder=1)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    if axis == "steps" and all(low > 0 for _, _, line in lines for low in line.low):
        log_scale(axes, "y")
    axes.set_xlabel(axis_label, color=INK)
    axes.set_ylabel(metric, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto" if axis in ("epochs", "steps") else 5, integer=True))
    if axis in ("images", "passes"):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    pictures.add_legend(figure, axes, columns)
    name = file_name("curve", metric)
    return render(
        figure,
        name + ("" if axis in ("epochs", "steps") else f"_by_{axis}"),
        title=f"{metric} over the {axis}",
        caption=caption,
        alt=f"{metric} by {axis_label}. "
        + "; ".join(f"{s.label}: from {number(line.mean[0])} to {number(line.mean[-1])}" for _, s, line in lines),
        axis="" if axis == "steps" else axis,
        values=_curve_values(axes, axis, lines),
        table=name,
    )


def _curve_values(axes: Axes, axis: str, lines: list[tuple[int, Setting, MetricCurve]]) -> Values:
    """Return the values of curves, which are the same against every measure of work."""
    work = [name for name in AXES if name != "epochs" and all(name in line.work for _, _, line in lines)]
    rows: list[tuple[Any, ...]] = []
    at = []
    for _, setting, line in lines:
        columns = [line.epochs, *(line.work[name] for name in work), line.mean, line.low, line.high]
        rows += [(setting.label, *values) for values in zip(*columns, strict=True)]
        at += [(axes, x, y) for x, y in zip(line.work.get(axis, line.epochs), line.mean, strict=True)]
    return Values(("setting", "step" if axis == "steps" else "epoch", *work, "mean", "low", "high"), rows, at)


def _times(settings: list[Setting], histories: dict[int, History], note: str) -> Picture | None:
    """Draw the seconds of each stage, summed over the epochs, as stacked bars."""
    seconds = {s.id: stage_seconds(s, histories) for s in settings}
    # "plan" overlaps with "wait" or with training, so stacking it would count the same seconds twice.
    stages = [stage for stage in STAGES if stage != "plan" and any(stage in row for row in seconds.values())]
    shown = [s for s in settings if any(seconds[s.id].values())]
    if not shown:
        return None
    figure, axes = new_axes(ROW_WIDTH, ROW_BASE + 0.3 + ROW_HEIGHT * len(shown))
    starts = [0.0] * len(shown)
    rows: list[tuple[str, str, float]] = []
    at = []
    for i, stage in enumerate(stages):
        widths = [seconds[s.id].get(stage, 0.0) for s in shown]
        axes.barh(range(len(shown)), widths, left=starts, height=0.4, color=SERIES[i % len(SERIES)], label=stage)
        rows += [(s.label, stage, width) for s, width in zip(shown, widths, strict=True)]
        at += [(axes, start + width / 2, row) for row, (start, width) in enumerate(zip(starts, widths, strict=True))]
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    pictures.name_rows(axes, [s.label for s in shown])
    axes.set_xlabel("seconds a trial", color=INK)
    figure.legend(loc="outside upper left", ncols=len(stages), frameon=False, labelcolor=INK, handlelength=1)
    return render(
        figure,
        "time",
        title="Time by stage",
        caption=f"Seconds of a trial by stage, summed over its epochs; mean over the finished seeds. "
        f"wait is the time that training stood still for a plan, its planning included.{note}",
        alt="Seconds by stage. "
        + "; ".join(
            f"{s.label}: " + ", ".join(f"{stage} {number(seconds[s.id].get(stage, 0.0))}" for stage in stages)
            for s in shown
        ),
        values=Values(("setting", "stage", "seconds"), rows, at),
    )
