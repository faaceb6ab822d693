"""The runners of each kind of trial: the check before Ray starts, the resources, and the function of the driver.

The kinds themselves are in :mod:`mbcl.orchestration.search_space.trial_kinds`. Ray is imported when a trial runs, so
that a dry run does not import it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from mbcl.config.experiment import Experiment
from mbcl.orchestration.cluster.capacity import (
    DRIVER_CPUS,
    Concurrency,
    Node,
    TrialResources,
    max_concurrency,
    resolve_resources,
)
from mbcl.orchestration.cluster.placement import Placement
from mbcl.orchestration.search_space.expansion import Trials
from mbcl.orchestration.search_space.schema import Space
from mbcl.orchestration.search_space.trial_kinds import AnyExperiment
from mbcl.orchestration.trial.job import Job, TrialResult, mute_sampler_warnings, trains_in_driver
from mbcl.orchestration.trial.preflight import PreflightReport, check_data, errors_of_experiment
from mbcl.synthetic.experiment import SyntheticExperiment

PROCESS_BYTES = 900 * 2**20
"""Memory of a process that has imported torch and Ray and trains a small network."""
PLANNER_BYTES = 700 * 2**20
"""Memory of the planner's process."""


@dataclass(frozen=True)
class Driver:
    """The driver of a trial, the process that calls :meth:`TrialRunner.run`.

    Args:
        resources: what Ray reserves for it.
        trains: whether the trial trains in this process. Then a stop ends the training and not the process.
    """

    resources: dict[str, float]
    trains: bool


class TrialRunner(Protocol):
    """The part of running a trial that depends on its kind."""

    one_cpu: ClassVar[bool]
    """Whether a trial computes on one thread without a GPU, whatever the nodes have."""

    def check(self, experiments: Mapping[int, AnyExperiment], source: str) -> PreflightReport:
        """Check what cannot be checked from the space file alone.

        Args:
            experiments: by setting.
            source: name of the space file, the prefix of error messages.

        Raises:
            ConfigError: naming the key.
        """

    def planning_tasks(self, experiment: AnyExperiment, resources: TrialResources, cpus: int, pools: int) -> int:
        """Return the number of planning tasks that run at a time for a plan of ``pools`` pools on ``cpus`` CPUs."""

    def memory(self, preflight: PreflightReport, resources: TrialResources) -> int | None:
        """Return an estimate of the main memory that a trial takes, in bytes; None if unknown."""

    def driver(self, resources: TrialResources, placement: Placement, *, joined: bool) -> Driver:
        """Return the driver of a trial, on a local Ray or on a joined cluster."""

    def run(self, job: Job, start: float) -> TrialResult:
        """Run a trial in its driver's process, which started the trial at ``start``, in seconds since the epoch."""


class PretrainingRunner:
    """Trains an encoder on the plans of a planner, and evaluates it."""

    one_cpu: ClassVar[bool] = False

    def check(self, experiments: Mapping[int, AnyExperiment], source: str) -> PreflightReport:
        """Load the data and build the models; see :func:`.preflight.check_data`."""
        return check_data(experiments, source)

    def planning_tasks(self, experiment: AnyExperiment, resources: TrialResources, cpus: int, pools: int) -> int:
        """Return one task per pool, at most one per CPU; with ``planner.overlap`` the workers keep their CPUs."""
        assert isinstance(experiment, Experiment)
        if experiment.planner.overlap:
            cpus -= resources.workers * resources.threads
        return max(1, min(cpus, pools))

    def memory(self, preflight: PreflightReport, resources: TrialResources) -> int | None:
        """Return the memory of the workers, and of a planner if a setting has pools to plan.

        Its tasks are not counted: where memory limits the trials, there is one task, which runs in the planner.
        """
        if preflight.memory is None:
            return None
        need = preflight.memory
        process = PROCESS_BYTES + need.host
        if not resources.gpus_per_worker:
            process += need.weights + need.activations // resources.workers
        return resources.workers * process + (PLANNER_BYTES if any(preflight.max_pools.values()) else 0)

    def driver(self, resources: TrialResources, placement: Placement, *, joined: bool) -> Driver:
        """Return a driver with all resources of the trial if it trains itself.

        Otherwise it only waits: it takes the custom resource ``driver`` where a node offers it, because the head of a
        cluster may offer no CPUs, and elsewhere a token share of a CPU.
        """
        if trains_in_driver(resources, joined=joined):
            return Driver({"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {}), trains=True)
        return Driver(placement.for_driver or {"CPU": DRIVER_CPUS}, trains=False)

    def run(self, job: Job, start: float) -> TrialResult:
        """Train and evaluate through Ray."""
        from mbcl.orchestration.trial.pretraining import pretrain

        return pretrain(job, start)


class SyntheticRunner:
    """Runs a synthetic study in the driver's own process, on one CPU."""

    one_cpu: ClassVar[bool] = True

    def check(self, experiments: Mapping[int, AnyExperiment], source: str) -> PreflightReport:
        """Check that the samplers fit N and B; a synthetic study has no data."""
        from mbcl.synthetic.trial import unknown_optimum

        notes: dict[str, None] = {}  # an ordered set
        for _, experiment in sorted(experiments.items(), key=lambda item: item[0]):
            assert isinstance(experiment, SyntheticExperiment)
            with errors_of_experiment(source), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                experiment.build_method()
            notes.update(dict.fromkeys(str(warning.message) for warning in caught))
            notes.update(dict.fromkeys(filter(None, [unknown_optimum(experiment)])))
        return PreflightReport(dict.fromkeys(experiments, 0), {}, tuple(notes))

    def planning_tasks(self, experiment: AnyExperiment, resources: TrialResources, cpus: int, pools: int) -> int:
        """Return 1: a synthetic study plans in its own process, without tasks."""
        return 1

    def memory(self, preflight: PreflightReport, resources: TrialResources) -> int | None:
        """Return the memory of the driver: N is small where optimal batches are known."""
        return PROCESS_BYTES

    def driver(self, resources: TrialResources, placement: Placement, *, joined: bool) -> Driver:
        """Return a driver with all resources of the trial, on a node that computes."""
        return Driver({"CPU": resources.cpus, **placement.for_task}, trains=True)

    def run(self, job: Job, start: float) -> TrialResult:
        """Run the synthetic study in this process."""
        from mbcl.synthetic.trial import run_synthetic_trial

        assert isinstance(job.experiment, SyntheticExperiment)
        mute_sampler_warnings()
        metrics = run_synthetic_trial(job.experiment, job.open(job.store))
        seconds = time.time() - start
        return TrialResult(metrics=metrics, seconds={"training": seconds, "total": seconds})


_RUNNERS: dict[type, TrialRunner] = {Experiment: PretrainingRunner(), SyntheticExperiment: SyntheticRunner()}


def runner_of(model: type[Experiment] | type[SyntheticExperiment]) -> TrialRunner:
    """Return the runner for trials of this class of experiment."""
    return _RUNNERS[model]


def allocate(
    space: Space,
    trials: Trials,
    nodes: Sequence[Node],
    *,
    drivers: float | None = None,
    threads: int | None = None,
    preflight: PreflightReport | None = None,
    evaluation_alone: bool = False,
) -> tuple[TrialResources, Concurrency]:
    """Return the resources of one trial, and how many run at a time.

    Args:
        space: the space.
        trials: its trials.
        nodes: the nodes that exist or can be started.
        drivers: as for :func:`.max_concurrency`.
        threads: what the study has recorded for ``cpus_per_worker: auto``; None if it has recorded nothing.
        preflight: what training takes of memory; None if unknown.
        evaluation_alone: whether trials are evaluated only, so that the memory of training does not count.

    Raises:
        ConfigError: if no trial fits.
    """
    requested, runner = space.resources, runner_of(space.kind.model)
    num_trials: int | None = trials.total
    if runner.one_cpu:
        requested, num_trials = requested.model_copy(update={"gpu": False}), None
    sizes = trials.numbers_of_workers(space)
    resources = resolve_resources(requested, nodes, num_trials=num_trials, drivers=drivers, sizes=sizes)
    if requested.cpus_per_worker == "auto":
        resources = replace(resources, threads=threads or resources.threads)
    memory = runner.memory(preflight, resources) if preflight and not evaluation_alone else None
    return resources, max_concurrency(resources, nodes, requested, drivers=drivers, memory=memory)
