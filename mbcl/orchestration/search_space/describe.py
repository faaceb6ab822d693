"""What a space asks for, in lines for people: its domains, how they are searched, and who stops trials."""

from __future__ import annotations

from collections.abc import Iterator

from mbcl.config.experiment import Experiment
from mbcl.errors import pluralize
from mbcl.orchestration.search_space import domains
from mbcl.orchestration.search_space.expansion import points, samples_of
from mbcl.orchestration.search_space.schedulers import Scheduler, build
from mbcl.orchestration.search_space.schema import Space, experiment_of


def domain_lines(space: Space) -> Iterator[str]:
    """A line a swept key, if anything is drawn."""
    if any(domains.is_drawn(domain) for domain in space.space.values()):
        for key, domain in space.space.items():
            yield f"{key}: {domains.describe(domain)}"


def by_seeds(settings: int, seeds: int) -> str:
    """So many settings, each with so many seeds."""
    return f"{pluralize(settings, 'setting')} x {pluralize(seeds, 'seed')}"


def plan_lines(space: Space) -> Iterator[str]:
    """How settings are drawn, where they are, and who stops trials, where anybody does."""
    search, found = space.search, points(space)
    drawn = [point for point in found if domains.is_drawn(point)]
    if drawn:
        where = f" for each of {len(drawn)} points of the grids" if len(drawn) > 1 else ""
        verb = "proposes" if search.adaptive else "draws"
        by = f" by {search.metric} ({search.mode}), the mean over the seeds" if search.adaptive else ""
        settings = sum(samples_of(space, point) for point in found)
        each = by_seeds(settings, len(space.seeds))
        yield f"search: {search.name} {verb} {pluralize(search.num_samples, 'setting')}{where}{by}; {each}"
    rule = build(space.scheduler)
    if rule.stops:
        yield f"scheduler: {rule.describe(search.metric)}"
        others = f"; who survives runs seeds {', '.join(map(str, space.seeds[1:]))}, too" if space.seeds[1:] else ""
        own = experiment_of(space.experiment, "")
        lengths = _ends(space, "train.epochs", space.kind.num_epochs(own))
        # max_t ends it like all others
        spares = space.baseline and not search.adaptive and all(rule.end(epochs) == epochs for epochs in lengths)
        spared = "; the baseline is never stopped" if spares else ""
        apart = ", those of each point of the grids by themselves" if search.adaptive and len(found) > 1 else ""
        yield f"scheduler: settings race on seed {space.seeds[0]}{apart}{others}{spared}"
        yield from _pitfalls(rule, lengths)
        if isinstance(own, Experiment) and search.metric.startswith("val/"):
            yield from _measured_too_late(rule, lengths, _ends(space, "train.eval_every", own.train.eval_every)[0])


def _ends(space: Space, key: str, own: int) -> list[int]:
    """The least and the most that a trial has of a number: the base's own, or the ends of what is swept."""
    domain = space.space.get(key)
    if domain is None:
        return [own, own]
    values = [value for value in domain.values if isinstance(value, int)] or [own]
    return [min(values), max(values) - (domain.kind == "randint")]


def _pitfalls(rule: Scheduler, lengths: list[int]) -> Iterator[str]:
    """What a person may not have meant, where it holds for trials of all lengths."""
    least, most = lengths
    if rule.end(least) < least:
        yield f"note: scheduler.max_t {rule.end(least)} is below the {least} epochs: all end there, none finishes"
    elif rule.grace_period >= most:
        yield f"note: scheduler.grace_period {rule.grace_period} is no less than the {most} epochs: nobody is stopped"


def _measured_too_late(rule: Scheduler, lengths: list[int], eval_every: int) -> Iterator[str]:
    """The same of a metric that is measured every so many epochs, and at the end."""
    least, most = lengths
    if rule.end(least) == least and rule.grace_period < most <= eval_every:
        yield (
            f"note: train.eval_every {eval_every} is no less than the {most} epochs: the metric is measured at the end "
            "alone, and nobody is stopped"
        )
