"""Memory that one step frees and the next one needs again."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from mbcl.engine.freed_memory import keep_freed_memory
from mbcl.planner.background import BackgroundProcess

BLOCKS, BYTES = 20, 2**23


def _faults(keep: bool) -> list[int]:
    """Return the page faults of taking, writing and freeing the blocks, each time after the second."""
    if keep:
        keep_freed_memory()
    faults = []
    for _ in range(12):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(BYTES, dtype=torch.uint8) for _ in range(BLOCKS)]
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del blocks
    return faults[2:]


def _faults_in_new_process(keep: bool) -> list[int]:
    process = BackgroundProcess()
    try:
        return list(process.submit(_faults, keep).result())
    finally:
        process.close()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can keep what is freed")
def test_freed_memory_is_used_again():
    """The kernel, too, takes pages back and joins them to huge ones now and then, hence the extremes of ten times."""
    kept, returned = (_faults_in_new_process(keep) for keep in (True, False))
    assert 10 * min(kept) < max(returned)
