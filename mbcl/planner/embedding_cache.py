"""Cache of the embeddings that training computes anyway: every sample's newest projections, for the next plan.

Letters: N samples, M rows of this rank, D dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.plan import Embeddings


class EmbeddingCache:
    """A sharded cache of projections: each rank holds the rows that it computed, until a newer row supersedes them.

    Ranks exchange no rows while steps run. When a plan is due, they compare timestamps (one number per sample) and
    drop stale rows. Afterwards exactly one rank holds each sample, which plan services require of shards.

    Timestamps count steps: fresh embeddings computed before step s of the training have time s, those of the step
    itself time s + 1. The cache is initialised with fresh embeddings of all samples.
    """

    def __init__(self, num_samples: int, steps_per_epoch: int, world: World) -> None:
        self._num_samples = num_samples
        self._steps_per_epoch = steps_per_epoch
        self._world = world
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        """Positions, view 1, view 2 of each recorded batch, oldest first."""
        self._times = torch.full((num_samples,), -1, dtype=torch.int64)
        self._begun = 0

    @property
    def begun(self) -> bool:
        """Whether any rows were recorded."""
        return bool(self._rows)

    @property
    def num_rows(self) -> int:
        """The number of this rank's rows, superseded ones included."""
        return sum(len(positions) for positions, _, _ in self._rows)

    @property
    def widths(self) -> tuple[int, int] | None:
        """D of both views; None before the first record."""
        return (self._rows[0][1].shape[1], self._rows[0][2].shape[1]) if self._rows else None

    def count(self) -> int:
        """Return how many samples were recorded on any rank. A collective call."""
        return int((self._newest() >= 0).sum())

    def record(self, positions: Tensor, z1: Tensor, z2: Tensor, time: int) -> None:
        """Record rows; they supersede earlier rows of the same samples.

        Args:
            positions: (m,) int64 CPU tensor of distinct data-set positions.
            z1: (m, D) float32 or better, detached, of view 1.
            z2: (m, D) of view 2.
            time: their timestamp, the same number on every rank.
        """
        if not self._rows:
            self._begun = time
        self._times[positions] = time
        self._rows.append((positions, z1, z2))

    def shard(self) -> Embeddings:
        """Return this rank's rows; the ranks' rows are disjoint. A collective call.

        Raises:
            PlanError: on this rank alone, if a row is not finite.
        """
        positions, z1, z2 = self._compact()
        return Embeddings(z1, z2, positions)

    def _compact(self) -> tuple[Tensor, Tensor, Tensor]:
        """Drop rows that a newer row of this or another rank supersedes. A collective call."""
        all_times = collectives.all_gather_ragged(self._times[None], self._world)
        newest = all_times.max(dim=0).values
        # Only one rank computes a sample at a given time, so the newest row has a single owner.
        owner = (all_times == newest).to(torch.uint8).argmax(dim=0)
        owned = (owner == self._world.rank) & (newest >= 0)
        self._drop_rows(owned)
        self._times = torch.where(owned, newest, -1)
        return self._rows[0]

    def drop_superseded(self) -> None:
        """Drop rows that a newer row of this rank supersedes, to bound the memory; no collective call."""
        self._drop_rows(self._times >= 0)

    def _drop_rows(self, keep: Tensor) -> None:
        """Keep the last row of each sample for which ``keep``, (N,) bool, is true."""
        positions, z1, z2 = (torch.cat(parts) for parts in zip(*self._rows, strict=True))
        rows = _last_rows(positions, self._num_samples)
        rows = rows[keep[positions[rows]]]
        on_device = rows.to(z1.device)
        self._rows = [(positions[rows], z1[on_device], z2[on_device])]

    def age(self, epoch: int) -> float:
        """Return the mean age of the newest rows: epochs from their computation to ``epoch``. A collective call."""
        newest = self._newest()
        made_in = torch.where(newest > self._begun, newest - 1, self._begun) // self._steps_per_epoch
        return float((epoch - made_in).double().mean())

    def _newest(self) -> Tensor:
        """Return the newest timestamp of each sample over all ranks, (N,)."""
        return collectives.all_gather_ragged(self._times[None], self._world).max(dim=0).values

    def state_dict(self) -> dict[str, Any]:
        """Gather all ranks' rows, ordered by position, on the CPU.

        They are two (N, D) tensors of projections, (N,) timestamps, and the time of the first record. A collective
        call.
        """
        if not self._rows:
            return {}
        positions, z1, z2 = (collectives.all_gather_ragged(x.cpu(), self._world) for x in self._compact())
        order = torch.argsort(positions)
        state = {"positions": positions[order], "z1": z1[order], "z2": z2[order]}
        return state | {"times": self._newest()[state["positions"]], "begun": torch.tensor(self._begun)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load this rank's share of a :meth:`state_dict`, which any number of ranks may have saved."""
        if not state:
            return
        share = torch.arange(len(state["positions"])).tensor_split(self._world.size)[self._world.rank]
        positions = state["positions"][share]
        self._rows = [(positions, *(state[key][share].to(self._world.device) for key in ("z1", "z2")))]
        self._begun = int(state["begun"])
        self._times.fill_(-1)
        self._times[positions] = state["times"][share]


def _last_rows(positions: Tensor, num_samples: int) -> Tensor:
    """Return the last row of each sample, (M',) ascending.

    With repeated indices NumPy keeps the last assignment.
    """
    last = np.full(num_samples, -1, dtype=np.int64)
    last[positions.numpy()] = np.arange(len(positions))
    return torch.from_numpy(np.sort(last[last >= 0]))
