"""How long a test waits for what must happen, in one place: no test is about how fast something is.

Where a machine is slow, busy or paused everything comes later, and nothing else. So what a test waits for is an event
that comes whatever else happens meanwhile; this limit ends a test whose event never does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = float(os.environ.get("MBCL_TEST_PATIENCE", "900"))
"""Seconds; below the limit of pytest-timeout in pyproject.toml, which says less about what was waited for."""


def wait_for(condition: Callable[[], T], *, every: float = 0.05) -> T:
    """What a condition gives as soon as it is true.

    Raises:
        AssertionError: if it does not become so.
    """
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {PATIENCE:g} s"
        time.sleep(every)
    return found
