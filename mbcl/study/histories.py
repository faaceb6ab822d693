"""The histories of trials: their rows of metrics, one an epoch, read from ``metrics.jsonl``."""

from __future__ import annotations

import json
import math

from mbcl.io.store import Store
from mbcl.study.record import StudyRecord

History = list[dict[str, float]]
"""One mapping for each epoch, with the measured metrics only."""


def parse_history(text: str) -> History:
    """Parse a ``metrics.jsonl`` into one row for each epoch, in ascending order.

    A line that a kill cut off is skipped. If an epoch ran twice, as after a restart, its last row counts.
    """
    by_epoch: dict[float, dict[str, float]] = {}
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict) or not _is_number(row.get("epoch")):
            continue
        by_epoch[row["epoch"]] = {key: value for key, value in row.items() if _is_number(value)}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_histories(store: Store, study: StudyRecord) -> dict[int, History]:
    """Read the histories by the ordinals of their trials; a trial that has not begun has none."""
    histories = {}
    for key, trial in study.ordered().items():
        try:
            text = store.read_bytes(f"trials/{key}/metrics.jsonl").decode("utf-8", errors="replace")
        except FileNotFoundError:
            continue
        if history := parse_history(text):
            histories[trial.ordinal] = history
    return histories
