"""A trial's job and its result: what travels between the sweep and the trial's driver. No Ray here."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

from mbcl.config.evaluation import Evaluation
from mbcl.engine.protocols import Row
from mbcl.io.ownership import Fence, FencedStore
from mbcl.io.store import Store, open_store
from mbcl.orchestration.cluster.capacity import TrialResources
from mbcl.orchestration.cluster.placement import Placement
from mbcl.orchestration.search_space.trial_kinds import AnyExperiment

Metrics = dict[str, float | int | None]


@dataclass(frozen=True)
class Job:
    """One trial to run.

    Args:
        trial_id: its name.
        experiment: the resolved configuration.
        store: the trial's folder, a path or URI that every node opens.
        baselines: the folder in which the study's trials share the metrics of baselines.
        scratch: a folder for Ray's own files while the trial runs.
        need: the resources of its workers.
        group: the name of the study.
        num_tasks: how many pools are planned at a time.
        placement: the nodes on which its small processes run.
        sizes: numbers of workers with which it may begin, ascending; empty for ``need.workers`` alone.
        fence: the claim on the results folder under which everything of this trial is written; None for no fencing.
        watched: the metric by which a scheduler decides while the trial trains; empty if none does.
        judged: the last epoch about which the scheduler has decided already.
        evaluation: replaces the experiment's own evaluation block; None to keep it.
        joined: whether Ray is a joined cluster, which others may use and whose nodes come and go.
        verbose: whether Ray may print.
        rehearsal: whether everything is computed on CPUs, although GPUs are reserved.
    """

    trial_id: str
    experiment: AnyExperiment
    store: str
    baselines: str
    scratch: str
    need: TrialResources
    group: str
    num_tasks: int
    placement: Placement = Placement()
    sizes: tuple[int, ...] = ()
    fence: Fence | None = None
    watched: str = ""
    judged: int = 0
    evaluation: Evaluation | None = None
    joined: bool = False
    verbose: bool = False
    rehearsal: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether a worker, and the evaluation, compute on a GPU."""
        return bool(self.need.gpus_per_worker) and not self.rehearsal

    @property
    def fences(self) -> tuple[Fence, ...]:
        """The claims that this trial is written under."""
        return (self.fence,) if self.fence else ()

    def open(self, location: str) -> Store:
        """The store at a location, for writing under the sweep's claim."""
        return FencedStore(open_store(location), self.fences)


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended.

    Args:
        error: why it failed in one line; empty if it finished.
        metrics: the final metrics by their contract names.
        seconds: wall time by stage.
    """

    error: str = ""
    metrics: Metrics = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def merge_metrics(row: Row, evaluated: Mapping[str, float]) -> Metrics:
    """The metrics of the last epoch, without counters and clocks, and those of the evaluation; not finite is None."""
    trained = {key: value for key, value in row.items() if "/" in key and not key.startswith("time/")}
    merged = {**trained, **evaluated}
    return {key: value if value is None or math.isfinite(value) else None for key, value in merged.items()}


def describe_error(error: BaseException) -> str:
    """An error as one line: its own words if it is meant for users, otherwise its kind too.

    Ray wraps errors of other processes in tracebacks: the last line of those is the error itself.
    """
    from mbcl.errors import MbclError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    if isinstance(error, MbclError) or len(lines) > 1:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def mute_sampler_warnings() -> None:
    """Keep samplers from warning in this process: the sweep has said it once, before the first trial."""
    warnings.filterwarnings("ignore", message="sampler ", category=UserWarning)
