"""The files of one trial: its resolved configuration and one row of metrics per epoch."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from textwrap import wrap
from typing import Any

from mbcl.config.yaml_reader import dump_yaml
from mbcl.engine.checkpoint import UNREADABLE
from mbcl.engine.protocols import Row
from mbcl.engine.setup import DataSizes
from mbcl.io.store import Store, write_text

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.yaml"
_WIDTH = 110

KEYS = (
    "epoch",
    "step",
    "train/loss",
    "train/lr",
    "train/skipped_steps",
    "train/same_class",
    "plan/seconds",
    "plan/loss",
    "plan/lift",
    "plan/age",
    "plan/coverage",
    "plan/conflicts",
    "val/retrieval/mrr",
    "val/retrieval/top1",
    "val/knn/top1",
    "val/probe/top1",
    "sogclr/u_age",
    "work/images",
    "work/passes",
    "time/train",
    "time/embed",
    "time/plan",
    "time/wait",
    "time/eval",
    "time/total",
)
"""The schema of ``metrics.jsonl``: every line has every key; a value that was not measured is null."""


def write_config(store: Store, content: Mapping[str, Any], sizes: DataSizes) -> None:
    """Write ``config.yaml``: the resolved experiment, and the sizes derived from the data as comments."""
    facts = asdict(sizes)
    facts["sources"] = ", ".join(f"{name} {version}" for name, version in facts["sources"].items())
    lines = (line for key, value in facts.items() if value != "" for line in wrap(f"{key}: {value}", _WIDTH))
    sizes_text = "".join(f"#   {line}\n" for line in lines)
    text = f"# The resolved experiment. From the data followed:\n{sizes_text}{dump_yaml(dict(content))}"
    write_text(store, CONFIG_FILE, text)


class MetricsLog:
    """``metrics.jsonl`` of one trial. It is short, so every epoch rewrites it whole: a kill leaves no partial line."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: list[Row] = []

    def go_on(self, epoch: int, last: Row) -> None:
        """Truncate the log to the first ``epoch`` epochs, those before the checkpoint to resume from.

        ``last`` is the row of the last of them, as stored in the checkpoint; its line may have been lost.
        """
        self._rows = [row for row in read_rows(self._store) if (row.get("epoch") or 0) <= epoch]
        if epoch and all(row.get("epoch") != epoch for row in self._rows):
            self._rows.append(last)
        if self._rows or self._store.exists(METRICS_FILE):
            self._write()

    def best_epoch(self, key: str) -> int | None:
        """Return the first epoch with the largest value of ``key``; None if it was never measured."""
        measured = [(row[key], -int(row["epoch"] or 0)) for row in self._rows if row.get(key) is not None]
        return -max(measured)[1] if measured else None

    def add(self, row: Row) -> None:
        """Append a row in memory; :meth:`write` writes it once its checkpoint exists."""
        self._rows.append(row)

    def write(self, row: Row) -> None:
        """Write the file; ``row`` replaces the last row that was added."""
        self._rows[-1] = row
        self._write()

    def _write(self) -> None:
        write_text(self._store, METRICS_FILE, "".join(json.dumps(row, allow_nan=False) + "\n" for row in self._rows))


def read_rows(store: Store) -> list[Row]:
    """Read the rows of a trial; empty if it has none yet. Damaged lines are skipped with a warning.

    Raises:
        OSError: if storage cannot be reached.
    """
    rows, errors = read_valid_rows(store)
    for line in errors:
        logger.warning("%s", line)
    return rows


def read_valid_rows(store: Store) -> tuple[list[Row], list[str]]:
    """Read the valid rows of a trial; returns them and one error message per damaged line.

    Raises:
        OSError: if storage cannot be reached, so that the state of the file is unknown.
    """
    path = f"{store.uri}/{METRICS_FILE}"
    try:
        lines = store.read_bytes(METRICS_FILE).splitlines()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        return [], [f"{path}: cannot be read: {error.strerror}"]
    rows = [row_of(line) for line in lines]
    errors = [f"{path}: line {number} is damaged and left out" for number, row in enumerate(rows, 1) if row is None]
    return [row for row in rows if row is not None], errors


def row_of(line: bytes) -> Row | None:
    """Parse a line of ``metrics.jsonl``; None if it is damaged. A row has an epoch, and only numbers or nulls."""
    try:
        row = json.loads(line)  # also decodes the bytes
        is_valid = isinstance(row, dict) and type(row.get("epoch")) is int
        is_valid = is_valid and all(x is None or (type(x) in (int, float) and math.isfinite(x)) for x in row.values())
    except (ValueError, OverflowError, RecursionError):
        return None
    return row if is_valid else None
