"""What a trial's driver is told, and what it answers. Plain data that travels between processes; no Ray here."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mbcl.errors import SamplerWarning
from mbcl.io.ownership import Fence, FencedStore
from mbcl.io.store import Store, open_store
from mbcl.orchestration.cluster.capacity import TrialResources
from mbcl.orchestration.cluster.placement import Placement

Metrics = dict[str, float | int | None]


@dataclass(frozen=True)
class Job:
    """One trial to run.

    Args:
        trial_id: its name.
        experiment: the resolved configuration as plain data.
        store: where its folder is, a path or URI that every node opens.
        baselines: where the study's trials keep what baselines gave, for each other.
        scratch: where Ray may keep files of its own while the trial runs.
        need: what its workers get.
        group: the study that it belongs to.
        num_tasks: how many pools are planned at a time.
        placement: which nodes its small processes run on.
        sizes: with how many workers it may begin, ascending; empty for ``need.workers`` alone.
        fence: the claim on the results folder that everything of this trial is written under; None for no such care.
        watched: the metric that a scheduler decides by while the trial trains; empty if none does.
        judged: up to which epoch it has decided before.
        evaluation: the evaluation block that takes the place of the experiment's own, as plain data; empty for that.
        joined: whether the Ray is a cluster that others may use, too, and whose nodes come and go.
        verbose: whether Ray may talk.
        rehearsal: whether everything is computed on CPUs, although GPUs are reserved.
    """

    trial_id: str
    experiment: dict[str, Any]
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
    evaluation: dict[str, Any] = field(default_factory=dict)
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


def merge_metrics(row: Mapping[str, Any], evaluated: Mapping[str, float]) -> Metrics:
    """The last row of training, without its counters and clocks, and what the evaluation measured."""
    kept = {key: value for key, value in row.items() if "/" in key and not key.startswith("time/")}
    merged = {**kept, **evaluated}
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
    warnings.simplefilter("ignore", SamplerWarning)
