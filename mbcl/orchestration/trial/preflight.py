"""What is checked before any trial starts: data and models against every setting, and storage that all nodes see."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mbcl.config.experiment import Experiment
from mbcl.errors import ConfigError, MbclError
from mbcl.io.store import Store, is_uri, open_store, write_text
from mbcl.orchestration.search_space.expansion import TrialSpec
from mbcl.samplers import PoolSampler

SHARED_FILE = ".shared"


@dataclass(frozen=True)
class PreflightReport:
    """What the data say about the settings.

    Args:
        pools: by setting, how many pools a plan has at most; 0 for samplers without.
        planning: by setting, what planning costs, in words; empty where it costs nothing.
        notes: what a user should know, one line each.
    """

    pools: dict[int, int]
    planning: dict[int, str]
    notes: tuple[str, ...]


def distinct_experiments(specs: Sequence[TrialSpec]) -> dict[int, dict[str, Any]]:
    """By setting, its experiment as plain data: seeds change neither the data's size nor what fits them."""
    return {spec.setting: spec.experiment.model_dump(mode="json") for spec in reversed(specs)}


def check_data(experiments: dict[int, dict[str, Any]], source: str) -> PreflightReport:
    """Load every data set once, one at a time, build every model on it once, and check what only they can tell.

    Args:
        experiments: by setting, as plain data.
        source: what an error line begins with.

    Raises:
        ConfigError: if data are missing, or an experiment does not fit them.
    """
    parsed = {setting: Experiment.model_validate(experiments[setting]) for setting in sorted(experiments)}
    # Of a grid the last key varies fastest: settings with the same data need not follow each other.
    together: dict[str, dict[int, Experiment]] = {}
    for setting, experiment in parsed.items():
        together.setdefault(experiment.data.model_dump_json(), {})[setting] = experiment
    found: dict[int, _Found] = {}
    for group in together.values():
        found.update(_check_on_same_data(group, source))
    return PreflightReport(
        {setting: found[setting].pools for setting in parsed},
        {setting: found[setting].planning for setting in parsed},
        tuple(dict.fromkeys(note for setting in parsed for note in found[setting].notes)),
    )


class _Found(NamedTuple):
    """What the data say about one setting, as in :class:`PreflightReport`."""

    pools: int
    planning: str
    notes: list[str]


def _check_on_same_data(group: dict[int, Experiment], source: str) -> dict[int, _Found]:
    """Check the settings of one data set, by number; it is out of memory afterwards."""
    from mbcl.engine import (
        SplitData,
        check_evaluation,
        check_model,
        check_trackers,
        data_sizes,
        load_data,
        planning_cost,
    )

    data: SplitData | None = None
    built: set[str] = set()
    evaluable: list[Any] = []
    found: dict[int, _Found] = {}
    for setting, experiment in group.items():
        _of_experiment(source, check_trackers, experiment)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if data is None:
                data = _of_experiment(source, load_data, experiment.data, seed=experiment.seed)
            facts = _of_experiment(source, data_sizes, experiment, data)
            if experiment.evaluation not in evaluable:
                evaluable.append(experiment.evaluation)
                facts_of_data = {"name": experiment.data.name, "verify": experiment.data.verify}
                _of_experiment(source, check_evaluation, experiment.evaluation, data, **facts_of_data)
        samplers = experiment.samplers().values()
        pools = max(
            sampler.planned_pools(facts.num_train) if isinstance(sampler, PoolSampler) else 0 for sampler in samplers
        )
        notes = [str(warning.message) for warning in caught]
        found[setting] = _Found(pools, planning_cost(experiment, facts.num_train), notes)
        network = repr((experiment.encoder, experiment.projector))
        if network not in built:
            built.add(network)
            _of_experiment(source, check_model, experiment, data)
    return found


def _of_experiment(source: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function whose errors name a key of the experiment."""
    try:
        return function(*arguments, **options)
    except ConfigError as error:
        raise ConfigError(f"{source}: experiment.{error}") from error


def check_data_on_cluster(
    experiments: dict[int, dict[str, Any]], source: str, resources: dict[str, float]
) -> PreflightReport:
    """:func:`check_data` where the data will be read: as a first task on a node that trains.

    Args:
        experiments: by setting, as plain data.
        source: what an error line begins with.
        resources: the custom resources of nodes that train.

    Raises:
        ConfigError: as :func:`check_data`.
    """
    import ray

    try:
        checked: PreflightReport = ray.get(
            ray.remote(num_cpus=1)(check_data).options(resources=resources).remote(experiments, source)
        )
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, MbclError):
            raise ConfigError(str(error.cause)) from error
        raise
    return checked


def check_shared(store: Store) -> None:
    """Refuse a local results folder that another node of the cluster does not see.

    Raises:
        ConfigError: naming the node.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if is_uri(store.uri):
        return
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not others:
        return
    token = uuid.uuid4().hex
    write_text(store, SHARED_FILE, token)
    try:
        look = ray.remote(num_cpus=0, max_retries=2)(_token_at)
        for node in others:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            if ray.get(look.options(scheduling_strategy=strategy).remote(store.uri)) != token:
                raise ConfigError(
                    f"--results-dir: node {node['NodeManagerAddress']} of the cluster does not see {store.uri}; "
                    f"several nodes need storage that they share or a URI such as s3://bucket/results"
                )
    finally:
        store.delete(SHARED_FILE)


def _token_at(uri: str) -> str:
    try:
        return open_store(uri).read_bytes(SHARED_FILE).decode()
    except OSError:
        return ""
