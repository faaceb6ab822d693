"""The verdict of a study: sentences that claim only what its statistics support."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mbcl.errors import pluralize
from mbcl.report.wording import interval, listed, number
from mbcl.study.best_settings import best_of
from mbcl.study.metric_glossary import direction
from mbcl.study.record import StudyRecord
from mbcl.study.settings import settings_of
from mbcl.study.statistics import ALPHA, Comparison, SettingSummary, shown_status

_CLAIMS = ("better", "worse", "higher", "lower")
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


def answer(
    study: StudyRecord, summaries: list[SettingSummary], comparisons: list[Comparison], metric: str | None
) -> Verdict:
    """Answer the study's question as far as its finished trials allow.

    The comparisons are those on ``metric``, the primary one; it is None if nothing has been measured.
    """
    counts = status_counts(study)
    if not study.trials:
        return Verdict("This study has no trials.")
    if not counts.get("finished"):
        ended = listed([f"{count} {status}" for status, count in counts.items()])
        return Verdict(f"No trial has finished, so there is no answer yet ({ended}).")
    if metric is None:
        return Verdict("The finished trials measured no final metric, so there is nothing to compare.")
    verdict = _compared(comparisons, metric) if comparisons else _uncompared(study, summaries, metric)
    missing = [f"{counts[status]} {status}" for status in ("stopped", "failed", "pending") if counts.get(status)]
    if missing:
        verdict.details.append(
            f"Of {pluralize(len(study.trials), 'trial')}, {listed(missing)}; only finished trials count here"
            + (", so the answer may still change." if counts.get("pending") else ".")
        )
    if any(c.chosen_by for c in comparisons):
        bias = f"{metric} took no part in the choice"
        if any(c.circular for c in comparisons):
            bias = f"since {metric} is what they were chosen by, it flatters them, and no difference in it is claimed"
        verdict.details.append(
            f"Compared are the best settings of each sampler and objective by {study.metric}, chosen alike for the "
            f"baseline; {bias}."
        )
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
        f"is flattered{'; their other seeds took no part in the choice' if several else ''}."
    ]


def _holds(comparison: Comparison) -> bool:
    """Return whether a difference may be claimed.

    Its interval must exclude 0, its p value after Holm's correction must be below ``ALPHA``, and it must have a spread.
    If all seeds differ by exactly the same amount, this shows a coarse metric, not certainty. A metric by which the
    settings were chosen cannot test them.
    """
    return (
        comparison.excludes_zero
        and not comparison.constant
        and not comparison.circular
        and comparison.p_holm is not None
        and comparison.p_holm < ALPHA
    )


def _compared(comparisons: list[Comparison], metric: str) -> Verdict:
    references = {c.baseline_label for c in comparisons}
    reference = references.pop() if len(references) == 1 else "its baseline"
    holds = [c for c in comparisons if _holds(c)]
    constant = [c for c in comparisons if c.excludes_zero and c.constant]
    hints = [c for c in comparisons if c.excludes_zero and not c.circular and c not in holds and c not in constant]
    details = []
    if holds:
        sentences = [_claim([c for c in holds if c.verdict == word], word, reference, metric) for word in _CLAIMS]
        headline = " ".join(sentence for sentence in sentences if sentence)
    elif all(c.n < 2 for c in comparisons):
        headline = f"Nothing can be concluded yet about {metric}: no setting shares two finished seeds with {reference}"
        headline += ", so there are no intervals."
    else:
        headline = f"No setting is shown to differ from {reference} on {metric}."
    if hints:
        names = listed([f"{c.label} ({c.verdict})" for c in hints])
        details.append(
            f"{_named_or_counted(hints, names)}: the interval excludes 0 taken alone, but not after Holm's correction "
            f"for {pluralize(hints[0].comparisons, 'comparison')}. That is a hint, not a result."
        )
    if constant:
        names = listed([f"{c.label} ({number(c.difference or 0.0, signed=True)}, n={c.n})" for c in constant])
        details.append(f"{names}: every seed differs by exactly the same amount, so there is no spread to judge it by.")
    undecided = [_undecided(c) for c in comparisons if not c.excludes_zero or (c.circular and not c.constant)]
    if undecided and any(c.n > 1 for c in comparisons):
        start = f"No difference from {reference} is shown for" if holds or hints else "Differences measured:"
        settings = listed(undecided) if len(undecided) <= MAX_NAMED else f"{len(undecided)} settings"
        details.append(f"{start} {settings}.")
    return Verdict(headline, details)


def _named_or_counted(comparisons: list[Comparison], names: str) -> str:
    """Return the names of up to ``MAX_NAMED`` settings, otherwise their number and the count of each verdict."""
    if len(comparisons) <= MAX_NAMED:
        return names
    verdicts = listed(
        [f"{count} {verdict}" for verdict, count in Counter(c.verdict for c in comparisons).most_common()]
    )
    return f"{len(comparisons)} settings ({verdicts})"


def _undecided(comparison: Comparison) -> str:
    if comparison.difference is None:
        return f"{comparison.label} (no shared seed)"
    if comparison.n == 1:
        return f"{comparison.label} ({number(comparison.difference, signed=True)}, one pair of seeds, so no interval)"
    return (
        f"{comparison.label} ({number(comparison.difference, signed=True)}, interval "
        f"{interval(comparison, signed=True)}, n={comparison.n})"
    )


def second_opinion(comparisons: list[Comparison]) -> str:
    """Summarise the comparisons on a further metric in one sentence; empty without comparisons."""
    shown = [c for c in comparisons if len(comparisons) <= MAX_NAMED or _holds(c)]
    # Without Holm's correction, a verdict may be a difference. With one pair of seeds, it is that there is no interval.
    verdicts = [f"{c.label} {c.verdict if _holds(c) or c.n == 1 else f'no difference shown (n={c.n})'}" for c in shown]
    if len(shown) > MAX_NAMED:
        counts = Counter(c.verdict for c in shown).most_common()
        verdicts = [f"{pluralize(count, 'setting')} {verdict}" for verdict, count in counts]
    if left := len(comparisons) - len(shown):
        verdicts.append(f"no difference shown for {pluralize(left, 'other' if shown else 'setting')}")
    return f"On {comparisons[0].metric}: {'; '.join(verdicts)}." if verdicts else ""


def _claim(comparisons: list[Comparison], word: str, reference: str, metric: str) -> str:
    if not comparisons:
        return ""
    parts = [
        f"{c.label} by {number(abs(c.difference or 0.0))} (95 % interval {interval(c, signed=True)}, n={c.n})"
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


def _uncompared(study: StudyRecord, summaries: list[SettingSummary], metric: str) -> Verdict:
    measured = [summary for summary in summaries if metric in summary.metrics]
    chosen = best_of(study, settings_of(study)) if metric != study.metric else None
    lowest = direction(metric) < 0 or (study.mode == "min" and study.metric == metric)
    best = (min if lowest else max)(measured, key=lambda summary: summary.metrics[metric].mean)
    best = next((summary for summary in measured if chosen and summary.setting == chosen.id), best)
    result = best.metrics[metric]
    spread = f"95 % interval {interval(result)}, n={result.n}" if result.n > 1 else "one seed, so no interval"
    if len(summaries) == 1:
        return Verdict(
            f"{best.label} reaches {metric} {number(result.mean)} ({spread}); there is nothing to compare with."
        )
    reason = "The study names no baseline"
    if study.baseline:
        reason = "The study's baseline does not single out a setting to compare with"
    if chosen and best.setting == chosen.id:
        headline = f"The best setting by {study.metric} is {best.label}: {metric} {number(result.mean)} ({spread})."
    else:
        which = "lowest" if lowest else "highest"
        headline = f"The {which} mean {metric} is {number(result.mean)}, for {best.label} ({spread})."
    return Verdict(headline, [f"{reason}, so no difference between settings is tested here."])
