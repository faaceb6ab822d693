"""Describe a space in lines for people: its domains, its search, and its scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mbcl.config.experiment import Experiment
from mbcl.errors import pluralize
from mbcl.orchestration.search_space import domains
from mbcl.orchestration.search_space.expansion import Trials, base_of, points, samples_of
from mbcl.orchestration.search_space.schedulers import Scheduler, build
from mbcl.orchestration.search_space.schema import Space, experiment_of
from mbcl.study.comparisons import chooses, compare
from mbcl.study.nuisance import first_candidates
from mbcl.study.power import TYPICAL_SPREADS, describe
from mbcl.study.record import StudyRecord
from mbcl.study.settings import flatten


def domain_lines(space: Space) -> Iterator[str]:
    """Yield one line a swept key; no lines if the space has only grids."""
    if any(domains.is_drawn(domain) for domain in space.space.values()):
        for key, domain in space.space.items():
            yield f"{key}: {domains.describe(domain)}"


def counts(space: Space, trials: Trials) -> str:
    """Format the number of trials of a study: ``6 trials: 3 settings x 2 seeds``."""
    total = trials.total
    if space.nuisance is None:
        return f"{pluralize(total, 'trial')}: {by_seeds(total // len(space.seeds), len(space.seeds))}"
    tuning = [spec for spec in trials.specs if spec.stage == "tuning"]
    candidates = by_seeds(len(tuning) // len(space.nuisance.seeds), len(space.nuisance.seeds), "candidate")
    measured = by_seeds((total - len(tuning)) // len(space.seeds), len(space.seeds))
    return f"{pluralize(total, 'trial')}: {candidates} to choose {', '.join(space.nuisance.keys)}, then {measured}"


def by_seeds(settings: int, seeds: int, noun: str = "setting") -> str:
    """Format a number of settings and a number of seeds: ``3 settings x 2 seeds``."""
    return f"{pluralize(settings, noun)} x {pluralize(seeds, 'seed')}"


def plan_lines(space: Space) -> Iterator[str]:
    """Yield lines about the search, if anything is drawn, and about the scheduler, if it stops trials."""
    search, grid = space.search, points(space)
    drawn = [point for point in grid if domains.is_drawn(point)]
    if drawn:
        where = f" for each of {len(drawn)} points of the grids" if len(drawn) > 1 else ""
        verb = "proposes" if search.adaptive else "draws"
        criterion = f" by {search.metric} ({search.mode}), the mean over the seeds" if search.adaptive else ""
        num_settings = sum(samples_of(space, point) for point in grid)
        seeds = space.nuisance.seeds if space.nuisance else space.seeds
        size = by_seeds(num_settings, len(seeds), "candidate" if space.nuisance else "setting")
        yield f"search: {search.name} {verb} {pluralize(search.num_samples, 'setting')}{where}{criterion}; {size}"
    if space.nuisance is not None:
        keys = ", ".join(space.nuisance.keys)
        yield (
            f"nuisance: of every setting the candidate with the best {search.metric} over seeds "
            f"{', '.join(map(str, space.nuisance.seeds))} gives its {keys}; seeds "
            f"{', '.join(map(str, space.seeds))} measure it"
        )
    rule = build(space.scheduler)
    if rule.stops:
        yield f"scheduler: {rule.describe(search.metric)}"
        survivors = f"; who survives runs seeds {', '.join(map(str, space.seeds[1:]))}, too" if space.seeds[1:] else ""
        base = experiment_of(space.experiment, "")
        epochs_range = _range_of(space, "train.epochs", space.kind.num_epochs(base))
        # The baseline is exempt from the rule but not from max_t.
        exempt = space.baseline and not search.adaptive and all(rule.end(epochs) == epochs for epochs in epochs_range)
        baseline = "; the baseline is never stopped" if exempt else ""
        per_point = ", those of each point of the grids by themselves" if search.adaptive and len(grid) > 1 else ""
        yield f"scheduler: settings race on seed {space.seeds[0]}{per_point}{survivors}{baseline}"
        yield from _pitfalls(rule, epochs_range)
        if isinstance(base, Experiment) and search.metric.startswith("val/"):
            min_eval_every = _range_of(space, "train.eval_every", base.train.eval_every)[0]
            yield from _measured_too_late(rule, epochs_range, min_eval_every)


def power_lines(space: Space, study: StudyRecord) -> Iterator[str]:
    """Yield what the seeds of a study can show once they have run; no lines if nothing is compared.

    The power is that of a comparison of fixed settings, or of settings that other seeds have chosen.
    """
    study = first_candidates(study)
    if space.baseline and (space.search.adaptive or chooses(study)):
        yield (
            "the best settings stand beside the best of the baseline, and the runs that choose them measure them, so "
            "no difference is tested; nuisance keys are chosen by seeds of their own"
        )
        return
    comparisons = len(compare(study, study.metric))
    if not comparisons:
        return
    base = experiment_of(space.experiment, "")
    data = base.data.name if isinstance(base, Experiment) else ""
    names = {flatten(trial.parameters).get("data.name", data) for trial in study.trials.values()}
    spread, origin = TYPICAL_SPREADS.get(names.pop() if len(names) == 1 else "", (None, ""))
    # Early stopping picks the settings that finish by the first seed, which then takes no part in comparisons.
    seeds = space.seeds[1:] or space.seeds if build(space.scheduler).stops else space.seeds
    yield from describe(len(seeds), comparisons, space.equivalence, spread, origin)


def _range_of(space: Space, key: str, default: int) -> list[int]:
    """Return the smallest and the largest value of an integer key: those of its domain, or the base's value twice."""
    domain = space.space.get(key)
    if isinstance(domain, domains.SameAs):
        value: Any = base_of(space)
        for word in domain.key.split("."):
            value = value.get(word) if isinstance(value, dict) else None
        return _range_of(space, domain.key, value if isinstance(value, int) else default)
    if domain is None:
        return [default, default]
    values = [value for value in domain.values if isinstance(value, int)] or [default]
    return [min(values), max(values) - (domain.kind == "randint")]


def _pitfalls(rule: Scheduler, epochs_range: list[int]) -> Iterator[str]:
    """Yield a note if the scheduler ends all trials early or can stop none, whatever their number of epochs."""
    low, high = epochs_range
    if rule.end(low) < low:
        epochs = pluralize(low, "epoch")
        yield f"note: scheduler.max_t {rule.end(low)} is below the {epochs}: all end there, none finishes"
    elif rule.grace_period >= high:
        epochs = pluralize(high, "epoch")
        yield f"note: scheduler.grace_period {rule.grace_period} is no less than the {epochs}: nobody is stopped"


def _measured_too_late(rule: Scheduler, epochs_range: list[int], eval_every: int) -> Iterator[str]:
    """Yield a note if a metric, measured every ``eval_every`` epochs and at the end, comes too late to stop a trial."""
    low, high = epochs_range
    if rule.end(low) == low and rule.grace_period < high <= eval_every:
        yield (
            f"note: train.eval_every {eval_every} is no less than the {pluralize(high, 'epoch')}: the metric is "
            "measured at the end alone, and nobody is stopped"
        )
