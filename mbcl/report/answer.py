"""The verdict of a study: sentences that claim only what its statistics support."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from mbcl.errors import pluralize
from mbcl.report.wording import centre, interval, listed, number, p_value
from mbcl.study.best_settings import best_of
from mbcl.study.comparisons import CLAIMS, EQUAL_PASSES, EQUAL_STEPS, Comparison, compare
from mbcl.study.metric_glossary import direction
from mbcl.study.nuisance import choices
from mbcl.study.power import describe
from mbcl.study.record import StudyRecord
from mbcl.study.settings import measured_settings
from mbcl.study.statistics import SettingSummary, primary_metrics, shown_status, summarise

MAX_NAMED = 8
"""Maximum number of settings that a sentence names. Of more it gives only the number; the tables name them."""
NUM_EXAMPLES = 3
"""Number of largest differences that a sentence names if there are more than ``MAX_NAMED``."""


@dataclass
class Verdict:
    """A headline and the sentences that explain or qualify it."""

    headline: str
    details: list[str] = field(default_factory=list)


def status_counts(study: StudyRecord) -> dict[str, int]:
    """Count the trials by status as shown in tables; statuses without trials are left out."""
    counts = Counter(shown_status(trial) for trial in study.trials.values())
    return {status: counts[status] for status in ("finished", "stopped", "failed", "pending") if counts[status]}


def verdict_of(study: StudyRecord) -> Verdict:
    """Answer the question of a study on its headline metric."""
    metric = next(iter(primary_metrics(study)), None)
    return answer(study, summarise(study), compare(study, metric) if metric else [], metric)


def answer(
    study: StudyRecord, summaries: list[SettingSummary], comparisons: list[Comparison], metric: str | None
) -> Verdict:
    """Answer the study's question as far as its finished trials allow.

    Of the summaries and comparisons those count that are not of tuning and on ``metric``, the primary one; it is None
    if nothing has been measured.
    """
    summaries = [summary for summary in summaries if summary.stage != "tuning"]
    comparisons = [comparison for comparison in comparisons if comparison.metric == metric]
    counts = status_counts(study)
    if not study.trials:
        return Verdict("This study has no trials.")
    if not counts.get("finished"):
        ended = listed([f"{count} {status}" for status, count in counts.items()])
        return Verdict(f"No trial has finished, so there is no answer yet ({ended}).")
    if metric is None:
        return Verdict("The finished trials measured no final metric, so there is nothing to compare.")
    if not any(metric in summary.metrics for summary in summaries):
        verdict = Verdict("Only trials that choose nuisance values have finished, so there is no answer yet.")
    else:
        verdict = _compared(comparisons, study, metric) if comparisons else _uncompared(study, summaries, metric)
    missing = [f"{counts[status]} {status}" for status in ("stopped", "failed", "pending") if counts.get(status)]
    if missing:
        verdict.details.append(
            f"Of {pluralize(len(study.trials), 'trial')}, {listed(missing)}; only finished trials count here"
            + (", so the answer may still change." if counts.get("pending") else ".")
        )
    verdict.details += _choice_bias(study, comparisons)
    verdict.details += _tuning(study)
    verdict.details += _early_stopping_bias(study)
    return verdict


def _early_stopping_bias(study: StudyRecord) -> list[str]:
    """State the selection bias of early stopping: stopped settings have no result, the finished ones were picked."""
    stopped = {trial.setting: trial.stopped for trial in study.trials.values() if trial.stopped}
    if not stopped:
        return []
    rule = next(iter(stopped.values()))
    several = len({trial.seed for trial in study.trials.values()}) > 1
    seed = f"seed {rule.first_seed}" if several else "their only seed"
    return [
        f"{rule.by} stopped {pluralize(len(stopped), 'setting')} early, which have no final metrics and stand in no "
        f"mean and no comparison. The finished ones were picked by {rule.metric} on {seed}, so what they reach there "
        f"is flattered{'; only their other seeds, which took no part in the choice, are compared' if several else ''}."
    ]


def _tuning(study: StudyRecord) -> list[str]:
    """State how nuisance values were chosen, and which arms have none."""
    found = choices(study)
    if not found:
        return []
    numbers = sorted({len(choice.candidates) for choice in found})
    seeds = {trial.seed for trial in study.trials.values() if trial.stage == "tuning"}
    sentences = [
        f"Every setting has its own best {listed(study.nuisance)} of {listed([str(n) for n in numbers])} candidates by "
        f"{study.metric} on {pluralize(len(seeds), 'seed')} of their own; the results here are of other seeds."
    ]
    if missing := [f"{choice.label} ({choice.missing})" for choice in found if choice.chosen is None]:
        sentences.append(
            f"No values are chosen for {listed(capped(missing))}, so nothing is measured or claimed there."
        )
    return sentences


def _choice_bias(study: StudyRecord, comparisons: list[Comparison]) -> list[str]:
    """State how results have chosen the settings that are compared, and what follows from it."""
    sentences = []
    if chosen := [c for c in comparisons if c.chosen_by]:
        sizes = [f"{c.label} of {c.candidates} against {c.baseline_candidates}" for c in chosen]
        sentences.append(
            f"Compared are the best settings of each sampler and objective by {study.metric} with the best of the "
            f"baseline: {listed(capped(sizes))}. The runs that chose them also measure them, which flatters the best "
            "of more candidates, or of more that are equally good, so nothing is tested. Seeds without a part in the "
            "choice, as with nuisance keys, would allow it."
        )
    if study.is_search:
        sentences.append(
            "This is a search: the best of its settings was chosen by the very runs that measured it, so its mean is "
            "flattered, and settings have no interval here. Seeds that took no part in the choice would give one."
        )
    return sentences


def _compared(comparisons: list[Comparison], study: StudyRecord, metric: str) -> Verdict:
    margin = study.equivalence
    headline, details = _verdict([c for c in comparisons if c.control == EQUAL_STEPS], metric, margin)
    if at_equal_passes := [c for c in comparisons if c.control == EQUAL_PASSES]:
        sentence, further = _verdict(at_equal_passes, metric, margin)
        headline += f" At equal forward passes: {sentence}"
        details += [f"At equal forward passes: {text}" for text in further]
    tested = [c for c in comparisons if c.p is not None]
    if tested:
        details += describe(max(c.n for c in tested), tested[0].comparisons, margin, _pooled_spread(tested), "here")
    return Verdict(headline, details)


def _verdict(comparisons: list[Comparison], metric: str, margin: float) -> tuple[str, list[str]]:
    """Return what the comparisons with one control claim, and a sentence about the undecided ones if there are any."""
    references = {c.baseline_label for c in comparisons}
    reference = references.pop() if len(references) == 1 else "its baseline"
    sentences = [_claim([c for c in comparisons if c.verdict == word], reference, metric, margin) for word in CLAIMS]
    sentences.append(_equivalence([c for c in comparisons if _equals(c, margin)], reference, metric, margin))
    undecided = [c for c in comparisons if not c.differs and not _equals(c, margin)]
    if not any(sentences):
        sentences = [
            f"Undecided: no difference from {reference} on {metric} is shown, nor that none is larger than {margin:g}."
        ]
        if not any(c.p is not None or c.flattered for c in comparisons):
            sentences = [
                f"Nothing can be concluded yet about {metric}: no setting shares two finished seeds with {reference}."
            ]
    details = [f"Undecided: {listed(capped([_undecided(c) for c in undecided]))}."] if undecided else []
    return " ".join(filter(None, sentences)), details


def _equals(comparison: Comparison, margin: float) -> bool:
    return not comparison.differs and comparison.equivalent(margin)


def capped(names: list[str]) -> list[str]:
    """Return up to ``MAX_NAMED`` names, otherwise only their number."""
    return names if len(names) <= MAX_NAMED else [pluralize(len(names), "setting")]


def _pooled_spread(comparisons: list[Comparison]) -> float:
    """Return the standard deviation of paired differences, pooled over comparisons with at least two pairs."""
    degrees = sum(c.n - 1 for c in comparisons)
    return math.sqrt(sum((c.n - 1) * (c.sd or 0.0) ** 2 for c in comparisons) / degrees)


def _undecided(comparison: Comparison) -> str:
    if comparison.difference is None:
        return f"{comparison.label} (no shared seed)"
    difference = centre(comparison, signed=True)
    if comparison.flattered:
        return f"{comparison.label} ({difference}, {comparison.flattered}, n={comparison.n})"
    if comparison.n == 1:
        return f"{comparison.label} ({difference}, one pair of seeds, so no interval)"
    # Without this an interval beside "undecided" would seem to contradict it.
    alone = f", which excludes 0, but p (Holm) is {p_value(comparison.p_holm)}" if comparison.excludes_zero else ""
    return f"{comparison.label} ({difference}, interval {interval(comparison, signed=True)}{alone}, n={comparison.n})"


def _claim(comparisons: list[Comparison], reference: str, metric: str, margin: float) -> str:
    if not comparisons:
        return ""
    word = comparisons[0].verdict
    parts = [
        f"{c.label} by {centre(c, size_only=True)} (95 % interval {interval(c, signed=True)}, n={c.n}"
        + (f"; no more than {margin:g})" if c.equivalent(margin) else ")")
        for c in comparisons
    ]
    if len(parts) > MAX_NAMED:
        largest = sorted(zip(comparisons, parts, strict=True), key=lambda pair: -abs(pair[0].difference or 0.0))
        others = pluralize(len(parts) - NUM_EXAMPLES, "other")
        parts = [*(part for _, part in largest[:NUM_EXAMPLES]), f"{others} by less"]
    if len(parts) == 1:
        label = comparisons[0].label
        return f"{label} is {word} than {reference} on {metric}{parts[0].removeprefix(label)}."
    return f"{word.capitalize()} than {reference} on {metric}: {listed(parts)}."


def _equivalence(comparisons: list[Comparison], reference: str, metric: str, margin: float) -> str:
    if not comparisons:
        return ""
    names = capped([f"{c.label} (95 % interval {interval(c, signed=True)}, n={c.n})" for c in comparisons])
    return f"No difference larger than {margin:g} from {reference} on {metric}: {listed(names)}."


def _uncompared(study: StudyRecord, summaries: list[SettingSummary], metric: str) -> Verdict:
    measured = [summary for summary in summaries if metric in summary.metrics]
    chosen = best_of(study, measured_settings(study))
    lowest = direction(metric) < 0 or (study.mode == "min" and study.metric == metric)
    best = (min if lowest else max)(measured, key=lambda summary: summary.metrics[metric].mean)
    best = next((summary for summary in measured if chosen and summary.setting == chosen.id), best)
    result = best.metrics[metric]
    # The runs that show which setting is best flatter it, so it has no interval.
    spread = f"n={result.n}"
    if len(summaries) == 1:
        spread = f"95 % interval {interval(result)}, n={result.n}" if result.n > 1 else "one seed, so no interval"
        return Verdict(f"{best.label} reaches {metric} {centre(result)} ({spread}); there is nothing to compare with.")
    reason = "The study names no baseline"
    if study.baseline:
        reason = "The study's baseline does not single out a setting to compare with"
    if chosen and best.setting == chosen.id and metric != study.metric:
        headline = f"The best setting by {study.metric} is {best.label}: {metric} {number(result.mean)} ({spread})."
    else:
        which = "lowest" if lowest else "highest"
        headline = f"The {which} mean {metric} is {number(result.mean)}, for {best.label} ({spread})."
    bias = "It was chosen by the runs that measured it, which flatter it, so it has no interval."
    return Verdict(headline, [f"{reason}, so no difference between settings is tested here.", bias])
