"""The display of a running study: on a terminal one live block, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from mbcl.console import duration
from mbcl.engine.metrics_log import METRICS_FILE, row_of
from mbcl.engine.protocols import Row
from mbcl.errors import pluralize
from mbcl.io.store import Store, is_uri
from mbcl.orchestration.results_folder.layout import trial_folder
from mbcl.orchestration.time_left import Running, seconds_left
from mbcl.study.record import StudyRecord

LINE_SECONDS = 60.0
"""Interval of the lines where there is no terminal."""
URI_SECONDS = 5.0
"""Shortest interval between two looks at a trial's rows in an object store."""


@dataclass(frozen=True)
class Devices:
    """The cores, or GPUs, of a study: of one trial, of all nodes, and how many trials run at a time."""

    name: str
    each: float
    total: float
    slots: int

    def in_use(self, trials: int) -> str:
        """Describe how many of them a number of trials has reserved."""
        return f"{round(trials * self.each, 2):g} of {pluralize(self.total, self.name, 'g')} in use"


class LiveDisplay:
    """The state of a running study: trials done, epochs and losses of running ones, the best so far, the time left.

    Args:
        screen: where it is printed.
        study: the record, which others change.
        store: the results folder, of which rows of metrics are read.
        devices: the devices of the trials.
        num_epochs: returns the number of epochs of a trial.
        label: returns the name of a trial for people.
        undrawn: returns how many trials may still be added.
    """

    def __init__(
        self,
        screen: RichConsole,
        study: StudyRecord,
        store: Store,
        devices: Devices,
        *,
        num_epochs: Callable[[str], int],
        label: Callable[[str], str],
        undrawn: Callable[[], int] = lambda: 0,
    ) -> None:
        self._screen = screen
        self._study = study
        self._store = store
        self._devices = devices
        self._num_epochs = num_epochs
        self._label = label
        self._undrawn = undrawn
        self._started_at: dict[str, float] = {}
        self._shares: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._read_at: dict[str, float] = {}
        columns = (TextColumn("{task.description}"), BarColumn(16), MofNCompleteColumn(), TextColumn("epochs"))
        self._bars = Progress(*columns, console=screen)
        self._printed_at = time.monotonic()
        self._line = ""
        """The last summary. Rich renders in a thread of its own, in which the record could change under a summary."""

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the display during the block if the output is a terminal."""
        if not self._screen.is_terminal:
            yield
            return
        self._line = self.summary()
        with Live(get_renderable=self._render, console=self._screen, transient=True, refresh_per_second=2):
            yield

    def _render(self) -> Group:
        return Group(Text(self._line, overflow="fold"), self._bars)

    def start(self, trial_id: str) -> None:
        """Show a trial that starts."""
        self._started_at[trial_id] = time.monotonic()
        if trial_id in self._tasks:  # its driver was lost, and another one goes on
            self._bars.remove_task(self._tasks[trial_id])
        self._tasks[trial_id] = self._bars.add_task(
            escape(f"{self._label(trial_id)}: starting"), total=self._num_epochs(trial_id)
        )
        self._line = self.summary()

    def end(self, trial_id: str) -> None:
        """Remove a trial that has ended."""
        self._started_at.pop(trial_id, None)
        self._shares.pop(trial_id, None)
        self._read_at.pop(trial_id, None)
        if trial_id in self._tasks:
            self._bars.remove_task(self._tasks.pop(trial_id))
        self._line = self.summary()

    def poll(self) -> None:
        """Read last rows of running trials; where there is no terminal, print a line now and then."""
        due = time.monotonic() - self._printed_at > LINE_SECONDS
        if not (self._screen.is_terminal or due):
            return
        for trial_id in self._to_read():
            self._read(trial_id)
        self._line = self.summary()
        if not self._screen.is_terminal:
            self._printed_at = time.monotonic()
            self._screen.print(escape(self._line), soft_wrap=True)

    def _to_read(self) -> list[str]:
        """Return the running trials whose rows are read now.

        On a disk, and for a line a minute, these are all. In an object store a read is a request, for which Ray Tune's
        loop waits: of one trial at a time, that whose last read is the longest ago.
        """
        if not (self._screen.is_terminal and is_uri(self._store.uri)):
            return list(self._tasks)
        longest = min(self._tasks, key=lambda trial_id: self._read_at.get(trial_id, float("-inf")), default=None)
        due = longest is not None and time.monotonic() - self._read_at.get(longest, float("-inf")) > URI_SECONDS
        return [longest] if longest is not None and due else []

    def _read(self, trial_id: str) -> None:
        self._read_at[trial_id] = time.monotonic()
        row = last_row(self._store, trial_id)
        if row is None:
            return
        epochs = int(row.get("epoch") or 0)
        self._shares[trial_id] = epochs / max(1, self._num_epochs(trial_id))
        text = f"{self._label(trial_id)}: loss {number(row.get('train/loss'))}"
        if row.get("val/retrieval/mrr") is not None:
            text += f", val {number(row['val/retrieval/mrr'])}"
        self._bars.update(self._tasks[trial_id], completed=epochs, description=escape(text))

    def summary(self) -> str:
        """Return one line: trials, the best of the finished ones, devices in use, time left."""
        statuses = [record.status for record in self._study.trials.values()]
        done = sum(status in ("finished", "stopped", "failed") for status in statuses)
        parts = [f"{done} of {pluralize(len(statuses) + self._undrawn(), 'trial')}"]
        if failed := statuses.count("failed"):
            parts.append(f"{failed} failed")
        if (best := self._best()) is not None:
            value, trial_id = best
            parts.append(f"best {self._study.metric} {number(value)} ({self._label(trial_id)})")
        parts.append(self._devices.in_use(len(self._started_at)))
        left = self._seconds_left()
        parts.append("time left not known" if left is None else f"about {duration(left)} left")
        return ", ".join(parts)

    def _best(self) -> tuple[float, str] | None:
        metric, sign = self._study.metric, 1 if self._study.mode == "max" else -1
        finished = ((key, record) for key, record in self._study.trials.items() if record.status == "finished")
        values = [(value, key) for key, record in finished if (value := record.value_of(metric)) is not None]
        return max(values, key=lambda pair: sign * pair[0]) if values else None

    def _seconds_left(self) -> float | None:
        now, trials = time.monotonic(), self._study.trials
        running = [
            Running(trials[key].setting, now - start, self._shares.get(key, 0.0))
            for key, start in self._started_at.items()
        ]
        pending = [record.setting for record in trials.values() if record.status == "pending"]
        return seconds_left(self._study, running, [*pending, *[-1] * self._undrawn()], self._devices.slots)


def last_row(store: Store, trial_id: str) -> Row | None:
    """Return the newest row of a trial; None if there is none, or it is damaged."""
    try:
        lines = store.read_bytes(f"{trial_folder(trial_id)}/{METRICS_FILE}").splitlines()
    except OSError:
        return None
    return row_of(lines[-1]) if lines else None


def number(value: Any) -> str:
    """Format a metric in four decimals, or in scientific notation if it is tiny."""
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) >= 0.001 or not value else f"{value:.2e}"
