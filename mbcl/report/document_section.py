"""The section of one study in a Markdown document: answer, tables, failures, cost, and how to run it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from mbcl.errors import pluralize
from mbcl.report.answer import status_counts, verdict_of
from mbcl.report.markdown import code, code_cell, escaped, fenced, table
from mbcl.report.page import CLASSIFIERS, commands
from mbcl.report.wording import MINUS, NOTHING, centre, interval, listed, number, p_value, seconds
from mbcl.study.comparisons import EQUAL_PASSES, EQUAL_STEPS, Comparison, compare
from mbcl.study.gains import MEASURED
from mbcl.study.histories import History
from mbcl.study.nuisance import choices
from mbcl.study.passes_to_quality import PASSES, PassesToQuality, passes_to_quality
from mbcl.study.power import MAX_PAIRS, POWER, pairs_to_decide
from mbcl.study.record import StudyRecord
from mbcl.study.settings import baselines, measured_settings
from mbcl.study.statistics import Estimate, SettingSummary, compared_metrics, primary_metrics, summarise
from mbcl.study.trial_table import single_line

MAX_REASONS = 8
"""Maximum number of reasons of failures that are named."""
UNDECIDED = "undecided"
OTHERS = ("retrieval/mrr", "retrieval/top1", *CLASSIFIERS)
"""Metrics whose differences are shown if they are not the headline's."""


def section(folder: str, study: StudyRecord, histories: Mapping[int, History]) -> str:
    """Return the section of a study below its heading; commands take its results folder as ``folder``."""
    metric = next(iter(primary_metrics(study)), "")
    comparisons = compare(study, metric) if metric else []
    verdict = verdict_of(study)
    parts = []
    if study.question:
        parts.append(f"*{escaped(study.question)}*\n")
    parts.append(f"**Answer.** {escaped(verdict.headline)}\n")
    parts += [f"{escaped(sentence)}\n" for sentence in verdict.details]
    if metric:
        parts += [_results(study, metric, comparisons), _notes(study, metric, comparisons)]
        parts += _exploratory(study, metric)
    if quality := passes_to_quality(study, histories):
        parts += [_quality(quality), _quality_note(quality[0].metric)]
    if failed := _failures(study):
        parts.append(failed)
    parts += [_cost(study), *(fenced(command) for _, command in commands(study, folder)[-1:])]
    return "\n".join(parts)


def _results(study: StudyRecord, metric: str, comparisons: Sequence[Comparison]) -> str:
    """Return the table of settings: means, differences with either control, chosen values, what the batches were."""
    summaries = _summaries(study)
    references = {setting.id for setting in baselines(study, measured_settings(study))}
    controls = {s.equal_passes for s in measured_settings(study)} - {None}
    by_control = {
        control: {c.setting: c for c in comparisons if c.control == control} for control in (EQUAL_STEPS, EQUAL_PASSES)
    }
    chosen = _chosen(study)
    measured = _measured(summaries)
    head = ["setting", "n", code_cell(metric)]
    for control, words in ((EQUAL_STEPS, "at equal epochs"), (EQUAL_PASSES, "at equal forward passes")):
        if by_control[control]:
            head += [f"difference {words}", "p (Holm)", "verdict"]
    head += [*(["chosen"] if chosen else []), *map(code_cell, measured)]
    rows = []
    for summary in summaries:
        tag = " (baseline)" * (summary.setting in references) + " (control)" * (summary.setting in controls)
        cells = [escaped(summary.label) + tag, str(summary.n), _with_interval(summary.metrics.get(metric))]
        for by_setting in by_control.values():
            if by_setting:
                cells += _difference(by_setting.get(summary.setting), summary, study.equivalence)
        cells += [escaped(chosen.get(summary.setting, NOTHING))] if chosen else []
        cells += [number(found.mean) if (found := summary.metrics.get(key)) else NOTHING for key in measured]
        rows.append(cells)
    texts = {"setting", "verdict", "chosen"}
    return table(head, rows, [column for column, word in enumerate(head) if word not in texts])


def _summaries(study: StudyRecord) -> list[SettingSummary]:
    """Return the settings that measure: all but the candidates of nuisance keys."""
    return [summary for summary in summarise(study) if summary.stage != "tuning"]


def _measured(summaries: Sequence[SettingSummary]) -> list[str]:
    """Return the metrics of the batches that some setting has."""
    return [key for key in MEASURED if any(key in summary.metrics for summary in summaries)]


def _with_interval(result: Estimate | Comparison | None, *, signed: bool = False) -> str:
    middle, ends = centre(result, signed=signed), interval(result, signed=signed)
    return middle if ends == NOTHING else f"{middle} ({ends})"


def _difference(comparison: Comparison | None, summary: SettingSummary, margin: float) -> list[str]:
    """Return the cells of a comparison: the difference, its p value, and the verdict."""
    if comparison is None:
        return [NOTHING, NOTHING, NOTHING]
    pairs = f", {pluralize(comparison.n, 'pair')}" if 0 < comparison.n != summary.n else ""
    verdict = comparison.verdict
    if verdict == UNDECIDED and (needed := seeds_to_decide(comparison, margin)):
        verdict += f": {needed}"
    return [_with_interval(comparison, signed=True) + pairs, p_value(comparison.p_holm), escaped(verdict)]


def seeds_to_decide(comparison: Comparison, margin: float) -> str:
    """Return how many pairs decide between no difference and one of the margin; empty if no spread was observed.

    The spread is that of the comparison itself. Where there are as many pairs already, the difference is perhaps
    neither of the two.
    """
    if not comparison.sd:
        return ""
    needed = pairs_to_decide(margin / comparison.sd, comparison.comparisons)
    if needed is None:
        return f"takes more than {MAX_PAIRS:,} pairs"
    if needed <= comparison.n:
        end = f"{MINUS}{margin:g}" if (comparison.difference or 0.0) < 0 else f"+{margin:g}"
        return f"perhaps between 0 and {end}, which {needed} pairs tell apart"
    return f"takes about {needed} pairs"


def _chosen(study: StudyRecord) -> dict[int, str]:
    """Return the chosen nuisance values by setting, its controls included."""
    by_arm = {choice.arm: choice.chosen.label for choice in choices(study) if choice.chosen}
    arms = {setting: trials[0].arm for setting, trials in study.settings().items()}
    return {setting: by_arm[arm] for setting, arm in arms.items() if arm in by_arm}


def _notes(study: StudyRecord, metric: str, comparisons: Sequence[Comparison]) -> str:
    """Return what the columns of the table are."""
    intervals = "" if study.is_search else ", with 95 % t intervals"
    parts = [f"Means of {code(metric)} over the finished seeds{intervals}."]
    if measured := _measured(_summaries(study)):
        parts.append(f"{listed([*map(code, measured)])}: of the last epoch.")
    if comparisons:
        parts.append("Differences are paired by seed, setting minus its own baseline, with 95 % t intervals.")
    if tests := max((c.comparisons for c in comparisons), default=0):
        parts.append(f"p is that of the sign-flip test, corrected for {pluralize(tests, 'comparison')}.")
    if excess := _excess_of_controls(study, comparisons):
        parts.append(excess)
    if any(c.verdict == UNDECIDED and c.sd for c in comparisons):
        parts.append(
            f"Beside undecided: the pairs of seeds that would tell a difference of {study.equivalence:g} from none "
            f"with {100 * POWER:.0f} % power, where paired differences scatter as these do."
        )
    return " ".join(parts) + "\n"


def _excess_of_controls(study: StudyRecord, comparisons: Sequence[Comparison]) -> str:
    """Return by how much the forward passes of controls differ from those of the settings; empty without controls."""
    passes = {s.setting: found.mean for s in summarise(study) if (found := s.metrics.get(PASSES))}
    excess = [
        100 * (passes[c.baseline] / passes[c.setting] - 1)
        for c in comparisons
        if c.control == EQUAL_PASSES and c.baseline in passes and c.setting in passes
    ]
    if not excess:
        return ""
    ends = " to ".join(dict.fromkeys(number(round(end), signed=True) for end in (min(excess), max(excess))))
    return f"Controls train whole epochs: their forward passes are {ends} % from those of their settings."


def _exploratory(study: StudyRecord, headline: str) -> list[str]:
    """Return the differences in other metrics: R@1 and the accuracies of classifiers, if they were measured."""
    others = [metric for metric in compared_metrics(study) if metric in OTHERS and metric != headline]
    by_metric = {metric: [c for c in compare(study, metric) if c.control == EQUAL_STEPS and c.n] for metric in others}
    by_metric = {metric: found for metric, found in by_metric.items() if found}
    cells: dict[str, dict[str, str]] = {}
    for metric, found in by_metric.items():
        for comparison in found:
            cells.setdefault(comparison.label, {})[metric] = _with_interval(comparison, signed=True)
    if not cells:
        return []
    rows = [[escaped(label), *(row.get(metric, NOTHING) for metric in by_metric)] for label, row in cells.items()]
    head = ["setting", *map(code_cell, by_metric)]
    note = "Differences in other metrics at equal epochs, with 95 % t intervals: exploratory, nothing is claimed.\n"
    return [table(head, rows, range(1, len(head))), note]


def _quality(rows: Sequence[PassesToQuality]) -> str:
    head = ["setting", "baseline", "passes of the baseline", "ratio (95 % interval)", "seeds that reached it"]
    cells = [
        [
            escaped(row.label),
            escaped(row.baseline_label),
            number(round(row.passes)),
            _with_interval(row.ratio),
            f"{row.reached} of {row.n}",
        ]
        for row in rows
    ]
    return table(head, cells, (2, 3))


def _quality_note(metric: str) -> str:
    return (
        f"Forward passes until {code(metric)} is at least the last value of the baseline's trial of the same seed, "
        "over those with which the baseline first was, counted to an epoch. Passes are a mean over the seeds, ratios a "
        "geometric one. There is no ratio if a seed did not get there.\n"
    )


def _failures(study: StudyRecord) -> str:
    """Return how many trials failed or were stopped, and why."""
    reasons = Counter(single_line(trial.error) for trial in study.trials.values() if trial.status == "failed")
    if not reasons:
        return ""
    lines = [f"{pluralize(reasons.total(), 'trial')} of {len(study.trials)} failed:\n"]
    lines += [f"- {count}: {escaped(reason) or 'no reason is recorded'}" for reason, count in _most(reasons)]
    if len(reasons) > MAX_REASONS:
        lines.append(f"- and {len(reasons) - MAX_REASONS} other reasons")
    return "\n".join(lines) + "\n"


def _most(reasons: Counter[str]) -> list[tuple[str, int]]:
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:MAX_REASONS]


def _cost(study: StudyRecord) -> str:
    """Return what the study cost, with which versions it ran, and what the command below does."""
    counts = listed([f"{count} {status}" for status, count in status_counts(study).items()])
    spent = [trial.seconds["total"] for trial in study.ordered().values() if "total" in trial.seconds]
    parts = [f"{pluralize(len(study.trials), 'trial')}{f' ({counts})' if counts else ''}"]
    if spent:
        parts[0] += f", {seconds(sum(spent))} of trials"
    parts[0] += "."
    if study.efficiency:
        parts.append(
            f"The last run took {seconds(study.efficiency.wall)}; efficiency: {escaped(study.efficiency.describe())}."
        )
    versions = [f"{name} {version}" for name, version in study.versions.items()]
    if versions:
        parts.append(f"Versions: {escaped(', '.join(versions))}.")
    return " ".join(parts) + " The whole study again:\n"
