"""What tests on gloo processes share: ``run_on_gloo`` with the suite's patience, and short heartbeats.

gloo.run(function, 2, *arguments)   # [function(world, *arguments) of rank 0, of rank 1]
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from patience import PATIENCE, wait_for

from mbcl.testing import run_on_gloo

run = partial(run_on_gloo, timeout=PATIENCE)


def allow_children() -> None:
    """Let this rank have a planning process: the ranks are daemons, which may have none; those of torchrun are not."""
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]


@contextmanager
def short_rounds() -> Iterator[Callable[[int], None]]:
    """On a rank: rounds of ``run_while_ranks_wait`` are short, and what is yielded waits until so many have passed.

    Work that waits so takes longer than any collective: it never ends where ranks do not meet meanwhile.
    """
    from mbcl.distributed import collectives

    met = 0
    seconds, all_reduce_sum = collectives.ROUND_SECONDS, collectives.all_reduce_sum

    def counted(*arguments: Any) -> Any:
        nonlocal met
        total = all_reduce_sum(*arguments)
        met += 1
        return total

    def rounds(number: int) -> None:
        end = met + number
        wait_for(lambda: met >= end, every=0.01)

    collectives.ROUND_SECONDS, collectives.all_reduce_sum = 0.05, counted
    try:
        yield rounds
    finally:
        collectives.ROUND_SECONDS, collectives.all_reduce_sum = seconds, all_reduce_sum
