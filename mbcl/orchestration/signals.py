"""SIGINT and SIGTERM of the sweep's process, both as KeyboardInterrupt; a process has one set of signal handlers."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXIT_INTERRUPTED = 130
BEFORE = "interrupted before anything was started; the same command starts it"
NUMBERS = (signal.SIGINT, signal.SIGTERM)
TOGETHER_SECONDS = 3.0
"""Signals that follow each other sooner are one interrupt: a script, a terminal and a service manager may all send."""


class _Interrupts:
    """What has come, and whether it may be raised now."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """As if nothing had come."""
        self.pending = False
        self.held = 0
        self.raised = float("-inf")

    def handle(self, number: int, frame: Any) -> None:
        """The handler of both signals."""
        self.pending = True
        if not self.held:
            self.check()

    def check(self) -> None:
        """Raise an interrupt that has come and has not been raised lately."""
        if self.pending and time.monotonic() - self.raised > TOGETHER_SECONDS:
            self.raised = time.monotonic()
            raise KeyboardInterrupt


_interrupts = _Interrupts()


def install_handlers(*, anew: bool = False) -> None:
    """Raise KeyboardInterrupt on both signals, from now on; ``anew`` forgets what has come before.

    Explicitly: a shell that starts the run in the background tells it to ignore SIGINT.
    """
    if anew:
        _interrupts.forget()
    for number in NUMBERS:
        signal.signal(number, _interrupts.handle)


@contextmanager
def preserve_handlers() -> Iterator[None]:
    """For ``ray.init``, which puts handlers of its own in place of these: afterwards they are what they were."""
    handlers = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # one that is no Python's cannot be put back
                signal.signal(number, handler)


def interrupt() -> None:
    """As if the user had interrupted the run.

    Raises:
        KeyboardInterrupt: unless interrupts are held back or ignored just now.
    """
    signal.raise_signal(signal.SIGINT)


def ignore_signals() -> None:
    """From here on what is begun is ended."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def raise_pending() -> None:
    """Raise an interrupt that was lost: Python drops exceptions that are raised in destructors and callbacks of C.

    Raises:
        KeyboardInterrupt: if one of the signals has come.
    """
    _interrupts.check()


@contextmanager
def defer() -> Iterator[None]:
    """For files that belong together: an interrupt waits for the end of the block."""
    _interrupts.held += 1
    try:
        yield
    finally:
        _interrupts.held -= 1
    if not _interrupts.held:
        _interrupts.check()
