"""The measurement of one arm of ``mbcl bench train``: its speed, its seconds by stage and its peak memory."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mbcl.bench.measure import memory_bytes
from mbcl.bench.train_settings import TrainBenchSettings

STAGES = ("views", "step", "embed", "plan", "wait", "other")
"""Stages of an epoch: making views; forward, backward and optimiser; embeddings for a plan; computing plans, which with
``overlap`` is beside the training; waiting for plans or for a loader; the rest: checkpoint, log, samples of a plan."""


@dataclass(frozen=True)
class ArmRun:
    """One run of an arm.

    Args:
        samples_a_second: samples trained on, two views each, over the wall seconds of the epochs that count.
        seconds: wall seconds of a mean epoch by stage of ``STAGES``; a stage that the arm does not have is missing.
        memory: peak bytes of the process, or of the GPU's allocations; None where the system does not count them.
        helpers: the sum of the peak bytes of its processes: loader workers or planner. Memory that they share with the
            process counts in each. None where the system does not count them.
        loss: the mean loss over the epochs that count.
    """

    samples_a_second: float
    seconds: Mapping[str, float]
    memory: int | None
    helpers: int | None
    loss: float

    @staticmethod
    def of(
        settings: TrainBenchSettings,
        *,
        total: float,
        stages: Mapping[str, float],
        memory: int | None,
        helpers: int | None,
        loss: float,
    ) -> ArmRun:
        """Return the run of the epochs that count, of their wall seconds in all and by stage."""
        num_samples = settings.epochs * settings.steps * settings.batch_size
        seconds = {stage: stages[stage] / settings.epochs for stage in STAGES if stage in stages}
        return ArmRun(num_samples / total, seconds, memory, helpers, loss)


class PeakMemory:
    """Peak memory of an arm from now on; a CPU's process must be the arm's own, because its peak never falls."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.helpers: int | None = None if _peak("cpu") is None else 0
        if device == "cuda":
            gc.collect()  # an earlier arm of this process may hang in a cycle of references
            torch.cuda.reset_peak_memory_stats()

    def sample(self) -> None:
        """Add up the peaks of the processes that exist now; the largest sum counts."""
        if self.helpers is not None:
            peaks = (_peak("cpu", child.pid or 0) for child in multiprocessing.active_children())
            self.helpers = max(self.helpers, sum(peak or 0 for peak in peaks))

    def peak(self) -> int | None:
        """Return the peak bytes of this process, or of the GPU's allocations."""
        return _peak(self._device)


def _peak(device: str, process: int | str = "self") -> int | None:
    """Return the peak bytes; None if the process has ended or its system does not count them (macOS, gVisor)."""
    try:
        return memory_bytes("VmHWM", device, process)
    except (OSError, ValueError):
        return None


def synchronize(device: str) -> None:
    """Wait until the device has done all work."""
    if device == "cuda":
        torch.cuda.synchronize()
