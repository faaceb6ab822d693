"""How a trial of each kind runs: its check before Ray, its resources, and the function in its driver's process.

What a kind is, without running it, is in :mod:`mbcl.orchestration.search_space.trial_kinds`. Ray is imported when a
trial runs, so that a dry run loads none.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Protocol

from mbcl.config.experiment import Experiment
from mbcl.errors import ConfigError
from mbcl.orchestration.cluster.capacity import DRIVER_CPUS, Node, TrialResources, resolve_resources
from mbcl.orchestration.cluster.placement import Placement
from mbcl.orchestration.search_space.resources_block import Resources
from mbcl.orchestration.search_space.trial_kinds import AnyExperiment
from mbcl.orchestration.trial.job import Job, TrialResult, mute_sampler_warnings
from mbcl.orchestration.trial.preflight import PreflightReport, check_data
from mbcl.synthetic.experiment import SyntheticExperiment

AUTO_CPUS_PER_SYNTHETIC_STUDY = 1
"""What ``auto`` reserves for a synthetic study, which computes on one thread."""


class TrialRunner(Protocol):
    """What differs between kinds of trials when they run."""

    def check(self, experiments: Mapping[int, AnyExperiment], source: str) -> PreflightReport:
        """Check everything that the file alone does not tell.

        Args:
            experiments: by setting.
            source: the file's name, with which an error begins.

        Raises:
            ConfigError: naming the key.
        """

    def trial_resources(
        self, requested: Resources, nodes: Sequence[Node], *, drivers: float | None = None, sizes: Sequence[int] = ()
    ) -> TrialResources:
        """Decide what one trial gets; arguments and errors as of :func:`.capacity.resolve_resources`."""

    def planning_tasks(self, experiment: AnyExperiment, resources: TrialResources, cpus: int, pools: int) -> int:
        """How many of a trial's ``pools`` are planned at a time, of ``cpus`` that it may use."""

    def driver_resources(self, resources: TrialResources, placement: Placement) -> dict[str, float]:
        """What Ray reserves for the process in which :meth:`run` runs, by resource."""

    def run(self, job: Job, start: float) -> TrialResult:
        """Run a trial in its driver's process, which entered at ``start``, in seconds since the epoch."""


class PretrainingRunner:
    """Trains an encoder in worker processes, on plans of a planner, and evaluates it in a task."""

    def check(self, experiments: Mapping[int, AnyExperiment], source: str) -> PreflightReport:
        """Read the data and build the models; see :func:`.preflight.check_data`."""
        return check_data(experiments, source)

    def trial_resources(
        self, requested: Resources, nodes: Sequence[Node], *, drivers: float | None = None, sizes: Sequence[int] = ()
    ) -> TrialResources:
        """Resolve the block as it is."""
        return resolve_resources(requested, nodes, drivers=drivers, sizes=sizes)

    def planning_tasks(self, experiment: AnyExperiment, resources: TrialResources, cpus: int, pools: int) -> int:
        """One task per pool, at most one per CPU; with ``planner.overlap`` training keeps its own."""
        assert isinstance(experiment, Experiment)
        if experiment.planner.overlap:
            cpus -= resources.workers * resources.threads
        return max(1, min(cpus, pools))

    def driver_resources(self, resources: TrialResources, placement: Placement) -> dict[str, float]:
        """Next to nothing: the driver only waits. A head may have no CPUs at all."""
        return placement.for_driver or {"CPU": DRIVER_CPUS}

    def run(self, job: Job, start: float) -> TrialResult:
        """Train and evaluate through Ray."""
        from mbcl.orchestration.trial.pretraining import pretrain

        return pretrain(job, start)


class SyntheticRunner:
    """Moves points in the driver's own process, on one CPU."""

    def check(self, experiments: Mapping[int, AnyExperiment], source: str) -> PreflightReport:
        """Check that the samplers fit N and B; there are no data."""
        from mbcl.synthetic.trial import unknown_optimum

        notes: dict[str, None] = {}  # an ordered set
        for _, experiment in sorted(experiments.items(), key=lambda item: item[0]):
            assert isinstance(experiment, SyntheticExperiment)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    experiment.build_method()
                except ConfigError as error:
                    raise ConfigError(f"{source}: experiment.{error}") from error
            notes.update(dict.fromkeys(str(warning.message) for warning in caught))
            notes.update(dict.fromkeys(filter(None, [unknown_optimum(experiment)])))
        return PreflightReport(dict.fromkeys(experiments, 0), {}, tuple(notes))

    def trial_resources(
        self, requested: Resources, nodes: Sequence[Node], *, drivers: float | None = None, sizes: Sequence[int] = ()
    ) -> TrialResources:
        """One CPU and no GPU."""
        without_gpu = requested.model_copy(update={"gpu": False})
        return resolve_resources(without_gpu, nodes, cpus_a_worker=AUTO_CPUS_PER_SYNTHETIC_STUDY)

    def planning_tasks(self, experiment: AnyExperiment, resources: TrialResources, cpus: int, pools: int) -> int:
        """It plans in its own process."""
        return 1

    def driver_resources(self, resources: TrialResources, placement: Placement) -> dict[str, float]:
        """All of the trial's resources, on a node that computes."""
        return {"CPU": resources.cpus, **placement.for_task}

    def run(self, job: Job, start: float) -> TrialResult:
        """Move the points here."""
        from mbcl.synthetic.trial import run_synthetic_trial

        assert isinstance(job.experiment, SyntheticExperiment)
        mute_sampler_warnings()
        metrics = run_synthetic_trial(job.experiment, job.open(job.store))
        seconds = time.time() - start
        return TrialResult(metrics=metrics, seconds={"training": seconds, "total": seconds})


_RUNNERS: dict[type, TrialRunner] = {Experiment: PretrainingRunner(), SyntheticExperiment: SyntheticRunner()}


def runner_of(model: type[Experiment] | type[SyntheticExperiment]) -> TrialRunner:
    """What runs the trials of this class of experiment."""
    return _RUNNERS[model]
