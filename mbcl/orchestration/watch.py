"""``--watch``: the report, written again every half minute while trials run, so that an open page follows the study."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from mbcl.io.store import Store
from mbcl.study.record import StudyRecord

logger = logging.getLogger(__name__)

SECONDS = 30.0
"""Interval of the reports, and of the reloads of their page."""
PAGE = "report.html"
_RELOAD = f'<meta http-equiv="refresh" content="{SECONDS:g}">'.encode()


class _ReloadingPage:
    """The results folder as reports of a running study see it: their page reloads itself.

    The page is never without that, even for a moment: one that a browser loads then would stay as it is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def write_bytes(self, name: str, content: bytes) -> None:
        if name == PAGE:
            content = content.replace(b"<head>", b"<head>\n" + _RELOAD, 1)
        self._store.write_bytes(name, content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Watch:
    """Writes reports of a running study, one at a time, in a thread of its own.

    Args:
        store: the results folder.
        study: the record, of which each report takes a copy.
        write_report: writes tables, figures and page.
    """

    def __init__(self, store: Store, study: StudyRecord, write_report: Callable[[Store, StudyRecord], object]) -> None:
        self._store = cast(Store, _ReloadingPage(store))
        self._study = study
        self._write_report = write_report
        self._written_at = time.monotonic()
        self._thread: threading.Thread | None = None

    def poll(self) -> None:
        """Begin a report if the last one is old enough; call it where the record does not change."""
        busy = self._thread is not None and self._thread.is_alive()
        if busy or time.monotonic() - self._written_at < SECONDS:
            return
        self._written_at = time.monotonic()
        study = self._study.model_copy(deep=True)
        for record in study.trials.values():
            if record.status == "running":
                record.status = "pending"
        self._thread = threading.Thread(target=self._write, args=(study,), daemon=True, name="report")
        self._thread.start()

    def close(self) -> None:
        """Wait for a report that is being written."""
        if self._thread is not None:
            self._thread.join()

    def _write(self, study: StudyRecord) -> None:
        try:
            self._write_report(self._store, study)
        except Exception as error:  # the last report, after the trials, must not fail for an earlier one
            logger.warning("the report of --watch was not written: %s", error)
