"""What is counted while an epoch runs, and the row of metrics that it becomes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mbcl.engine.protocols import PlannedBatches
from mbcl.engine.records import empty_row

STAGES = ("train", "embed", "wait", "eval")


@dataclass
class EpochCount:
    """Losses, plans and wall seconds of one epoch.

    Args:
        losses: of every step, over the global batch, scalars.
        plans: every plan that was made for it.
        used: the batches that were trained on, (S, B) each.
        validation: R@1 on the validation images, if it was measured.
        seconds: wall time by stage.
    """

    losses: list[Tensor] = field(default_factory=list)
    plans: list[PlannedBatches] = field(default_factory=list)
    used: list[Tensor] = field(default_factory=list)
    validation: float | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    _start: float = field(default_factory=time.perf_counter)

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def row(self, *, epoch: int, lr: float, num_train: int) -> dict[str, float | int | None]:
        """The row of metrics, with every key.

        Args:
            epoch: how many epochs are completed with this one.
            lr: of the last step.
            num_train: N.
        """
        row = empty_row()
        row["epoch"] = epoch
        row["step"] = epoch * len(self.losses)
        row["train/loss"] = float(torch.stack(self.losses).mean())
        row["train/lr"] = lr
        row["val/retrieval/top1"] = self.validation
        if self.plans:
            row["plan/seconds"] = sum(planned.seconds for planned in self.plans)
            row["plan/loss"] = sum(planned.loss for planned in self.plans) / len(self.plans)
            row["plan/lift"] = sum(planned.lift for planned in self.plans) / len(self.plans)
            row["plan/age"] = 0.0  # made from this epoch's weights
            row["plan/coverage"] = len(torch.unique(torch.cat(self.used))) / num_train
        for stage in STAGES:
            row[f"time/{stage}"] = self.seconds[stage]
        row["time/plan"] = row["plan/seconds"] or 0.0
        row["time/total"] = time.perf_counter() - self._start
        return row
