"""The figures of a study: final metrics of every seed, curves against the work of a training, time by stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mbcl.report import pictures
from mbcl.report.curves import AXES, History, MetricCurve, curve, stage_seconds
from mbcl.report.pictures import GRID, INK, MUTED, SERIES, Picture, log_scale, new_axes, render, shorten
from mbcl.report.tables import STAGES
from mbcl.report.wording import listed, number
from mbcl.study.comparisons import Comparison, compare
from mbcl.study.metric_glossary import direction
from mbcl.study.record import StudyRecord
from mbcl.study.settings import Setting, baselines, measured_settings
from mbcl.study.statistics import Estimate, estimate, primary_metrics, summarise, validation_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = ("train/loss", "plan/lift", "plan/loss", "synthetic/distance", "synthetic/excess")
MAX_SETTINGS = 24
"""Maximum number of settings in a figure; more cannot be told apart. The tables show all of them."""
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
    settings, note = _chosen(study)
    with pictures.style():
        metrics = primary_metrics(study)
        drawn = [_differences(study, settings, metric, note) for metric in metrics[:1]]
        drawn += [_final(study, settings, metric, note) for metric in metrics if metric != "retrieval/top1"]
        for metric in (validation_metric(study), *CURVES):
            drawn += _curves(settings, histories, metric, note)
        drawn.append(_times(settings, histories, note))
    return [picture for picture in drawn if picture is not None]


def _chosen(study: StudyRecord) -> tuple[list[Setting], str]:
    """Return the settings to draw, and a note for the caption if some are left out."""
    settings = measured_settings(study)
    if len(settings) <= MAX_SETTINGS:
        return settings, ""
    metric = next(iter(primary_metrics(study)), "")
    means = {s.id: result.mean for s in settings if (result := estimate(s.values_of(metric)))}
    always = {s.id for s in baselines(study, settings)}
    sign = direction(metric) or 1
    ranked = sorted(settings, key=lambda s: (s.id not in always, s.id not in means, -sign * means.get(s.id, 0.0)))
    drawn = {s.id for s in ranked[:MAX_SETTINGS]}
    best = "highest" if sign > 0 else "lowest"
    note = f" Shown: the baseline and the {best} means, {MAX_SETTINGS} of {len(settings)} settings."
    return [s for s in settings if s.id in drawn], note


def _file_name(prefix: str, metric: str) -> str:
    # Without an evaluation, the primary metric may have any name, so only safe characters are kept.
    return f"{prefix}_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in metric)


def _limits(values: Sequence[float], estimates: Iterable[Estimate | Comparison]) -> tuple[float, float]:
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


def _differences(study: StudyRecord, settings: list[Setting], metric: str, note: str) -> Picture | None:
    """Draw the paired differences from the baseline, a dot for every seed, and the margin of equivalence."""
    colours = {s.id: SERIES[i % len(SERIES)] for i, s in enumerate(settings)}
    shown = [c for c in compare(study, metric) if c.differences and c.setting in colours]
    if not shown:
        return None
    figure, axes = new_axes(7.2, 1.0 + 0.42 * len(shown))
    margin = study.equivalence
    axes.axvspan(-margin, margin, color=GRID, alpha=0.5, linewidth=0, zorder=0)
    axes.axvline(0, color=MUTED, linewidth=1, linestyle="--", zorder=1)
    for row, result in enumerate(shown):
        _draw_row(axes, row, colours[result.setting], result.differences, result.difference or 0.0, result)
    pictures.label_rows(axes, [c.title for c in shown])
    axes.set_xlim(*_limits([0.0, *(d for c in shown for d in c.differences)], shown))
    axes.set_xlabel(f"{metric}, setting minus baseline", color=INK)
    return render(
        figure,
        _file_name("difference", metric),
        title=f"{metric}: difference from the baseline",
        caption="A dot is one pair of seeds, the diamond the mean, the bar the 95 % paired t interval; one pair has no "
        f"interval. Grey: differences up to {margin:g}, which do not matter in this study.{note}",
        alt=f"Paired differences in {metric}. "
        + "; ".join(f"{c.title}: mean {number(c.difference, signed=True)}, n={c.n}, {c.verdict}" for c in shown),
    )


def _final(study: StudyRecord, settings: list[Setting], metric: str, note: str) -> Picture | None:
    """Draw the final metric of every seed of every setting."""
    colours = {s.id: SERIES[i % len(SERIES)] for i, s in enumerate(settings)}
    values = {s.id: s.values_of(metric) for s in settings}
    estimates = {s.setting: result for s in summarise(study) if (result := s.metrics.get(metric))}
    shown = [s for s in settings if s.id in estimates]
    if not shown:
        return None
    figure, axes = new_axes(7.2, 1.0 + 0.42 * len(shown))
    for row, setting in enumerate(shown):
        result = estimates[setting.id]
        _draw_row(axes, row, colours[setting.id], values[setting.id], result.mean, result)
    reference, line = baselines(study, shown), ""
    if len(reference) == 1 and len(shown) > 1:
        axes.axvline(estimates[reference[0].id].mean, color=MUTED, linewidth=1, linestyle="--", zorder=1)
        line = " The dashed line is the mean of the baseline."
    pictures.label_rows(axes, [s.label for s in shown])
    axes.set_xlim(*_limits([v for s in shown for v in values[s.id]], [estimates[s.id] for s in shown]))
    axes.set_xlabel(metric, color=INK)
    bar = "the bar its 95 % interval; a setting with one finished seed has no interval"
    return render(
        figure,
        _file_name("final", metric),
        title=metric,
        caption=f"A dot is one seed, the diamond the mean{'' if study.is_search else f', {bar}'}.{line} "
        f"The axis does not start at 0, and very wide intervals run out of it.{note}",
        alt=f"Final {metric}. "
        + "; ".join(f"{s.label}: mean {number(estimates[s.id].mean)}, n={estimates[s.id].n}" for s in shown),
    )


def _curves(settings: list[Setting], histories: dict[int, History], metric: str, note: str) -> list[Picture]:
    """Draw the curves of a metric against every measure of work that all of them have."""
    lines = [(i, s, line) for i, s in enumerate(settings) if (line := curve(s, histories, metric))]
    if not lines:
        return []
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
    return render(
        figure,
        _file_name("curve", metric) + ("" if axis in ("epochs", "steps") else f"_by_{axis}"),
        title=f"{metric} over the {axis}",
        caption=caption,
        alt=f"{metric} by {axis_label}. "
        + "; ".join(f"{s.label}: from {number(line.mean[0])} to {number(line.mean[-1])}" for _, s, line in lines),
        axis="" if axis == "steps" else axis,
    )


def _times(settings: list[Setting], histories: dict[int, History], note: str) -> Picture | None:
    """Draw the seconds of each stage, summed over the epochs, as stacked bars."""
    seconds = {s.id: stage_seconds(s, histories) for s in settings}
    # "plan" overlaps with "wait" or with training, so stacking it would count the same seconds twice.
    stages = [stage for stage in STAGES if stage != "plan" and any(stage in row for row in seconds.values())]
    shown = [s for s in settings if any(seconds[s.id].values())]
    if not shown:
        return None
    figure, axes = new_axes(7.2, 1.2 + 0.42 * len(shown))
    starts = [0.0] * len(shown)
    for i, stage in enumerate(stages):
        widths = [seconds[s.id].get(stage, 0.0) for s in shown]
        axes.barh(range(len(shown)), widths, left=starts, height=0.56, color=SERIES[i % len(SERIES)], label=stage)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    pictures.label_rows(axes, [s.label for s in shown])
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
    )
