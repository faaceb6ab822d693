"""What is checked before any trial starts: data and models against every setting, and storage that all nodes see."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from mbcl.config.evaluation import Evaluation
from mbcl.config.experiment import Experiment
from mbcl.errors import ConfigError, MbclError
from mbcl.io.store import Store, is_uri, open_store, write_text
from mbcl.orchestration.search_space.expansion import TrialSpec
from mbcl.orchestration.search_space.trial_kinds import AnyExperiment
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


def distinct_experiments(specs: Sequence[TrialSpec]) -> dict[int, AnyExperiment]:
    """The first experiment of every setting: seeds change neither the data's size nor what fits them."""
    return {spec.setting: spec.experiment for spec in reversed(specs)}


def check_data(experiments: Mapping[int, AnyExperiment], source: str) -> PreflightReport:
    """Load every data set once, one at a time, build every model on it once, and check what only they can tell.

    Args:
        experiments: pretrainings by setting.
        source: the file's name, with which an error begins.

    Raises:
        ConfigError: if data are missing, or an experiment does not fit them.
    """
    # In a grid the last key varies fastest, so settings with the same data need not be neighbors.
    by_data: dict[str, dict[int, Experiment]] = {}
    for setting, experiment in sorted(experiments.items(), key=lambda item: item[0]):
        assert isinstance(experiment, Experiment)
        by_data.setdefault(experiment.data.model_dump_json(), {})[setting] = experiment
    reports: dict[int, _SettingReport] = {}
    for group in by_data.values():
        reports.update(_check_on_same_data(group, source))
    settings = sorted(experiments)
    return PreflightReport(
        {setting: reports[setting].pools for setting in settings},
        {setting: reports[setting].planning for setting in settings},
        tuple(dict.fromkeys(note for setting in settings for note in reports[setting].notes)),
    )


class _SettingReport(NamedTuple):
    """What the data say about one setting, as in :class:`PreflightReport`."""

    pools: int
    planning: str
    notes: list[str]


def _check_on_same_data(group: dict[int, Experiment], source: str) -> dict[int, _SettingReport]:
    """Check the settings of one data set; it is out of memory afterwards."""
    from mbcl import engine

    data: engine.SplitData | None = None
    built: set[str] = set()
    evaluable: list[Evaluation] = []
    reports: dict[int, _SettingReport] = {}
    for setting, experiment in group.items():
        with _errors_of_experiment(source):
            engine.check_trackers(experiment)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if data is None:
                    data = engine.load_data(experiment.data, seed=experiment.seed)
                sizes = engine.data_sizes(experiment, data)
                if experiment.evaluation not in evaluable:
                    evaluable.append(experiment.evaluation)
                    name, verify = experiment.data.name, experiment.data.verify
                    engine.check_evaluation(experiment.evaluation, data, name=name, verify=verify)
            network = repr((experiment.encoder, experiment.projector))
            if network not in built:
                built.add(network)
                engine.check_model(experiment, data)
        pools = max(
            sampler.planned_pools(sizes.num_train) if isinstance(sampler, PoolSampler) else 0
            for sampler in experiment.samplers().values()
        )
        notes = [str(warning.message) for warning in caught]
        reports[setting] = _SettingReport(pools, engine.planning_cost(experiment, sizes.num_train), notes)
    return reports


@contextmanager
def _errors_of_experiment(source: str) -> Iterator[None]:
    """Put the file and the block before the key that an error names."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{source}: experiment.{error}") from error


def check_data_on_cluster(
    experiments: Mapping[int, AnyExperiment], source: str, resources: dict[str, float]
) -> PreflightReport:
    """Run :func:`check_data` where the data will be read: as a first task on a node that trains.

    Args:
        experiments: pretrainings by setting.
        source: the file's name, with which an error begins.
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
        read_token = ray.remote(num_cpus=0, max_retries=2)(_token_at)
        for node in others:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            if ray.get(read_token.options(scheduling_strategy=strategy).remote(store.uri)) != token:
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
