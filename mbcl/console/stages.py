"""Says what a command is doing, where a person looks on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mbcl.samplers import PoolFunction, PoolItem, PoolPlan

PATIENCE = 2.0
"""Seconds after which a person wants to know what is going on."""


class Stages:
    """Says on stderr what takes long: a moving line on a terminal, elsewhere a line for each stage that took long."""

    def __init__(self) -> None:
        console = Console(stderr=True)
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
        self._begun = time.monotonic()
        self._words = ""
        self._task = self._bar.add_task("", total=None, start=False, visible=False)

    def __enter__(self) -> Stages:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:  # otherwise one line says why not
            self._end()
        self._bar.stop()

    def begin(self, words: str) -> None:
        """A stage begins, and the one before has ended."""
        self._end()
        self._words, self._begun = words, time.monotonic()
        self._bar.reset(self._task, total=None, description=words, visible=True)

    def _end(self) -> None:
        seconds = time.monotonic() - self._begun
        if self._words and seconds > PATIENCE and not self._console.is_terminal:
            self._console.print(f"{self._words}: {seconds:.1f} s", highlight=False)
        self._words = ""

    def count(self, done: int, total: int) -> None:
        """So much of the stage is done."""
        self._bar.update(self._task, completed=done, total=total)

    def map_pools(self, function: PoolFunction, items: Sequence[PoolItem]) -> Sequence[PoolPlan]:
        """One pool after the other, counted."""
        self._bar.update(self._task, total=len(items))
        return list(self._each(function, items))

    def _each(self, function: PoolFunction, items: Sequence[PoolItem]) -> Iterator[PoolPlan]:
        for item in items:
            yield function(*item)
            self._bar.advance(self._task)
