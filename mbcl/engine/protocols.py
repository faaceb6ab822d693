"""The interface between the engine and who watches a training: one process, torchrun and Ray implement it differently.

The engine does not import Ray; the orchestration passes in its own implementations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

Row = Mapping[str, float | int | None]


class Observer(Protocol):
    """A listener for the events of a training. Every rank has its own observers; only those of rank 0 write files."""

    def on_step(self, step: int, loss: float, lr: float) -> None:
        """Handle the end of a step; ``step`` counts from 0 over the whole training."""
        return

    def on_checkpoint(self) -> None:
        """Persist all events so far, just before a checkpoint is written: a resumed training does not repeat them."""
        return

    def on_epoch(self, row: Row) -> None:
        """Handle the end of an epoch, after its checkpoint was written; ``row`` is the same on every rank."""
        return

    def close(self) -> None:
        """Release all resources, after the last epoch or after a failure of training."""
        return


class BaseObserver(Observer):
    """An observer whose hooks do nothing; subclasses override the hooks that they need."""
