"""What is known of a kind of trials without Ray: a pretraining with its evaluation, or a synthetic study.

A space has trials of one kind; everything else in the orchestration is the same for all and asks these few questions.
How a trial of a kind runs is in :mod:`mbcl.orchestration.trial.trial_runners`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from mbcl.config.base import ConfigModel
from mbcl.config.experiment import Experiment
from mbcl.errors import ConfigError
from mbcl.orchestration.search_space.domains import short
from mbcl.orchestration.search_space.resources_block import Resources
from mbcl.synthetic.experiment import SyntheticExperiment

AnyExperiment: TypeAlias = Experiment | SyntheticExperiment
VALIDATION_METRIC = "val/retrieval/top1"


class TrialKind(Protocol):
    """What differs between kinds of trials before any of them runs."""

    @property
    def model(self) -> type[ConfigModel]:
        """The schema of the ``experiment`` block."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """What a search may go by; the first is the default."""
        ...

    @property
    def reads_data(self) -> bool:
        """Whether only nodes that train can check an experiment."""
        ...

    @property
    def can_stop_early(self) -> bool:
        """Whether a trial measures on its way what a scheduler may stop it for."""
        ...

    def check_resources(self, experiment: Any, asked: Resources) -> None:
        """Refuse resources that a trial cannot use.

        Raises:
            ConfigError: naming the key.
        """
        ...

    def numbers_of_workers(self, experiment: Any, asked: Resources, most: int) -> tuple[int, ...]:
        """With how many workers a trial may begin, ascending, where ``most`` fit.

        Raises:
            ConfigError: if there is no such number.
        """
        ...

    def evaluation(self, experiment: Any) -> dict[str, Any]:
        """The evaluation block as plain data.

        Raises:
            ConfigError: if there is nothing to evaluate.
        """
        ...

    def num_epochs(self, experiment: Any) -> int:
        """How many epochs a trial has, as its last row of metrics counts them."""
        ...


class Pretraining:
    """An encoder is trained by workers of its own, on plans of a planner, and evaluated in a task."""

    model = Experiment
    metrics = (VALIDATION_METRIC, "train/loss", "plan/loss", "plan/lift", "plan/coverage")
    reads_data = True
    can_stop_early = True

    def check_resources(self, experiment: Experiment, asked: Resources) -> None:
        """As :meth:`TrialKind.check_resources`: workers share a batch evenly."""
        self.numbers_of_workers(experiment, asked, max(asked.numbers_of_workers))

    def numbers_of_workers(self, experiment: Experiment, asked: Resources, most: int) -> tuple[int, ...]:
        """As :meth:`TrialKind.numbers_of_workers`."""
        error: ConfigError | None = None
        fitting = []
        for number in asked.numbers_of_workers:
            try:
                experiment.train.check_workers(number)
                fitting.append(number)
            except ConfigError as caught:
                error = caught
        if error is not None and not fitting:
            raise ConfigError(f"resources.workers: found {short(asked.workers)}, but experiment.{error}")
        fitting = [number for number in fitting if number <= most]
        if not fitting:
            raise ConfigError(
                f"resources.workers: found {short(asked.workers)}, of which {most} fit, but no such number of workers "
                f"shares a batch of {experiment.train.batch_size} evenly"
            )
        return tuple(fitting)

    def evaluation(self, experiment: Experiment) -> dict[str, Any]:
        """As :meth:`TrialKind.evaluation`."""
        return experiment.evaluation.model_dump(mode="json")

    def num_epochs(self, experiment: Experiment) -> int:
        """As :meth:`TrialKind.num_epochs`: epochs."""
        return experiment.train.epochs


class SyntheticStudy:
    """Points are moved in the driver's own process, on one CPU."""

    model = SyntheticExperiment
    metrics = ("synthetic/distance", "synthetic/excess", "synthetic/true_loss", "synthetic/mean_loss")
    reads_data = False
    can_stop_early = False

    def check_resources(self, experiment: SyntheticExperiment, asked: Resources) -> None:
        """As :meth:`TrialKind.check_resources`: it is one process without a GPU."""
        if asked.workers != 1:
            raise ConfigError(f"resources.workers: found {short(asked.workers)}, but a synthetic study is one process")
        if asked.gpu is True:
            raise ConfigError("resources.gpu: found true, but a synthetic study runs on a CPU")

    def numbers_of_workers(self, experiment: SyntheticExperiment, asked: Resources, most: int) -> tuple[int, ...]:
        """As :meth:`TrialKind.numbers_of_workers`."""
        return (1,)

    def evaluation(self, experiment: SyntheticExperiment) -> dict[str, Any]:
        """As :meth:`TrialKind.evaluation`: there is none."""
        raise ConfigError("--eval-only: a synthetic study has no evaluation of its own")

    def num_epochs(self, experiment: SyntheticExperiment) -> int:
        """As :meth:`TrialKind.num_epochs`: steps, whose rows are written at the end."""
        return experiment.synthetic.steps


PRETRAINING, SYNTHETIC = Pretraining(), SyntheticStudy()


def kind_of(experiment: Mapping[str, Any]) -> TrialKind:
    """The kind of trial that an ``experiment`` block asks for."""
    return SYNTHETIC if "synthetic" in experiment else PRETRAINING
