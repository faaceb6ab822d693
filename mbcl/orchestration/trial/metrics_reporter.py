"""Tells Ray Tune what a trial measures while it trains: a thread of its driver that reads the rows it writes."""

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
"""How often rows are looked for in a folder, and in an object store."""


@contextmanager
def reporting(store: Store, metric: str, after: int) -> Iterator[None]:
    """Report every row that is there or appears during the block, in order, the last one before it ends.

    Ray Tune takes one report at a time, and a trial that it stops ends in the middle of one.

    Args:
        store: the trial's folder.
        metric: what counts; epochs without it are not reported. Nothing is reported if it is empty.
        after: rows up to this epoch are not reported; the scheduler knows them.
    """
    if not metric:
        yield
        return
    done = threading.Event()
    reporter = _Reporter(store, metric, after)
    thread = threading.Thread(target=_watch, args=(reporter, store, done), daemon=True, name="rows to Ray Tune")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch(report: Callable[[], None], store: Store, done: threading.Event) -> None:
    seconds = LOCAL_SECONDS if isinstance(store, LocalStore) else REMOTE_SECONDS
    while not done.wait(seconds):
        report()
    report()


def _epoch(row: Row) -> int:
    return int(row.get("epoch") or 0)


class _Reporter:
    """Reports rows that are new since the last call."""

    def __init__(self, store: Store, metric: str, after: int) -> None:
        self._store = store
        self._metric = metric
        self._reported = after

    def __call__(self) -> None:
        try:
            rows, _ = read_valid_rows(self._store)  # what is damaged, the workers say
        except OSError:
            return  # the next look will find it
        for row in rows:
            value = row.get(self._metric)
            if _epoch(row) > self._reported:
                self._reported = _epoch(row)
                if value is not None:
                    ray.tune.report({EPOCH: self._reported, VALUE: float(value)})
