"""The limit for waiting for an event in a test. No test measures speed.

A slow, busy or paused machine only delays events. So a test waits for an event that must come, and this limit ends a
test whose event never comes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = float(os.environ.get("MBCL_TEST_PATIENCE", "900"))
"""Seconds; below the limit of pytest-timeout in pyproject.toml, whose error names no event."""


def wait_for(condition: Callable[[], T], *, every: float = 0.05) -> T:
    """Wait until a condition is true, and return its value.

    Raises:
        AssertionError: if it does not become true in time.
    """
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {PATIENCE:g} s"
        time.sleep(every)
    return value
