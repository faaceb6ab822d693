"""The kinds of trials, without Ray: a pretraining with its evaluation, or a synthetic study.

A space has trials of one kind. The rest of the orchestration depends on a kind only through :class:`TrialKind`. How a
trial of a kind runs is in :mod:`mbcl.orchestration.trial.trial_runners`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeAlias

from mbcl.config.experiment import Experiment
from mbcl.errors import ConfigError
from mbcl.orchestration.search_space.domains import short
from mbcl.orchestration.search_space.resources_block import Resources
from mbcl.synthetic.experiment import SyntheticExperiment

AnyExperiment: TypeAlias = Experiment | SyntheticExperiment
VALIDATION_METRIC = "val/retrieval/mrr"


def identity_of(experiment: AnyExperiment) -> str:
    """Return a canonical text that is equal for two experiments if and only if they are the same."""
    return json.dumps(experiment.resolved(), sort_keys=True)


class TrialKind(Protocol):
    """The properties in which kinds of trials differ before any of them runs."""

    model: ClassVar[type[Experiment] | type[SyntheticExperiment]]
    """The schema of the ``experiment`` block."""
    metrics: ClassVar[tuple[str, ...]]
    """The metrics that a search may go by; the first is the default."""
    reads_data: ClassVar[bool]
    """Whether an experiment reads data, so that only nodes that train can check it."""
    can_stop_early: ClassVar[bool]
    """Whether a trial measures metrics while it runs, by which a scheduler may stop it."""

    def check_resources(self, experiment: Any, resources: Resources) -> None:
        """Refuse resources that a trial cannot use.

        Raises:
            ConfigError: naming the key.
        """

    def numbers_of_workers(self, experiment: Any, resources: Resources, limit: int) -> tuple[int, ...]:
        """Return the numbers of workers that a trial may start with if ``limit`` fit, ascending.

        Raises:
            ConfigError: if there is no such number.
        """

    def evaluation(self, experiment: Any) -> dict[str, Any]:
        """Return the evaluation block as plain data.

        Raises:
            ConfigError: if trials of this kind have no evaluation.
        """

    def num_epochs(self, experiment: Any) -> int:
        """Return the number of epochs of a trial, as its last row of metrics counts them."""


class Pretraining(TrialKind):
    """A pretraining: workers train an encoder on the plans of a planner, and a task evaluates it."""

    model = Experiment
    metrics = (
        VALIDATION_METRIC,
        "val/retrieval/top1",
        "val/knn/top1",
        "val/probe/top1",
        "train/loss",
        "plan/loss",
        "plan/lift",
        "plan/coverage",
    )
    reads_data = True
    can_stop_early = True

    def check_resources(self, experiment: Experiment, resources: Resources) -> None:
        """Refuse ``workers`` of which no number can share a batch evenly."""
        self.numbers_of_workers(experiment, resources, max(resources.numbers_of_workers))

    def numbers_of_workers(self, experiment: Experiment, resources: Resources, limit: int) -> tuple[int, ...]:
        """Return the numbers of workers, at most ``limit``, that share a batch evenly."""
        error: ConfigError | None = None
        fitting = []
        for number in resources.numbers_of_workers:
            try:
                experiment.train.check_workers(number)
                fitting.append(number)
            except ConfigError as caught:
                error = caught
        if error is not None and not fitting:
            raise ConfigError(f"resources.workers: found {short(resources.workers)}, but experiment.{error}")
        fitting = [number for number in fitting if number <= limit]
        if not fitting:
            raise ConfigError(
                f"resources.workers: found {short(resources.workers)}, of which {limit} fit, but no such number of "
                f"workers shares a batch of {experiment.train.batch_size} evenly"
            )
        return tuple(fitting)

    def evaluation(self, experiment: Experiment) -> dict[str, Any]:
        return experiment.evaluation.model_dump(mode="json")

    def num_epochs(self, experiment: Experiment) -> int:
        return experiment.train.epochs


class SyntheticStudy(TrialKind):
    """A synthetic study: points are optimized in the driver's process, on one CPU."""

    model = SyntheticExperiment
    metrics = ("synthetic/distance", "synthetic/excess", "synthetic/true_loss", "synthetic/mean_loss")
    reads_data = False
    can_stop_early = False

    def check_resources(self, experiment: SyntheticExperiment, resources: Resources) -> None:
        """Refuse several workers and a GPU: a synthetic study is one process on a CPU."""
        if resources.workers != 1:
            raise ConfigError(
                f"resources.workers: found {short(resources.workers)}, but a synthetic study is one process"
            )
        if resources.gpu is True:
            raise ConfigError("resources.gpu: found true, but a synthetic study runs on a CPU")

    def numbers_of_workers(self, experiment: SyntheticExperiment, resources: Resources, limit: int) -> tuple[int, ...]:
        return (1,)

    def evaluation(self, experiment: SyntheticExperiment) -> dict[str, Any]:
        raise ConfigError("--eval-only: a synthetic study has no evaluation of its own")

    def num_epochs(self, experiment: SyntheticExperiment) -> int:
        """Return the number of steps, by which its rows are counted; they are written at the end."""
        return experiment.synthetic.steps


PRETRAINING, SYNTHETIC = Pretraining(), SyntheticStudy()


def kind_of(experiment: Mapping[str, Any]) -> TrialKind:
    """Return the kind of trial of an ``experiment`` block."""
    return SYNTHETIC if "synthetic" in experiment else PRETRAINING
