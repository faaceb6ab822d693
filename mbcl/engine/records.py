"""The trial's own files: its configuration and its row of metrics an epoch."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict

import yaml

from mbcl.engine.prepare import Facts
from mbcl.engine.protocols import Row
from mbcl.experiment import Experiment
from mbcl.storage import Store, read_text, write_text

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.yaml"

KEYS = (
    "epoch",
    "step",
    "train/loss",
    "train/lr",
    "train/skipped_steps",
    "plan/seconds",
    "plan/loss",
    "plan/lift",
    "plan/age",
    "plan/coverage",
    "plan/conflicts",
    "val/retrieval/top1",
    "sogclr/u_age",
    "time/train",
    "time/embed",
    "time/plan",
    "time/wait",
    "time/eval",
    "time/total",
)
"""Every line of ``metrics.jsonl`` has every key; what was not measured is null."""


def empty_row() -> dict[str, float | int | None]:
    """A row with every key and no value."""
    return dict.fromkeys(KEYS)


def write_config(store: Store, experiment: Experiment, facts: Facts) -> None:
    """Write the resolved experiment, and what the data's sizes decided, as ``config.yaml``."""
    content = experiment.model_dump(mode="json")
    facts_text = "".join(f"#   {key}: {value}\n" for key, value in asdict(facts).items())
    text = f"# The resolved experiment. From the data followed:\n{facts_text}{yaml.safe_dump(content, sort_keys=False)}"
    write_text(store, CONFIG_FILE, text)


class MetricsLog:
    """``metrics.jsonl`` of one trial. It is short: every epoch rewrites it whole, so a kill leaves no half line."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: list[Row] = []

    def go_on(self, epoch: int, last: Row) -> None:
        """Keep the rows of the first ``epoch`` epochs: those that the checkpoint to go on from has seen.

        Args:
            epoch: how many epochs it has completed.
            last: the row of the last of them, as the checkpoint knows it; the line may have been lost.
        """
        self._rows = [row for row in read_rows(self._store) if (row.get("epoch") or 0) <= epoch]
        if epoch and all(row.get("epoch") != epoch for row in self._rows):
            self._rows.append(last)
        if self._rows or self._store.exists(METRICS_FILE):
            self._write()

    def best_epoch(self, key: str) -> int | None:
        """After how many epochs ``key`` was largest, the first time; None if it was never measured."""
        measured = [(row[key], -int(row["epoch"] or 0)) for row in self._rows if row.get(key) is not None]
        return -max(measured)[1] if measured else None  # type: ignore[type-var]  # None is left out

    def add(self, row: Row) -> None:
        """Know a row that :meth:`write` will write when its checkpoint is there."""
        self._rows.append(row)

    def write(self, row: Row) -> None:
        """Write the file; ``row`` takes the place of the last one that was added."""
        self._rows[-1] = row
        self._write()

    def _write(self) -> None:
        write_text(self._store, METRICS_FILE, "".join(json.dumps(row, allow_nan=False) + "\n" for row in self._rows))


def read_rows(store: Store) -> list[Row]:
    """The rows of a trial; empty if it has none yet."""
    if not store.exists(METRICS_FILE):
        return []
    rows = []
    for number, line in enumerate(read_text(store, METRICS_FILE).splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            log.warning("%s/%s: line %d is damaged and left out", store.uri, METRICS_FILE, number)
    return rows
