"""Handlers of SIGINT and SIGTERM in the sweep's process: both raise KeyboardInterrupt.

The state is global because a process has one set of signal handlers.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXIT_INTERRUPTED = 130
NOT_STARTED = "interrupted before anything was started; the same command starts it"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEBOUNCE_SECONDS = 3.0
"""Debounce window: a terminal, a wrapper script and a service manager may each deliver the same interrupt."""


class _Interrupts:
    """The state of the handlers: whether a signal was received, and whether interrupts are deferred."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all signals."""
        self.received = False
        self.num_defers = 0  # nesting depth of defer()
        self.last_raised_at = float("-inf")


_interrupts = _Interrupts()


def _handle(number: int, frame: Any) -> None:
    _interrupts.received = True
    if not _interrupts.num_defers:
        raise_pending()


def install_handlers(*, reset: bool = False) -> None:
    """Raise KeyboardInterrupt on both signals from now on; ``reset`` forgets the signals received so far.

    Python's default handler is not enough: a shell that starts the run in the background makes it ignore SIGINT.
    """
    if reset:
        _interrupts.reset()
    for number in SIGNALS:
        signal.signal(number, _handle)


@contextmanager
def preserve_handlers() -> Iterator[None]:
    """Restore the handlers at the end of the block; around ``ray.init``, which replaces them by its own."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # None: not installed from Python, so it cannot be restored
                signal.signal(number, handler)


def interrupt() -> None:
    """Interrupt the run as the user would.

    Raises:
        KeyboardInterrupt: unless interrupts are deferred, ignored or debounced.
    """
    signal.raise_signal(signal.SIGINT)


def ignore_signals() -> None:
    """Ignore both signals from now on, so that what follows runs to its end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def raise_pending() -> None:
    """Raise an interrupt that was lost: Python discards exceptions raised in destructors and in callbacks from C.

    Raises:
        KeyboardInterrupt: if a signal was received, unless one was raised within the debounce window.
    """
    if _interrupts.received and time.monotonic() - _interrupts.last_raised_at > DEBOUNCE_SECONDS:
        _interrupts.last_raised_at = time.monotonic()
        raise KeyboardInterrupt


@contextmanager
def defer() -> Iterator[None]:
    """Defer interrupts to the end of the block, so that files that belong together are all written."""
    _interrupts.num_defers += 1
    try:
        yield
    finally:
        _interrupts.num_defers -= 1
    if not _interrupts.num_defers:
        raise_pending()
