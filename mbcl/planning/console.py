"""What ``mbcl plan`` shows: what it is doing, where a person looks on, and what came out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mbcl.planning.quality import Facts
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

    def map_pools(self, function: PoolFunction, items: Sequence[PoolItem]) -> Sequence[PoolPlan]:
        """One pool after the other, counted."""
        self._bar.update(self._task, total=len(items))
        return list(self._each(function, items))

    def _each(self, function: PoolFunction, items: Sequence[PoolItem]) -> Iterator[PoolPlan]:
        for item in items:
            yield function(*item)
            self._bar.advance(self._task)


def table(facts: Facts) -> None:
    """Print what is known about a plan, one line a fact."""
    lines = list(_lines(facts))
    width = max(len(words) for words, _ in lines)
    sys.stdout.write("".join(f"{words:<{width}}  {value}\n" for words, value in lines))


def _lines(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "sampler", str(facts["parameters"])
    yield (
        "batches",
        f"{facts['batches']} of {facts['batch_size']}, {facts['coverage']:.4%} of {facts['samples']} samples",
    )
    yield "seconds", f"{facts['seconds']:.3g} of planning"
    if "loss" in facts:
        yield "loss", f"{facts['loss']:.4g} (NT-Xent at temperature {facts['temperature']:g})"
        yield "lift", f"{facts['lift']:.4g} times random batches"
        yield "bound", _bound(facts)
        yield "CLIP loss", f"{facts['clip_loss']:.4g}, {facts['clip_lift']:.4g} times random batches"
    if "overlap" in facts:
        words = f"{facts['overlap']:.3g} of the pairs; random plans {facts['overlap_of_random']:.3g}"
        yield "overlap", f"{words}; the other plan visits {facts['coverage_of_other']:.4%}"
    if "same_class" in facts:
        yield (
            "same class",
            f"{facts['same_class']:.3g} of the pairs; random batches {facts['same_class_of_random']:.3g}",
        )
    if "conflicts" in facts:
        yield "conflicts", f"{facts['conflicts']} pairs of neighbours that could not be kept apart"
    if facts["same_when_planned_again"]:
        yield "check", "planned again, the same plan"
    yield "digest", str(facts["digest"])
    yield "plan", str(facts["plan"])


def _bound(facts: Facts) -> str:
    share = f"loss is {facts['loss_of_bound']:.1%} of {facts['bound']:.4g}, which no plan can exceed"
    if not facts["bound_standard_error"]:
        return share
    return f"{share} (± {facts['bound_standard_error']:.2g}, from {facts['bound_anchors']} anchors)"
