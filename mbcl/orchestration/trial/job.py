"""A trial's job and its result, which are passed between the sweep and the trial's driver. Imports no Ray."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

from mbcl.config.evaluation import Evaluation
from mbcl.engine.protocols import Row
from mbcl.errors import SamplerWarning
from mbcl.io.ownership import Fence, FencedStore
from mbcl.io.store import Store, open_store
from mbcl.orchestration.cluster.capacity import TrialResources
from mbcl.orchestration.cluster.placement import Placement
from mbcl.orchestration.search_space.trial_kinds import AnyExperiment

Metrics = dict[str, float | int | None]


def trains_in_driver(resources: TrialResources, *, joined: bool) -> bool:
    """Return whether the driver of a trial trains and evaluates itself, without further processes.

    One worker needs no process group. On a joined cluster a driver may run on a node without CPUs.
    """
    return resources.workers == 1 and not joined


@dataclass(frozen=True)
class Job:
    """One trial to run.

    Args:
        trial_id: the trial's name.
        experiment: the resolved configuration.
        store: the trial's folder, a path or URI that every node can open.
        baselines: the folder in which the study's trials share the metrics of baselines.
        scratch: a folder for Ray's own files while the trial runs.
        resources: the resources of the trial's workers.
        group: the name of the study.
        num_tasks: number of planning tasks that run at a time.
        run_id: the id for experiment trackers, unique among all studies; empty for ``trial_id``.
        placement: the nodes on which the driver, the planner and the tasks run.
        sizes: numbers of workers with which the trial may start, ascending; empty for ``resources.workers`` alone.
        fence: the claim on the results folder, checked before each write of this trial; None for no fencing.
        watched_metric: the metric by which a scheduler decides while the trial trains; empty if none does.
        judged_epoch: the last epoch about which the scheduler has already decided.
        evaluation: replaces the experiment's own evaluation block; None to keep it.
        evaluates: whether the trial is evaluated after training.
        joined: whether Ray is a joined cluster, which others may use and whose nodes may come and go.
        verbose: whether Ray may print.
        rehearsal: whether everything is computed on CPUs although GPUs are reserved.
    """

    trial_id: str
    experiment: AnyExperiment
    store: str
    baselines: str
    scratch: str
    resources: TrialResources
    group: str
    num_tasks: int
    run_id: str = ""
    placement: Placement = Placement()
    sizes: tuple[int, ...] = ()
    fence: Fence | None = None
    watched_metric: str = ""
    judged_epoch: int = 0
    evaluation: Evaluation | None = None
    evaluates: bool = True
    joined: bool = False
    verbose: bool = False
    rehearsal: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether the workers and the evaluation compute on GPUs."""
        return bool(self.resources.gpus_per_worker) and not self.rehearsal

    @property
    def trains_in_driver(self) -> bool:
        """Whether the trial's driver trains and evaluates, see :func:`trains_in_driver`."""
        return trains_in_driver(self.resources, joined=self.joined)

    @property
    def fences(self) -> tuple[Fence, ...]:
        """The claims that must be valid for this trial to write."""
        return (self.fence,) if self.fence else ()

    def open(self, location: str) -> Store:
        """Open a store whose writes fail once another sweep has taken over the results folder."""
        return FencedStore(open_store(location), self.fences)


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial.

    Args:
        error: the reason of a failure in one line; empty if the trial finished.
        log: the whole text of the failure, with tracebacks.
        metrics: the final metrics by their contract names.
        seconds: wall time by stage.
        diverged: whether it failed because its training was not finite.
    """

    error: str = ""
    log: str = ""
    metrics: Metrics = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    diverged: bool = False


def merge_metrics(row: Row, evaluated: Mapping[str, float]) -> Metrics:
    """Merge the metrics of the last epoch and of the evaluation.

    Counters and times are left out. A value that is not finite becomes None.
    """
    trained = {key: value for key, value in row.items() if "/" in key and not key.startswith("time/")}
    merged = {**trained, **evaluated}
    return {key: value if value is None or math.isfinite(value) else None for key, value in merged.items()}


def mute_sampler_warnings() -> None:
    """Suppress the warnings of samplers in this process: the sweep prints them once, before the first trial."""
    warnings.simplefilter("ignore", SamplerWarning)
