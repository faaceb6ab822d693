"""The kinds of trials: a pretraining with its evaluation, or a synthetic study. A space has trials of one kind.

Everything else in the orchestration is the same for all kinds and asks these few questions. What answers them is
imported when it is asked, so that a dry run loads no Ray.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from mbcl.config.base import Section
from mbcl.config.experiment import Experiment
from mbcl.errors import ConfigError
from mbcl.orchestration.search_space.domains import short
from mbcl.synthetic.experiment import SyntheticExperiment

if TYPE_CHECKING:
    from mbcl.orchestration.cluster.capacity import Need, Node
    from mbcl.orchestration.cluster.placement import Placement
    from mbcl.orchestration.search_space.resources_block import Resources
    from mbcl.orchestration.trial.job import Answer, Job
    from mbcl.orchestration.trial.preflight import Checked

AnyExperiment: TypeAlias = Experiment | SyntheticExperiment
VALIDATION_METRIC = "val/retrieval/top1"
CPUS_A_STUDY = 1
"""What ``auto`` reserves for a synthetic study, which computes on one thread."""


class Kind(Protocol):
    """What differs between kinds of trials."""

    @property
    def model(self) -> type[Section]:
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
    def races(self) -> bool:
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

    def check(self, experiments: dict[int, dict[str, Any]], source: str) -> Checked:
        """Check everything that the file alone does not tell; as :func:`.preflight.check_data`."""
        ...

    def evaluation(self, experiment: Any) -> dict[str, Any]:
        """The evaluation block as plain data.

        Raises:
            ConfigError: if there is nothing to evaluate.
        """
        ...

    def length(self, experiment: Any) -> int:
        """How many epochs a trial has, as its last row of metrics counts them."""
        ...

    def need(
        self, asked: Resources, nodes: Sequence[Node], *, drivers: float | None = None, sizes: Sequence[int] = ()
    ) -> Need:
        """What a trial needs; as :func:`mbcl.orchestration.cluster.capacity.resolve`."""
        ...

    def planning_tasks(self, experiment: Any, need: Need, cpus: int, pools: int) -> int:
        """How many of a trial's pools are planned at a time, of ``cpus`` that it may use."""
        ...

    def driver(self, need: Need, placement: Placement) -> dict[str, float]:
        """What Ray reserves for the process that :meth:`run` runs in."""
        ...

    def run(self, job: Job, start: float) -> Answer:
        """Run a trial in its driver's process, which entered at ``start``, in seconds since the epoch."""
        ...


class Pretraining:
    """An encoder is trained by workers of its own, on plans of a planner, and evaluated in a task."""

    model = Experiment
    metrics = (VALIDATION_METRIC, "train/loss", "plan/loss", "plan/lift", "plan/coverage")
    reads_data = True
    races = True

    def check_resources(self, experiment: Experiment, asked: Resources) -> None:
        """As :meth:`Kind.check_resources`: workers share a batch evenly."""
        self.numbers_of_workers(experiment, asked, max(asked.numbers_of_workers))

    def numbers_of_workers(self, experiment: Experiment, asked: Resources, most: int) -> tuple[int, ...]:
        """As :meth:`Kind.numbers_of_workers`."""
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

    def check(self, experiments: dict[int, dict[str, Any]], source: str) -> Checked:
        """As :meth:`Kind.check`: data are read, models are built."""
        from mbcl.orchestration.trial.preflight import check_data

        return check_data(experiments, source)

    def evaluation(self, experiment: Experiment) -> dict[str, Any]:
        """As :meth:`Kind.evaluation`."""
        return experiment.evaluation.model_dump(mode="json")

    def length(self, experiment: Experiment) -> int:
        """As :meth:`Kind.length`: epochs."""
        return experiment.train.epochs

    def need(
        self, asked: Resources, nodes: Sequence[Node], *, drivers: float | None = None, sizes: Sequence[int] = ()
    ) -> Need:
        """As :meth:`Kind.need`."""
        from mbcl.orchestration.cluster.capacity import resolve

        return resolve(asked, nodes, drivers=drivers, sizes=sizes)

    def planning_tasks(self, experiment: Experiment, need: Need, cpus: int, pools: int) -> int:
        """As :meth:`Kind.planning_tasks`."""
        if experiment.planner.overlap:
            cpus -= need.workers * need.threads  # these go on training meanwhile
        return max(1, min(cpus, pools))

    def driver(self, need: Need, placement: Placement) -> dict[str, float]:
        """As :meth:`Kind.driver`: next to nothing, it only waits. A head may have no CPUs at all."""
        from mbcl.orchestration.cluster.capacity import DRIVER_CPUS

        return placement.for_driver or {"CPU": DRIVER_CPUS}

    def run(self, job: Job, start: float) -> Answer:
        """As :meth:`Kind.run`."""
        from mbcl.orchestration.trial.pretraining import pretrain

        return pretrain(job, start)


class SyntheticStudy:
    """Points are moved in the driver's own process, on one CPU."""

    model = SyntheticExperiment
    metrics = ("synthetic/distance", "synthetic/excess", "synthetic/true_loss", "synthetic/mean_loss")
    reads_data = False
    races = False

    def check_resources(self, experiment: SyntheticExperiment, asked: Resources) -> None:
        """As :meth:`Kind.check_resources`: it is one process without a GPU."""
        if asked.workers != 1:
            raise ConfigError(f"resources.workers: found {short(asked.workers)}, but a synthetic study is one process")
        if asked.gpu is True:
            raise ConfigError("resources.gpu: found true, but a synthetic study runs on a CPU")

    def numbers_of_workers(self, experiment: SyntheticExperiment, asked: Resources, most: int) -> tuple[int, ...]:
        """As :meth:`Kind.numbers_of_workers`."""
        return (1,)

    def check(self, experiments: dict[int, dict[str, Any]], source: str) -> Checked:
        """As :meth:`Kind.check`: samplers fit N and B."""
        from mbcl.orchestration.trial.preflight import Checked
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
        return Checked(dict.fromkeys(experiments, 0), {}, tuple(notes))

    def evaluation(self, experiment: SyntheticExperiment) -> dict[str, Any]:
        """As :meth:`Kind.evaluation`: there is none."""
        raise ConfigError("--eval-only: a synthetic study has no evaluation of its own")

    def length(self, experiment: SyntheticExperiment) -> int:
        """As :meth:`Kind.length`: steps, whose rows are written at the end."""
        return experiment.synthetic.steps

    def need(
        self, asked: Resources, nodes: Sequence[Node], *, drivers: float | None = None, sizes: Sequence[int] = ()
    ) -> Need:
        """As :meth:`Kind.need`: one CPU."""
        from mbcl.orchestration.cluster.capacity import resolve

        return resolve(asked.model_copy(update={"gpu": False}), nodes, cpus_a_worker=CPUS_A_STUDY)

    def planning_tasks(self, experiment: SyntheticExperiment, need: Need, cpus: int, pools: int) -> int:
        """As :meth:`Kind.planning_tasks`: it plans by itself."""
        return 1

    def driver(self, need: Need, placement: Placement) -> dict[str, float]:
        """As :meth:`Kind.driver`: all that the trial has, on a node that works."""
        return {"CPU": need.cpus, **placement.for_task}

    def run(self, job: Job, start: float) -> Answer:
        """As :meth:`Kind.run`."""
        import time

        from mbcl.orchestration.trial.job import Answer, mute_sampler_warnings
        from mbcl.synthetic.trial import run_trial

        mute_sampler_warnings()
        metrics = run_trial(SyntheticExperiment.model_validate(job.experiment), job.open(job.store))
        seconds = time.time() - start
        return Answer(metrics=metrics, seconds={"training": seconds, "total": seconds})


PRETRAINING, SYNTHETIC = Pretraining(), SyntheticStudy()


def kind_of(experiment: Mapping[str, Any]) -> Kind:
    """The kind of trial that an ``experiment`` block asks for."""
    return SYNTHETIC if "synthetic" in experiment else PRETRAINING
