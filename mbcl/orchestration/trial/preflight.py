"""Checks before the first trial: the data and models of every setting, and storage that all nodes can see."""

from __future__ import annotations

import copy
import hashlib
import json
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from mbcl.config.base import set_path
from mbcl.config.evaluation import Evaluation
from mbcl.config.experiment import PLACES, Experiment, identity
from mbcl.engine import MemoryNeed
from mbcl.errors import ConfigError, MbclError
from mbcl.io.store import Store, is_uri, open_store, write_text
from mbcl.models import digest_of_weights
from mbcl.orchestration.search_space.baseline import value_at
from mbcl.orchestration.search_space.expansion import TrialSpec
from mbcl.orchestration.search_space.trial_kinds import AnyExperiment
from mbcl.samplers import PoolSampler
from mbcl.study.record import WEIGHTS, TrialRecord

SHARED_FILE = ".shared"


@dataclass(frozen=True)
class PreflightReport:
    """The result of the checks.

    Args:
        max_pools: by setting, the maximum number of pools of a plan; 0 for samplers without pools.
        planning_cost: by setting, a description of what planning costs; empty if it costs nothing.
        notes: notes for the user, one line each.
        memory: the most memory that a training takes beyond idle processes; None if unknown.
        contents: by setting, the digest of its data set's content.
        sources: by setting, what its samples were made from, where other sources make others.
        weights: the digests of the files of ``encoder.weights``, by :data:`WEIGHTS` and place.
    """

    max_pools: dict[int, int]
    planning_cost: dict[int, str]
    notes: tuple[str, ...]
    memory: MemoryNeed | None = None
    contents: dict[int, str] = field(default_factory=dict)
    sources: dict[int, dict[str, str]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)


def distinct_experiments(specs: Sequence[TrialSpec]) -> dict[int, AnyExperiment]:
    """Return the first experiment of every setting; the result of the checks does not depend on the seed."""
    return {spec.setting: spec.experiment for spec in reversed(specs)}


def check_data(experiments: Mapping[int, AnyExperiment], source: str) -> PreflightReport:
    """Load every data set once, one at a time, build every model on it once, and check the settings against them.

    Args:
        experiments: pretrainings by setting.
        source: name of the space file, the prefix of error messages.

    Raises:
        ConfigError: if data are missing, or a setting does not fit them.
    """
    # In a grid the last key varies fastest, so settings with the same data need not be adjacent.
    by_data: dict[str, dict[int, Experiment]] = {}
    for setting, experiment in sorted(experiments.items(), key=lambda item: item[0]):
        assert isinstance(experiment, Experiment)
        by_data.setdefault(experiment.data.model_dump_json(), {})[setting] = experiment
    reports: dict[int, _SettingReport] = {}
    for group in by_data.values():
        reports.update(_check_on_same_data(group, source))
    locations = {str(cast(Experiment, each).encoder.get("weights") or "") for each in experiments.values()} - {""}
    settings = sorted(experiments)
    return PreflightReport(
        {setting: reports[setting].max_pools for setting in settings},
        {setting: reports[setting].planning_cost for setting in settings},
        tuple(dict.fromkeys(note for setting in settings for note in reports[setting].notes)),
        MemoryNeed.largest(report.memory for report in reports.values()),
        {setting: reports[setting].content for setting in settings},
        {setting: reports[setting].sources for setting in settings},
        {f"{WEIGHTS} {location}": digest_of_weights(location) for location in sorted(locations)},
    )


def data_key(experiment: Experiment, places: Mapping[str, str] | None = None) -> str:
    """Return the name of a data set with a digest of its settings, wherever its files are.

    ``places`` are those that the space sweeps, from :func:`swept_places`. They tell data sets of one study apart.
    """
    settings = json.dumps(identity(experiment.resolved())["data"], sort_keys=True)
    key = f"{experiment.data.name}-{hashlib.blake2b(settings.encode(), digest_size=4).hexdigest()}"
    return " ".join([key, *(f"{place}={value}" for place, value in (places or {}).items())])


def swept_places(trial: TrialSpec | TrialRecord) -> dict[str, str]:
    """Return the places of data that are among a trial's swept keys, or in a swept block."""
    content: dict[str, Any] = {}
    for key, value in sorted((trial.parameters | trial.nuisance).items()):
        if key.split(".")[0] == "data":
            set_path(content, key, copy.deepcopy(value))
    return {place: value for place in PLACES if (value := value_at(content, place)) is not None}


class _SettingReport(NamedTuple):
    """The result of the checks of one setting, with the fields of :class:`PreflightReport`."""

    max_pools: int
    planning_cost: str
    notes: list[str]
    memory: MemoryNeed
    content: str
    sources: dict[str, str]


def _check_on_same_data(group: dict[int, Experiment], source: str) -> dict[int, _SettingReport]:
    """Check the settings that share a data set, which is freed on return."""
    from mbcl import engine

    data: engine.SplitData | None = None
    memory: dict[str, MemoryNeed] = {}
    checked_evaluations: list[Evaluation] = []
    reports: dict[int, _SettingReport] = {}
    for setting, experiment in group.items():
        with errors_of_experiment(source):
            tracking = engine.check_trackers(experiment)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if data is None:
                    data = engine.load_data(experiment.data, seed=experiment.seed)
                sizes = engine.data_sizes(experiment, data)
                if experiment.evaluation not in checked_evaluations:
                    checked_evaluations.append(experiment.evaluation)
                    name, verify = experiment.data.name, experiment.data.verify
                    engine.check_evaluation(experiment.evaluation, data, name=name, verify=verify)
            model = repr((experiment.encoder, experiment.projector, experiment.train))
            if model not in memory:
                memory[model] = engine.memory_need(experiment, data, engine.check_model(experiment, data))
        max_pools = max(
            cast(PoolSampler, data.samples.bind(sampler)).planned_pools(sizes.num_train)
            if isinstance(sampler, PoolSampler)
            else 0
            for sampler in experiment.samplers().values()
        )
        notes = [*tracking, *(str(warning.message) for warning in caught)]
        cost, sources = engine.planning_cost(experiment, data.samples), dict(sizes.sources)
        reports[setting] = _SettingReport(max_pools, cost, notes, memory[model], data.content(), sources)
    return reports


@contextmanager
def errors_of_experiment(source: str) -> Iterator[None]:
    """Prefix the key in the message of a ConfigError with the file and the block."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{source}: experiment.{error}") from error


def check_data_on_cluster(
    experiments: Mapping[int, AnyExperiment], source: str, resources: dict[str, float]
) -> PreflightReport:
    """Run :func:`check_data` as a task on a node that trains, where the data will be read.

    Args:
        experiments: pretrainings by setting.
        source: name of the space file, the prefix of error messages.
        resources: the custom resources of nodes that train.

    Raises:
        ConfigError: as :func:`check_data`.
    """
    import ray

    try:
        task = ray.remote(num_cpus=1)(check_data).options(resources=resources)
        report: PreflightReport = ray.get(task.remote(experiments, source))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, MbclError):
            raise ConfigError(str(error.cause)) from error
        raise
    return report


def check_shared(store: Store) -> None:
    """Check that every node of the cluster sees a local results folder: each reads back a token written there.

    Raises:
        ConfigError: naming a node that does not.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if is_uri(store.uri):
        return
    own_id = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own_id]
    if not others:
        return
    token = uuid.uuid4().hex
    write_text(store, SHARED_FILE, token)
    try:
        read_token = ray.remote(num_cpus=0, max_retries=2)(_read_token)
        for node in others:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            if ray.get(read_token.options(scheduling_strategy=strategy).remote(store.uri)) != token:
                raise ConfigError(
                    f"--results-dir: node {node['NodeManagerAddress']} of the cluster does not see {store.uri}; "
                    f"several nodes need storage that they share or a URI such as s3://bucket/results"
                )
    finally:
        store.delete(SHARED_FILE)


def _read_token(uri: str) -> str:
    try:
        return open_store(uri).read_bytes(SHARED_FILE).decode()
    except OSError:
        return ""
