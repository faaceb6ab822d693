"""From a space to its trials: every setting with every seed, in an order and under names that never change."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mbcl.config.base import set_path
from mbcl.config.components import COMPONENTS, canonical, registry_of
from mbcl.errors import ConfigError
from mbcl.orchestration.search_space import domains
from mbcl.orchestration.search_space.conditions import applies
from mbcl.orchestration.search_space.domains import short
from mbcl.orchestration.search_space.schema import Space, SpaceFile, check_key, experiment_of
from mbcl.orchestration.search_space.trial_kinds import AnyExperiment
from mbcl.study.record import Drawn, TrialRecord
from mbcl.study.settings import columns_of, fits, flatten, singled_out

MOST_TRIALS = 10_000
"""More than anybody runs. Each is checked as a whole before the first begins, which takes some milliseconds."""
PROBES = 200
"""About how many extreme settings of an adaptive search are checked before it starts."""


@dataclass(frozen=True)
class TrialSpec:
    """One trial: a setting with one seed.

    Args:
        trial_id: ordinal and digest of the resolved experiment, the same on every run of the same space.
        ordinal: its place in the space's order.
        setting: which setting it belongs to; its other seeds share it.
        seed: the replicate.
        parameters: the swept keys with their resolved values, in the order of the space file.
        experiment: the resolved configuration.
    """

    trial_id: str
    ordinal: int
    setting: int
    seed: int
    parameters: dict[str, Any]
    experiment: AnyExperiment


@dataclass(frozen=True)
class Trials:
    """All trials of a space.

    Args:
        specs: in order; the seeds of a setting stand together. Of an adaptive search, those that are known.
        notes: what the user should know about them, one line each.
        total: how many there will be; of an adaptive search, at most.
        probes: settings at the ends of an adaptive search's domains, to be checked in place of those to come.
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
        """The numbers of workers that some trial may have, where enough fit, ascending."""
        most = max(space.resources.numbers_of_workers)
        found: set[int] = set()
        for spec in (*self.specs, *self.probes):
            found.update(space.kind.numbers_of_workers(spec.experiment, space.resources, most))
        return sorted(found)


def expand(file: SpaceFile) -> Trials:
    """The trials of a space: grids x draws x seeds.

    Raises:
        ConfigError: if a setting is not a valid experiment, is given twice, does not fit the number of workers, or if
            the baseline is none of them; if there are more trials than anybody runs.
    """
    space, source = file.space, str(file.path)
    _check_number(space, source)
    if space.search.adaptive:
        return _adaptive(file)
    settings: list[tuple[dict[str, Any], AnyExperiment]] = []
    seen: dict[str, int] = {}
    repeated = 0
    base = base_of(space, source)
    random = any(domains.is_drawn(domain) for domain in space.space.values())
    for chosen in _chosen(space, source):
        experiment = experiment_with(base, chosen, space, source)
        identity = identity_of(experiment)
        if identity in seen and not random:
            raise ConfigError(
                f"{source}: space: setting {len(settings)} ({_words(chosen)}) is the same experiment as setting "
                f"{seen[identity]}; remove one"
            )
        if identity in seen:
            repeated += 1
            continue
        seen[identity] = len(settings)
        settings.append((resolved(experiment, chosen), experiment))
    note = check_baseline(space, [found for _, found in settings], [parameters for parameters, _ in settings], source)
    left_out = f"{repeated} draws repeat an earlier setting and are left out" if repeated else ""
    total = len(settings) * len(space.seeds)
    specs = [
        spec
        for setting, (parameters, experiment) in enumerate(settings)
        for spec in replicate(space, setting, parameters, experiment, total)
    ]
    return Trials(tuple(specs), tuple(filter(None, (left_out, note))), total)


def _adaptive(file: SpaceFile) -> Trials:
    """What is known of an adaptive search beforehand: its size, and that the ends of its domains are experiments."""
    space, source = file.space, str(file.path)
    found, base = points(space), base_of(space, source)
    if not any(domains.is_drawn(point) for point in found):
        raise ConfigError(
            f"{source}: search.name: found {space.search.name}, but the space has only grids, so there is nothing to "
            f"draw; allowed: random, or a domain such as {{loguniform: [0.01, 1.0]}}"
        )
    chosen = [values for point in found for values in domains.probes(point, applies, max(8, PROBES // len(found)))]
    experiments = [experiment_with(base, values, space, source) for values in chosen]
    parameters = [resolved(experiment, values) for experiment, values in zip(experiments, chosen, strict=True)]
    note = check_baseline(space, experiments, parameters, source)
    total = sum(samples_of(space, point) for point in found) * len(space.seeds)
    probes = [
        next(replicate(space, total + number, swept, experiment, total))
        for number, (swept, experiment) in enumerate(zip(parameters, experiments, strict=True))
    ]
    return Trials((), (note,) if note else (), total, tuple(probes))


def _check_number(space: Space, source: str) -> None:
    """Refuse a space of more trials than anybody runs, before they are made.

    Raises:
        ConfigError: with their number.
    """
    draws = space.search.num_samples if any(domains.is_drawn(domain) for domain in space.space.values()) else 1
    each = draws * len(space.seeds)
    most = MOST_TRIALS // each
    if sum(1 for _ in itertools.islice(domains.points(space.space, applies), most + 1)) > most:
        # Keys that only some combinations have make fewer of them: how many could be counted only one by one.
        combinations = domains.num_combinations(space.space)
        raise ConfigError(
            f"{source}: space: found up to {combinations * each} trials (combinations of the grids: {combinations}, "
            f"draws of each: {draws}, seeds: {len(space.seeds)}), allowed: at most {MOST_TRIALS}"
        )


def samples_of(space: Space, point: Mapping[str, Any]) -> int:
    """How many settings are drawn for a point of the grids."""
    return space.search.num_samples if domains.is_drawn(point) else 1


def _chosen(space: Space, source: str) -> Iterator[dict[str, Any]]:
    """The values of the swept keys, setting by setting. Every grid point gets the same draws, so that they pair."""
    found = points(space)
    if space.search.num_samples > 1 and not any(domains.is_drawn(point) for point in found):
        raise ConfigError(
            f"{source}: search.num_samples: found {space.search.num_samples}, but the space has only grids, so every "
            f"draw would be the same; allowed: 1 (for replicates give more `seeds`)"
        )
    for number in range(space.search.num_samples):
        for point in found:
            yield domains.fill(point, applies, domains.drawn_from(space.search.seed, number))


def points(space: Space) -> list[dict[str, Any]]:
    """The points of a space's grids, in which only what is drawn is a domain."""
    return list(domains.points(space.space, applies))


def base_of(space: Space, source: str) -> dict[str, Any]:
    """The experiment that every setting starts from, resolved, as plain data."""
    return experiment_of(space.experiment, source).model_dump(mode="json")


def experiment_with(base: dict[str, Any], chosen: Mapping[str, Any], space: Space, source: str) -> AnyExperiment:
    """A base with the values of a setting.

    Raises:
        ConfigError: if that is no valid experiment; the text names the values.
    """
    content = copy.deepcopy(base)
    where = f"{source}: space ({_words(chosen)})"
    # Whole blocks first, then the names in them: a key inside one of them is meant for the new block.
    for key in sorted(chosen, key=lambda key: (key.count("."), not key.endswith(".name"))):
        part, _, parameter = key.partition(".")
        if part in COMPONENTS and parameter == "name" and canonical(part, chosen[key]) != content[part].get("name"):
            content[part] = {}  # the base's parameters are those of another part
        try:
            set_path(content, key, copy.deepcopy(chosen[key]))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    experiment = experiment_of(content, where)
    try:
        space.kind.check_resources(experiment, space.resources)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    return experiment


def _words(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {short(value)}" for key, value in chosen.items())


def identity_of(experiment: AnyExperiment) -> str:
    """What two experiments have in common if they are the same."""
    return json.dumps(experiment.resolved(), sort_keys=True)


def resolved(experiment: AnyExperiment, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The swept keys of a setting with the values that the experiment has for them."""
    dump = experiment.model_dump(mode="json")
    return {key: _get(dump, key) for key in chosen}


def _get(dump: Mapping[str, Any], key: str) -> Any:
    value: Any = dump
    for part in key.split("."):
        value = value[part] if isinstance(value, Mapping) and part in value else None
    return value


def replicate(
    space: Space, setting: int, parameters: dict[str, Any], experiment: AnyExperiment, total: int
) -> Iterator[TrialSpec]:
    """The trials of a setting, one a seed.

    Args:
        space: has the seeds.
        setting: its number.
        parameters: its swept keys.
        experiment: with any seed.
        total: how many trials the study has at most: names sort in their order.
    """
    width = max(3, len(str(total - 1)))
    for position, seed in enumerate(space.seeds):
        ordinal = setting * len(space.seeds) + position
        seeded = experiment.model_copy(update={"seed": seed})
        trial_id = f"{ordinal:0{width}d}-{seeded.digest}"
        yield TrialSpec(trial_id, ordinal, setting, seed, parameters, seeded)


def record_of(spec: TrialSpec, drawn: Drawn | None = None, evaluation: Mapping[str, Any] | None = None) -> TrialRecord:
    """The record of a trial of which nothing is done yet.

    Args:
        spec: the trial.
        drawn: what an adaptive search drew for it.
        evaluation: the block that takes the place of its experiment's own.
    """
    return TrialRecord(
        ordinal=spec.ordinal,
        setting=spec.setting,
        seed=spec.seed,
        sampler=spec.experiment.sampler.name,
        objective=spec.experiment.objective.name,
        parameters=spec.parameters,
        drawn=drawn,
        evaluation=dict(evaluation or {}),
    )


def resolved_baseline(space: Space) -> dict[str, Any]:
    """The baseline with published names replaced by ours: ``{sampler: {name: shuffle}}``."""
    result: dict[str, Any] = {}
    for key, wanted in space.baseline.items():
        part, _, parameter = key.partition(".")
        if part in COMPONENTS and parameter == "name" and isinstance(wanted, str):
            result[key] = registry_of(part).canonical(wanted)
            continue
        block = {"name": wanted} if key in COMPONENTS and isinstance(wanted, str) else wanted
        if key in COMPONENTS and isinstance(block, Mapping) and "name" in block:
            block = {**block, "name": registry_of(key).canonical(str(block["name"]))}
        result[key] = block
    return result


def check_baseline(
    space: Space, experiments: list[AnyExperiment], parameters: list[dict[str, Any]], source: str
) -> str:
    """Refuse a baseline that is none of the settings.

    Args:
        space: has the baseline.
        experiments: those of the settings.
        parameters: the swept keys of each.
        source: what an error line begins with.

    Returns:
        What a person should know about it, if anything.

    Raises:
        ConfigError: naming what is missing and what there is.
    """
    try:
        baseline = resolved_baseline(space)
    except ConfigError as error:
        raise ConfigError(f"{source}: baseline: {error}") from error
    dumps = [experiment.model_dump(mode="json") for experiment in experiments]
    full = [flatten(dump) for dump in dumps]
    for key, wanted in baseline.items():
        check_key(key, space.kind, f"{source}: baseline")
        if not any(fits(columns, {key: wanted}) for columns in full):
            found = [short(_get(dump, key)) for dump in dumps]
            raise ConfigError(
                f"{source}: baseline.{key}: found {short(space.baseline[key])}, which is none of the settings: "
                f"{', '.join(dict.fromkeys(found))}"
            )
    matching = [fits(columns, baseline) for columns in full]
    if not any(matching):
        raise ConfigError(f"{source}: baseline: no setting matches all of {short(space.baseline)}")
    if baseline and all(matching) and len(matching) > 1:
        return f"baseline {short(space.baseline)} is every setting, so nothing is compared with it and none is spared"
    # The report has the swept keys alone.
    pairs = zip(experiments, parameters, strict=True)
    columns = [columns_of(found.sampler.name, found.objective.name, swept) for found, swept in pairs]
    if baseline and len(matching) > 1 and singled_out(columns, baseline) != matching:
        raise ConfigError(
            f"{source}: baseline: found {short(space.baseline)}, which settings have by what is not swept; "
            f"allowed: swept keys, which are {', '.join(space.space)}"
        )
    return ""


def space_digest(trials: Trials, space: Space) -> str:
    """16 hexadecimal digits that are equal where two spaces ask for the same trials and rank them alike.

    Resources, wording and scheduler are left out: a study may be resumed on another machine, and keeps its question.
    """
    what: list[Any] = [spec.trial_id for spec in trials.specs]
    if space.search.adaptive:
        given = space.model_dump(mode="json", include={"space", "search", "seeds"})
        what = [base_of(space, ""), given, list(space.space)]
    asked = [what, space.search.metric, space.search.mode, resolved_baseline(space)]
    return hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=8).hexdigest()
