"""The trial's own files: its configuration and its row of metrics an epoch."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict

import yaml

from mbcl.config.experiment import Experiment
from mbcl.engine.checkpoint import UNREADABLE
from mbcl.engine.protocols import Row
from mbcl.engine.setup import DataSizes
from mbcl.io.store import Store, write_text

logger = logging.getLogger(__name__)

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


def write_config(store: Store, experiment: Experiment, facts: DataSizes) -> None:
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
    """The rows of a trial; empty if it has none yet. What is damaged is left out with a warning.

    Raises:
        OSError: if storage cannot be reached.
    """
    rows, wrong = read_valid_rows(store)
    for line in wrong:
        logger.warning("%s", line)
    return rows


def read_valid_rows(store: Store) -> tuple[list[Row], list[str]]:
    """The rows of a trial, and what is wrong with its file, a line each.

    Raises:
        OSError: if storage cannot be reached, which says nothing about the file.
    """
    where = f"{store.uri}/{METRICS_FILE}"
    try:
        lines = store.read_bytes(METRICS_FILE).splitlines()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        return [], [f"{where}: cannot be read: {error.strerror}"]
    found = [row_of(line) for line in lines]
    wrong = [f"{where}: line {number} is damaged and left out" for number, row in enumerate(found, 1) if row is None]
    return [row for row in found if row is not None], wrong


def row_of(line: bytes) -> Row | None:
    """A line of ``metrics.jsonl``; None if it is damaged. A row has its epoch, and numbers or nulls alone."""
    try:
        row = json.loads(line)  # decodes it, too
        whole = isinstance(row, dict) and type(row.get("epoch")) is int and all(map(_is_value, row.values()))
    except (ValueError, OverflowError, RecursionError):
        return None
    return row if whole else None


def _is_value(value: object) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))  # type: ignore[arg-type]
