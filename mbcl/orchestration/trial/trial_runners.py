"""How a trial of each kind runs: its check before Ray, what it needs, and the function in its driver's process.

What a kind is, without running it, is in :mod:`mbcl.orchestration.search_space.trial_kinds`. Ray is imported when a
trial runs, so that a dry run loads none.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from mbcl.config.experiment import Experiment
from mbcl.errors import ConfigError
from mbcl.orchestration.cluster.capacity import DRIVER_CPUS, Node, TrialResources, resolve_resources
from mbcl.orchestration.cluster.placement import Placement
from mbcl.orchestration.search_space.resources_block import Resources
from mbcl.orchestration.search_space.trial_kinds import PRETRAINING, SYNTHETIC, TrialKind
from mbcl.orchestration.trial.job import Job, TrialResult, mute_sampler_warnings
from mbcl.orchestration.trial.preflight import PreflightReport, check_data
from mbcl.synthetic.experiment import SyntheticExperiment

CPUS_A_STUDY = 1
"""What ``auto`` reserves for a synthetic study, which computes on one thread."""


class TrialRunner(Protocol):
    """What differs between kinds of trials when they run."""

    def check(self, experiments: dict[int, dict[str, Any]], source: str) -> PreflightReport:
        """Check everything that the file alone does not tell; as :func:`.preflight.check_data`."""
        ...

    def trial_resources(
        self, asked: Resources, nodes: Sequence[Node], *, drivers: float | None = None, sizes: Sequence[int] = ()
    ) -> TrialResources:
        """What a trial needs; as :func:`mbcl.orchestration.cluster.capacity.resolve_resources`."""
        ...

    def planning_tasks(self, experiment: Any, need: TrialResources, cpus: int, pools: int) -> int:
        """How many of a trial's pools are planned at a time, of ``cpus`` that it may use."""
        ...

    def driver_resources(self, need: TrialResources, placement: Placement) -> dict[str, float]:
        """What Ray reserves for the process that :meth:`run` runs in."""
        ...

    def run(self, job: Job, start: float) -> TrialResult:
        """Run a trial in its driver's process, which entered at ``start``, in seconds since the epoch."""
        ...


class PretrainingRunner:
    """An encoder is trained by workers of its own, on plans of a planner, and evaluated in a task."""

    def check(self, experiments: dict[int, dict[str, Any]], source: str) -> PreflightReport:
        """As :meth:`TrialRunner.check`: data are read, models are built."""
        return check_data(experiments, source)

    def trial_resources(
        self, asked: Resources, nodes: Sequence[Node], *, drivers: float | None = None, sizes: Sequence[int] = ()
    ) -> TrialResources:
        """As :meth:`TrialRunner.trial_resources`."""
        return resolve_resources(asked, nodes, drivers=drivers, sizes=sizes)

    def planning_tasks(self, experiment: Experiment, need: TrialResources, cpus: int, pools: int) -> int:
        """As :meth:`TrialRunner.planning_tasks`."""
        if experiment.planner.overlap:
            cpus -= need.workers * need.threads  # these go on training meanwhile
        return max(1, min(cpus, pools))

    def driver_resources(self, need: TrialResources, placement: Placement) -> dict[str, float]:
        """As :meth:`TrialRunner.driver_resources`: next to nothing, it only waits. A head may have no CPUs at all."""
        return placement.for_driver or {"CPU": DRIVER_CPUS}

    def run(self, job: Job, start: float) -> TrialResult:
        """As :meth:`TrialRunner.run`."""
        from mbcl.orchestration.trial.pretraining import pretrain

        return pretrain(job, start)


class SyntheticRunner:
    """Points are moved in the driver's own process, on one CPU."""

    def check(self, experiments: dict[int, dict[str, Any]], source: str) -> PreflightReport:
        """As :meth:`TrialRunner.check`: samplers fit N and B."""
        from mbcl.synthetic.trial import unknown_optimum

        notes: dict[str, None] = {}
        for setting in sorted(experiments):
            experiment = SyntheticExperiment.model_validate(experiments[setting])
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
        self, asked: Resources, nodes: Sequence[Node], *, drivers: float | None = None, sizes: Sequence[int] = ()
    ) -> TrialResources:
        """As :meth:`TrialRunner.trial_resources`: one CPU."""
        return resolve_resources(asked.model_copy(update={"gpu": False}), nodes, cpus_a_worker=CPUS_A_STUDY)

    def planning_tasks(self, experiment: SyntheticExperiment, need: TrialResources, cpus: int, pools: int) -> int:
        """As :meth:`TrialRunner.planning_tasks`: it plans by itself."""
        return 1

    def driver_resources(self, need: TrialResources, placement: Placement) -> dict[str, float]:
        """As :meth:`TrialRunner.driver_resources`: all that the trial has, on a node that works."""
        return {"CPU": need.cpus, **placement.for_task}

    def run(self, job: Job, start: float) -> TrialResult:
        """As :meth:`TrialRunner.run`."""
        from mbcl.synthetic.trial import run_synthetic_trial

        mute_sampler_warnings()
        metrics = run_synthetic_trial(SyntheticExperiment.model_validate(job.experiment), job.open(job.store))
        seconds = time.time() - start
        return TrialResult(metrics=metrics, seconds={"training": seconds, "total": seconds})


_RUNNERS: dict[TrialKind, TrialRunner] = {PRETRAINING: PretrainingRunner(), SYNTHETIC: SyntheticRunner()}


def runner_of(kind: TrialKind) -> TrialRunner:
    """What runs the trials of a kind."""
    return _RUNNERS[kind]
