"""Progress of the stages of a command, on stderr."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mbcl.samplers import PoolFunction, PoolItem, PoolPlan

LONG_STAGE_SECONDS = 2.0
"""Minimum duration in seconds of a stage that is reported where stderr is no terminal."""


class Stages:
    """A progress display on stderr: a live bar on a terminal, elsewhere one line for each stage that took long."""

    def __init__(self, *, quiet: bool = False) -> None:
        console = Console(stderr=True, quiet=quiet)
        self._console = console
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._started_at = time.monotonic()
        self._description = ""
        self._task = self._bar.add_task("", total=None, start=False, visible=False)

    def __enter__(self) -> Stages:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:  # an error ends the command with its own line
            self._end()
        self._bar.stop()

    def begin(self, description: str) -> None:
        """Start a stage and end the previous one."""
        self._end()
        self._description, self._started_at = description, time.monotonic()
        self._bar.reset(self._task, total=None, description=description, visible=True)

    def _end(self) -> None:
        seconds = time.monotonic() - self._started_at
        if self._description and seconds > LONG_STAGE_SECONDS and not self._console.is_terminal:
            self._console.print(f"{self._description}: {seconds:.1f} s", highlight=False)
        self._description = ""

    def count(self, done: int, total: int) -> None:
        """Update the progress of the stage."""
        self._bar.update(self._task, completed=done, total=total)

    def map_pools(self, function: PoolFunction, items: Sequence[PoolItem]) -> Sequence[PoolPlan]:
        """Plan one pool after the other and count them."""
        plans: list[PoolPlan] = []
        for item in items:
            self.count(len(plans), len(items))
            plans.append(function(*item))
        return plans
