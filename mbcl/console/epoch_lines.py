"""Progress of one training on a console: one line for each epoch, and on a terminal a live status line."""

from __future__ import annotations

from statistics import fmean

from rich.console import Console

from mbcl.config.experiment import Experiment
from mbcl.console import duration
from mbcl.engine.protocols import BaseObserver, Row
from mbcl.errors import pluralize

LEFT_SECONDS = 10.0
"""A shorter time left is not worth a word."""


def epoch_line(row: Row, epochs: int) -> str:
    """Format one epoch, for example ``epoch 3/10  loss 2.78  val MRR 0.391  plan lift 1.43  0.7 s``."""
    parts = [f"epoch {row['epoch']}/{epochs}", f"loss {row['train/loss']:.4g}"]
    for key, label in (("val/retrieval/mrr", "val MRR"), ("plan/lift", "plan lift")):
        value = row.get(key)
        if value is not None:
            parts.append(f"{label} {value:.3g}")
    if row.get("plan/age"):  # the age in epochs of the embeddings that the lift refers to
        parts.append(f"plan age {row['plan/age']:.2g}")
    parts.append(f"{row['time/total']:.1f} s")
    return "  ".join(parts)


def title(experiment: Experiment, workers: int) -> str:
    """Describe a training before it begins, in one line."""
    parts = f"{experiment.encoder.name} on {experiment.data.name}", experiment.objective.name
    train = experiment.train
    batches = f"batches of {train.batch_size} by {experiment.sampler.name}"
    size = f"{pluralize(train.epochs, 'epoch')}, seed {experiment.seed}, {pluralize(workers, 'worker')}"
    return f"training {', '.join(parts)}, {batches}; {size}"


class EpochLines(BaseObserver):
    """A training observer that prints to the console."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._seconds: list[float] = []  # of the epochs of this process
        self._console = Console(highlight=False)
        self._status = self._console.status("reading data") if self._console.is_terminal else None
        if self._status:
            self._status.start()

    def log(self, text: str) -> None:
        """Print a line before or between the epoch lines."""
        self._console.print(text, soft_wrap=True, markup=False)

    def on_step(self, step: int, loss: float, lr: float) -> None:
        """Update the status line."""
        if self._status:
            self._status.update(f"step {step + 1}  loss {loss:.4g}  learning rate {lr:.3g}")

    def on_epoch(self, row: Row) -> None:
        """Print the line of the epoch, with the time left if that is more than a few seconds."""
        self._seconds.append(row["time/total"] or 0.0)
        left = fmean(self._seconds) * (self._epochs - int(row["epoch"] or 0))
        rest = f"  about {duration(left)} left" if left > LEFT_SECONDS else ""
        self._console.print(epoch_line(row, self._epochs) + rest)

    def close(self) -> None:
        """Remove the status line."""
        if self._status:
            self._status.stop()
