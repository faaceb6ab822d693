"""Reports a running trial's metrics to Ray Tune, which may stop the trial: the driver reads ``metrics.jsonl``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray.tune

from mbcl.engine.metrics_log import read_valid_rows
from mbcl.engine.protocols import Row
from mbcl.io.store import LocalStore, Store

EPOCH, VALUE = "mbcl_epoch", "mbcl_value"
LOCAL_SECONDS, REMOTE_SECONDS = 0.3, 3.0
"""Polling interval for new rows on a disk, and in an object store."""


@contextmanager
def report_to_tune(store: Store, metric: str, after: int) -> Iterator[None]:
    """Report every row that exists or is written by other processes during the block; its end reports the last rows.

    The arguments are those of :class:`RowReporter`; nothing is reported if ``metric`` is empty.
    """
    if not metric:
        yield
        return
    stop = threading.Event()
    reporter = RowReporter(store, metric, after)
    thread = threading.Thread(target=_poll, args=(reporter, store, stop), daemon=True, name="rows to Ray Tune")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _poll(report: Callable[[], None], store: Store, stop: threading.Event) -> None:
    interval = LOCAL_SECONDS if isinstance(store, LocalStore) else REMOTE_SECONDS
    while not stop.wait(interval):
        report()
    report()  # rows written since the last poll


def _epoch(row: Row) -> int:
    return int(row.get("epoch") or 0)


class RowReporter:
    """Reports the rows written since the last call, in order.

    ``ray.tune.report`` blocks until Ray Tune has taken the report. If Ray Tune stops the trial, it ends the thread that
    calls it, or the process if another thread calls it.

    Args:
        store: the trial's folder.
        metric: the metric to report; epochs without it are not reported.
        after: rows up to this epoch are not reported, because the scheduler has already decided about them.
    """

    def __init__(self, store: Store, metric: str, after: int) -> None:
        self._store = store
        self._metric = metric
        self._last_epoch = after

    def __call__(self) -> None:
        """Report the new rows; none if no metric is reported."""
        if not self._metric:
            return
        try:
            rows, _ = read_valid_rows(self._store)  # the workers warn about damaged rows
        except OSError:
            return  # the next poll tries again
        for row in rows:
            value = row.get(self._metric)
            if _epoch(row) > self._last_epoch:
                self._last_epoch = _epoch(row)
                if value is not None:
                    ray.tune.report({EPOCH: self._last_epoch, VALUE: float(value)})
