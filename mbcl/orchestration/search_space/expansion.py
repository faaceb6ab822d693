"""Expansion of a space to its trials: every setting with every seed, in a deterministic order under stable names."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mbcl.config.base import set_path
from mbcl.config.components import COMPONENTS, canonical
from mbcl.config.experiment import UNCOUNTED
from mbcl.errors import ConfigError
from mbcl.orchestration.search_space import domains
from mbcl.orchestration.search_space.arms import check_arms
from mbcl.orchestration.search_space.baseline import check_baseline, resolved_baseline, value_at
from mbcl.orchestration.search_space.conditions import applies
from mbcl.orchestration.search_space.controls import Configured, Controls, SampleReader, equal_passes
from mbcl.orchestration.search_space.domains import short
from mbcl.orchestration.search_space.schema import Space, SpaceFile, experiment_of
from mbcl.orchestration.search_space.ties import resolve_ties
from mbcl.orchestration.search_space.trial_kinds import AnyExperiment, identity_of
from mbcl.study.record import EQUIVALENCE, Drawn, Stage, TrialRecord

MAX_TRIALS = 10_000
"""Maximum trials of a study. Each is validated before the first starts, which takes some milliseconds a trial."""
PROBES = 200
"""Approximate number of extreme settings of an adaptive search that are validated before it starts."""


@dataclass(frozen=True)
class TrialSpec:
    """One trial: a setting with one seed.

    Args:
        trial_id: ordinal and digest of the resolved experiment, the same on every run of the same space. The place of
            data counts where it is swept.
        ordinal: position in the space's order.
        setting: number of its setting, shared by the setting's other seeds.
        seed: the replicate.
        parameters: the swept keys with their resolved values, in the order of the space file.
        experiment: the resolved configuration.
        is_control: whether the setting was added as a control; see :mod:`.controls`.
        equal_passes: number of the setting that is its control of equal forward passes; None without one.
        stage, arm, nuisance: as in :class:`mbcl.study.record.TrialRecord`; see :mod:`.nuisance`.
    """

    trial_id: str
    ordinal: int
    setting: int
    seed: int
    parameters: dict[str, Any]
    experiment: AnyExperiment
    is_control: bool = False
    equal_passes: int | None = None
    stage: Stage = ""
    arm: int | None = None
    nuisance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trials:
    """All trials of a space.

    Args:
        specs: in order, the seeds of a setting one after another. Of an adaptive search, the trials drawn so far.
        notes: remarks for the user, one line each.
        total: number of trials; of an adaptive search, the maximum.
        probes: settings at the ends of an adaptive search's domains, validated in place of the settings to come.
    """

    specs: tuple[TrialSpec, ...]
    notes: tuple[str, ...]
    total: int
    probes: tuple[TrialSpec, ...] = ()

    @property
    def by_id(self) -> dict[str, TrialSpec]:
        """The trials by name."""
        return {spec.trial_id: spec for spec in self.specs}

    def numbers_of_workers(self, space: Space) -> list[int]:
        """Return the numbers of workers that any trial may have on a cluster that is large enough, ascending."""
        limit = max(space.resources.numbers_of_workers)
        numbers: set[int] = set()
        for spec in (*self.specs, *self.probes):
            numbers.update(space.kind.numbers_of_workers(spec.experiment, space.resources, limit))
        return sorted(numbers)


def expand(file: SpaceFile) -> Trials:
    """Return the trials of a space: grids x draws x seeds.

    Raises:
        ConfigError: if a setting is no valid experiment, occurs twice in a space without draws, or does not fit the
            number of workers; if the baseline is none of the settings; if there are more than ``MAX_TRIALS`` trials.
    """
    with file.name_in_errors():
        _check_number(file.space)
        return _expand_adaptive(file.space) if file.space.search.adaptive else _expand(file.space)


def _expand(space: Space) -> Trials:
    """Return the trials of a space whose settings are known in advance, but for those that nuisance keys add later."""
    settings, repeated = _settings(space)
    note = check_baseline(space, settings)
    controls = Controls((), {}, ())
    if space.control is not None:
        controls = equal_passes(settings, resolved_baseline(space), SampleReader())
    num_given = len(settings)
    settings += controls.settings
    left_out = f"{repeated} draws repeat an earlier setting and are left out" if repeated else ""
    notes = tuple(filter(None, (left_out, note, *controls.notes)))
    arms = check_arms(settings) if space.nuisance else {}
    seeds = space.nuisance.seeds if space.nuisance else space.seeds
    total = len(settings) * len(seeds) + len(set(arms.values())) * len(space.seeds) * bool(space.nuisance)
    if total > MAX_TRIALS:
        raise ConfigError(f"space: found {total} trials with controls and choices, allowed: at most {MAX_TRIALS}")
    specs = [
        replace(
            spec,
            is_control=number >= num_given,
            equal_passes=controls.control_of.get(number),
            stage="tuning" if space.nuisance else "",
            arm=arms.get(setting.arm),
        )
        for number, setting in enumerate(settings)
        for spec in replicate(seeds, number, setting.parameters, setting.experiment, total, nuisance=setting.nuisance)
    ]
    return Trials(tuple(specs), notes, total)


def _settings(space: Space) -> tuple[list[Configured], int]:
    """Return the distinct settings of a space, and how many draws repeat one of them."""
    settings: list[Configured] = []
    seen: dict[str, int] = {}
    repeated = 0
    base, nuisance_keys = base_of(space), space.nuisance_keys
    random = any(domains.is_drawn(domain) for domain in space.space.values())
    for chosen in _chosen(space):
        experiment = experiment_with(base, chosen, space)
        identity = identity_of(experiment)
        if identity in seen and not random:
            raise ConfigError(
                f"space: setting {len(settings)} ({_format_values(chosen)}) is the same experiment as "
                f"setting {seen[identity]}; remove one"
            )
        if identity in seen:
            repeated += 1
            continue
        seen[identity] = len(settings)
        values = resolved(experiment, chosen)
        parameters = {key: value for key, value in values.items() if key not in nuisance_keys}
        nuisance = {key: value for key, value in values.items() if key in nuisance_keys}
        arm = json.dumps({key: domains.plain(chosen[key]) for key in parameters})
        settings.append(Configured(parameters, experiment, nuisance, arm))
    return settings, repeated


def _expand_adaptive(space: Space) -> Trials:
    """Return the size of an adaptive search, and its probes, which are validated here."""
    grid, base = points(space), base_of(space)
    if not any(domains.is_drawn(point) for point in grid):
        raise ConfigError(
            f"search.name: found {space.search.name}, but the space has only grids, so there is nothing to "
            f"draw; allowed: random, or a domain such as {{loguniform: [0.01, 1.0]}}"
        )
    chosen = [values for point in grid for values in domains.probes(point, applies, max(8, PROBES // len(grid)))]
    experiments = [experiment_with(base, values, space) for values in chosen]
    settings = [Configured(resolved(each, values), each) for each, values in zip(experiments, chosen, strict=True)]
    note = check_baseline(space, settings)
    total = sum(samples_of(space, point) for point in grid) * len(space.seeds)
    probes = [
        next(replicate(space.seeds, total + number, setting.parameters, setting.experiment, total))
        for number, setting in enumerate(settings)
    ]
    return Trials((), (note,) if note else (), total, tuple(probes))


def _check_number(space: Space) -> None:
    """Refuse a space of more than ``MAX_TRIALS`` trials before they are made.

    Raises:
        ConfigError: with an upper bound of their number.
    """
    draws = space.search.num_samples if any(domains.is_drawn(domain) for domain in space.space.values()) else 1
    seeds = space.nuisance.seeds if space.nuisance else space.seeds
    trials_per_point = draws * len(seeds)
    max_points = MAX_TRIALS // trials_per_point
    if sum(1 for _ in itertools.islice(domains.points(space.space, applies), max_points + 1)) > max_points:
        # An upper bound: conditional keys reduce the number, and the exact one is known only by enumeration.
        combinations = domains.num_combinations(space.space)
        raise ConfigError(
            f"space: found up to {combinations * trials_per_point} trials (combinations of the grids: "
            f"{combinations}, draws of each: {draws}, seeds: {len(seeds)}), allowed: at most {MAX_TRIALS}"
        )


def samples_of(space: Space, point: Mapping[str, Any]) -> int:
    """Return the number of settings that are drawn for a point of the grids."""
    return space.search.num_samples if domains.is_drawn(point) else 1


def _chosen(space: Space) -> Iterator[dict[str, Any]]:
    """Yield the values of the swept keys, setting by setting. All grid points get the same draws, so that they pair."""
    grid = points(space)
    if space.search.num_samples > 1 and not any(domains.is_drawn(point) for point in grid):
        raise ConfigError(
            f"search.num_samples: found {space.search.num_samples}, but the space has only grids, so every "
            f"draw would be the same; allowed: 1 (for replicates give more `seeds`)"
        )
    for number in range(space.search.num_samples):
        for point in grid:
            yield domains.fill(point, applies, domains.drawn_from(space.search.seed, number))


def points(space: Space) -> list[dict[str, Any]]:
    """Return the points of a space's grids. The domains that remain in them are drawn."""
    return list(domains.points(space.space, applies))


def base_of(space: Space) -> dict[str, Any]:
    """Return the experiment that all settings modify, resolved, as plain data."""
    return experiment_of(space.experiment, "").model_dump(mode="json")


def experiment_with(base: dict[str, Any], chosen: Mapping[str, Any], space: Space) -> AnyExperiment:
    """Return the experiment of a setting: the base with the setting's values.

    Raises:
        ConfigError: if the result is no valid experiment; the text names the values.
    """
    content = copy.deepcopy(base)
    where = f"space ({_format_values(chosen)})"
    # Whole blocks first, then the names in them: a key inside one of them is meant for the new block.
    for key in sorted(chosen, key=lambda key: (key.count("."), not key.endswith(".name"))):
        part, _, parameter = key.partition(".")
        if part in COMPONENTS and parameter == "name" and canonical(part, chosen[key]) != content[part].get("name"):
            content[part] = {}  # the base's parameters belong to another component
        try:
            set_path(content, key, copy.deepcopy(chosen[key]))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    try:
        resolve_ties(content)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    experiment = experiment_of(content, where)
    space.kind.check_resources(experiment, space.resources)
    return experiment


def _format_values(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {short(value)}" for key, value in chosen.items())


def resolved(experiment: AnyExperiment, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the swept keys of a setting with the experiment's values, in which defaults are filled in."""
    dump = experiment.model_dump(mode="json")
    return {key: value_at(dump, key) for key in chosen}


def replicate(
    seeds: Sequence[int],
    setting: int,
    parameters: dict[str, Any],
    experiment: AnyExperiment,
    total: int,
    first: int | None = None,
    nuisance: Mapping[str, Any] | None = None,
) -> Iterator[TrialSpec]:
    """Yield the trials of a setting, one a seed; ``experiment`` may have any. ``nuisance`` has its nuisance keys.

    Ordinals count on from ``first``, by default as if all settings before had as many seeds. They are padded to the
    width of ``total``, the maximum trials, so that names sort in the order of trials.
    """
    width = max(3, len(str(total - 1)))
    nuisance = dict(nuisance or {})
    for position, seed in enumerate(seeds):
        ordinal = (setting * len(seeds) if first is None else first) + position
        seeded = experiment.model_copy(update={"seed": seed})
        trial_id = f"{ordinal:0{width}d}-{_digest(seeded, [*parameters, *nuisance])}"
        yield TrialSpec(trial_id, ordinal, setting, seed, parameters, seeded, nuisance=nuisance)


def _digest(experiment: AnyExperiment, swept: Sequence[str]) -> str:
    """Return the digest of an experiment; that of a swept place or number of threads, too, which tells settings apart.

    Example: a grid of two files of ids for ``data.apart``.
    """
    found = {key for key in UNCOUNTED if any(f"{key}.".startswith(f"{each}.") for each in swept)}
    if not found:
        return experiment.digest
    resolved = experiment.resolved()
    text = json.dumps([experiment.digest, {key: value_at(resolved, key) for key in sorted(found)}])
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def record_of(spec: TrialSpec, drawn: Drawn | None = None, evaluation: Mapping[str, Any] | None = None) -> TrialRecord:
    """Return the record of a trial that has not started; ``evaluation`` overrides the experiment's own block."""
    return TrialRecord(
        ordinal=spec.ordinal,
        setting=spec.setting,
        seed=spec.seed,
        sampler=spec.experiment.sampler.name,
        objective=spec.experiment.objective.name,
        parameters=spec.parameters,
        drawn=drawn,
        evaluation=dict(evaluation or {}),
        is_control=spec.is_control,
        equal_passes=spec.equal_passes,
        stage=spec.stage,
        arm=spec.arm,
        nuisance=spec.nuisance,
    )


def space_digest(trials: Trials, space: Space) -> str:
    """Return 16 hexadecimal digits that are equal if two spaces define the same trials and the same ranking.

    Name, question, resources and scheduler do not count: a study may be resumed with others, for example on another
    machine. The margin of equivalence counts, because it must not follow the results.
    """
    identity: list[Any] = [spec.trial_id for spec in trials.specs]
    if space.search.adaptive:
        search = space.model_dump(mode="json", include={"space", "search", "seeds"})
        identity = [base_of(space), search, list(space.space)]
    content: list[Any] = [identity, space.search.metric, space.search.mode, resolved_baseline(space)]
    if space.nuisance is not None:
        content += [space.nuisance.model_dump(mode="json"), space.seeds]
    if space.equivalence != EQUIVALENCE:  # left out otherwise, so that older studies can be resumed
        content.append(space.equivalence)
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()
