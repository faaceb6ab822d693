"""Comparisons of settings with the baseline, paired by seed, and their verdicts: pure functions of a study."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mbcl.errors import pluralize
from mbcl.study.best_settings import Champions, champions
from mbcl.study.metric_glossary import direction
from mbcl.study.nuisance import choices
from mbcl.study.paired import ALPHA, MIN_PAIRS, difference, equivalence_p, holm, improvement, sign_flip_p
from mbcl.study.record import StudyRecord
from mbcl.study.settings import Setting, baseline_for, baselines, measured_settings, settings_of
from mbcl.study.statistics import estimate, primary_metrics

EQUAL_STEPS, EQUAL_PASSES = "equal_steps", "equal_passes"
"""The controls: the baseline as the space has it, and trained for as many forward passes as the setting."""
CLAIMS = ("better", "worse", "higher", "lower")
"""The verdicts that claim a difference."""
EXPLORATORY = "exploratory"
"""The verdict on every metric but the headline."""


@dataclass(frozen=True)
class Comparison:
    """The difference between a setting and the baseline on one metric, paired by seed.

    The interval is the paired t interval, not adjusted for the number of comparisons. ``p`` is that of the sign-flip
    test, ``p_holm`` the same after Holm's correction for the ``comparisons`` of the study, and ``p_equivalence`` that
    of the two one-sided tests against the study's margin, also after Holm's correction. They exist on the headline
    alone: other metrics are exploratory, because with every further metric that is tested a study without any
    difference is more likely to claim one. :mod:`mbcl.study.paired` has the rule for the verdict.
    """

    metric: str
    setting: int
    label: str
    baseline: int
    baseline_label: str
    difference: float | None = None
    sd: float | None = None
    n: int = 0
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    comparisons: int = 0
    verdict: str = "not comparable (no seed finished in both)"
    improvement: float | None = None
    """Probability of improvement; that of a higher value where neither end is better."""
    p_equivalence: float | None = None
    candidates: int = 1
    """Number of settings of which this one is the best by ``chosen_by``; 1 if all settings are compared."""
    baseline_candidates: int = 1
    control: str = EQUAL_STEPS
    """With which control it is compared: :data:`EQUAL_STEPS` or :data:`EQUAL_PASSES`."""
    chosen_by: str = ""
    """The search metric by which both settings were chosen as the best of their kind; empty if all are compared."""
    diverged: int = 0
    """Number of seeds that have no pair because a training diverged: the others were chosen by their results."""
    differences: tuple[float, ...] = ()
    """The difference of every pair, in the order of the seeds."""
    seeds: tuple[int, ...] = ()
    """The seed of every pair."""

    @property
    def title(self) -> str:
        """The label, and the control if it is not that of equal steps."""
        return self.label if self.control == EQUAL_STEPS else f"{self.label}, equal passes"

    @property
    def flattered(self) -> str:
        """Why their difference is biased, because results have chosen the settings or the seeds; empty if it is not."""
        if self.candidates != self.baseline_candidates:
            return f"best of {self.candidates} against best of {self.baseline_candidates}"
        if self.chosen_by:
            return "chosen by the runs that measure them"
        return f"{pluralize(self.diverged, 'seed')} diverged" if self.diverged else ""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.ci_low is not None and self.ci_high is not None and (self.ci_low > 0 or self.ci_high < 0)

    @property
    def differs(self) -> bool:
        """Whether a difference is claimed."""
        return self.verdict in CLAIMS

    def equivalent(self, margin: float) -> bool:
        """Return whether the difference is claimed to be no larger than the margin of ``p_equivalence``."""
        if self.ci_low is None or self.ci_high is None or self.p_equivalence is None:
            return False
        inside = -margin < self.ci_low and self.ci_high < margin
        return inside and self.n >= MIN_PAIRS and self.p_equivalence < ALPHA


def compare(study: StudyRecord, metric: str) -> list[Comparison]:
    """Compare every other setting with the study's baseline on one final metric, paired by seed.

    Returns:
        One comparison for each setting that has a baseline, in the order of the study, followed by that with its
        control of equal forward passes, if it has one; empty without a baseline. On metrics other than the headline,
        the first of :func:`primary_metrics`, nothing is tested. If several settings match the baseline and no setting
        has a counterpart among them, or an adaptive search drew the values, the best setting of each sampler and
        objective by the search metric stands beside the best baseline, untested: the runs that chose them measure them.
    """
    controls = {setting.id: setting for setting in settings_of(study)}
    comparisons: list[Comparison] = []
    for pair in _pairs(study):
        comparisons.append(_pair(metric, pair, study))
        number = pair.setting.equal_passes
        if number is not None and number in controls:  # a control is missing while its nuisance values are not chosen
            comparison = _pair(metric, Champions(pair.setting, controls[number], pair.candidates), study)
            comparisons.append(replace(comparison, control=EQUAL_PASSES))
    comparisons = _with_candidates(study, comparisons)
    if metric not in primary_metrics(study)[:1]:
        return [replace(c, verdict=EXPLORATORY) if c.n else c for c in comparisons]
    tested = [c for c in comparisons if c.n > 1 and not c.flattered]
    p_values = [float(sign_flip_p([c.differences])[0]) for c in tested]
    equivalences = holm([equivalence_p(c.differences, study.equivalence) for c in tested])
    for comparison, *tests in zip(tested, p_values, holm(p_values), equivalences, strict=True):
        p, p_holm, p_equivalence = tests
        result = replace(comparison, p=p, p_holm=p_holm, p_equivalence=p_equivalence, comparisons=len(tested))
        comparisons[comparisons.index(comparison)] = result
    return [replace(c, verdict=_verdict(c, study.equivalence)) for c in comparisons]


def _with_candidates(study: StudyRecord, comparisons: list[Comparison]) -> list[Comparison]:
    """Return comparisons of settings whose nuisance values were chosen, with the numbers of their candidates."""
    tried = {choice.arm: len(choice.candidates) for choice in choices(study)}
    by_setting = {n: tried[arm] for n, (first, *_) in study.settings().items() if (arm := first.arm) is not None}
    return [
        replace(c, candidates=by_setting[c.setting], baseline_candidates=by_setting[c.baseline]) if by_setting else c
        for c in comparisons
    ]


def chooses(study: StudyRecord) -> bool:
    """Return whether results choose which settings are compared: the best, as there are no pairs of fixed ones."""
    settings, candidates = _compared(study)
    return len(candidates) > 1 and not _fixed_pairs(study, settings, candidates)


def _pairs(study: StudyRecord) -> list[Champions]:
    """Return the settings to compare with their baselines; those that results have chosen have several candidates."""
    settings, candidates = _compared(study)
    return _fixed_pairs(study, settings, candidates) or champions(study, settings, candidates)


def _compared(study: StudyRecord) -> tuple[list[Setting], list[Setting]]:
    """Return the settings that may be compared, and those of them that match the baseline."""
    settings = [setting for setting in measured_settings(study) if not setting.is_control]
    return settings, baselines(study, settings)


def _fixed_pairs(study: StudyRecord, settings: list[Setting], candidates: list[Setting]) -> list[Champions]:
    """Return the settings with one counterpart each among the candidates, whatever their results.

    Draws of an adaptive search agree only by chance, and results have chosen where they lie, so they have no pairs.
    """
    if any(trial.drawn for trial in study.trials.values()):
        return []
    found = [(setting, baseline_for(study.baseline, setting, candidates)) for setting in settings]
    return [Champions(setting, reference) for setting, reference in found if reference is not None]


def raced_seeds(study: StudyRecord) -> set[int]:
    """Return the seed by which early stopping picked the settings that finished; empty if it stopped none."""
    return {trial.stopped.first_seed for trial in study.trials.values() if trial.stopped}


def _pair(metric: str, pair: Champions, study: StudyRecord) -> Comparison:
    setting, reference = pair.setting, pair.reference
    ours, theirs = (
        {trial.seed: value for trial in s.finished if (value := trial.value_of(metric)) is not None}
        for s in (setting, reference)
    )
    shared = ours.keys() & theirs.keys()
    seeds = tuple(sorted(shared - raced_seeds(study) if len(shared) > 1 else shared))
    differences = tuple(difference(ours[seed], theirs[seed]) for seed in seeds)
    comparison = Comparison(
        metric,
        setting.id,
        setting.label,
        reference.id,
        reference.label,
        candidates=pair.candidates,
        baseline_candidates=pair.reference_candidates,
        chosen_by=study.metric if pair.chosen else "",
        diverged=len({trial.seed for s in (setting, reference) for trial in s.trials if trial.has_diverged}),
    )
    result = estimate(differences)
    if result is None:
        return comparison
    comparison = replace(
        comparison,
        difference=result.mean,
        sd=result.sd,
        n=result.n,
        differences=differences,
        seeds=seeds,
        improvement=improvement(differences, direction(metric) or 1),
    )
    return comparison if comparison.flattered else replace(comparison, ci_low=result.ci_low, ci_high=result.ci_high)


def _verdict(comparison: Comparison, margin: float) -> str:
    """Apply the rule of :mod:`mbcl.study.paired` to a comparison on the headline."""
    if not comparison.n:
        return comparison.verdict
    if comparison.flattered:
        return f"no claim ({comparison.flattered})"
    if comparison.excludes_zero and comparison.p_holm is not None and comparison.p_holm < ALPHA:
        higher = (comparison.difference or 0.0) > 0
        if direction(comparison.metric) == 0:
            return "higher" if higher else "lower"
        return "better" if higher == (direction(comparison.metric) > 0) else "worse"
    return f"no difference larger than {margin:g}" if comparison.equivalent(margin) else "undecided"
