"""Where a rank stands in an epoch: its place among the ranks, and the batches that it counted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mbcl.distributed import collectives
from mbcl.errors import CheckpointError, ConfigError
from mbcl.functional import check_count


class Count:
    """The batches of one iteration, counted from the epoch's first. Older iterations keep their own."""

    def __init__(self) -> None:
        self.yielded = 0
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, row: Tensor) -> None:
        """Count a global batch."""
        self.yielded += 1
        self._hash.update(row.numpy().tobytes())

    @property
    def digest(self) -> str:
        """The digest of the batches, over all ranks; empty for none."""
        return self._hash.hexdigest() if self.yielded else ""


def place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and world size, as given or of the process group."""
    world = collectives.current()
    size = world.size if world_size is None else check_count("world_size", world_size)
    if rank is None:
        if size not in (1, world.size):
            raise ConfigError(f"world_size {size} is not that of the process group, {world.size}: give rank, too")
        rank = 0 if size == 1 else world.rank
    if check_count("rank", rank, least=0) >= size:
        raise ConfigError(f"rank {rank} is not below world_size {size}")
    return rank, size


def parse_state(state: Mapping[str, Any]) -> tuple[int, int, str]:
    """Return epoch, step and digest of a :meth:`PlannedBatchSampler.state_dict`.

    Raises:
        CheckpointError: if it is no such state.
    """
    epoch, step, digest = (state.get(key) for key in ("epoch", "step", "digest"))
    whole = all(isinstance(x, int) and not isinstance(x, bool) and x >= 0 for x in (epoch, step))
    if not (whole and isinstance(digest, str) and bool(digest) == bool(step)):
        raise CheckpointError(f"not a state of a PlannedBatchSampler: {dict(state)!r}")
    assert isinstance(epoch, int)
    assert isinstance(step, int)
    return epoch, step, digest
