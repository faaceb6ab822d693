"""The embeddings that training makes anyway: the newest projections of every sample, kept for the next plan.

Letters: N samples, M rows held here, D dimensions.
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
    """Each rank holds the rows that it made, until another rank or step has made newer ones of the same sample.

    Nothing is exchanged while steps run. When a plan is due the ranks compare ages, one number a sample, and drop what
    is out of date: then every sample is held once, by one rank, as plan services expect of shards.

    A row's age is counted in steps: fresh embeddings made before step s of the training are of time s, the step's own
    of time s + 1. It begins with fresh embeddings of all samples.

    Args:
        num_samples: N.
        steps_per_epoch: for ages in epochs.
        world: the ranks.
    """

    def __init__(self, num_samples: int, steps_per_epoch: int, world: World) -> None:
        self._num_samples = num_samples
        self._steps_per_epoch = steps_per_epoch
        self._world = world
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        """Positions, view 1, view 2 of what was made, oldest first."""
        self._times = torch.full((num_samples,), -1, dtype=torch.int64)
        self._begun = 0

    @property
    def begun(self) -> bool:
        """Whether anything was kept."""
        return bool(self._rows)

    def record(self, positions: Tensor, z1: Tensor, z2: Tensor, time: int) -> None:
        """Keep some rows, replacing what was held of the same samples.

        Args:
            positions: (m,) int64 CPU tensor of distinct data-set positions.
            z1: (m, D) float32 or better, detached, of view 1.
            z2: (m, D) of view 2.
            time: when they were made, the same number on every rank.
        """
        if not self._rows:
            self._begun = time
        self._times[positions] = time
        self._rows.append((positions, z1, z2))

    def shard(self) -> Embeddings:
        """This rank's rows, of which every rank holds others; all ranks call it together.

        Raises:
            PlanError: on this rank alone, if a row is not finite.
        """
        positions, z1, z2 = self._compact()
        return Embeddings(z1, z2, positions)

    def _compact(self) -> tuple[Tensor, Tensor, Tensor]:
        """Drop what is out of date here or on account of another rank's rows."""
        everyone = collectives.all_gather_ragged(self._times[None], self._world)
        newest = everyone.max(dim=0).values
        # At one time a sample is one rank's work, so there is one owner.
        owner = (everyone == newest).to(torch.uint8).argmax(dim=0)
        mine = (owner == self._world.rank) & (newest >= 0)
        positions, z1, z2 = (torch.cat(parts) for parts in zip(*self._rows, strict=True))
        kept = _last_rows(positions, self._num_samples)
        kept = kept[mine[positions[kept]]]
        on_device = kept.to(z1.device)
        self._rows = [(positions[kept], z1[on_device], z2[on_device])]
        self._times = torch.where(mine, newest, -1)
        return self._rows[0]

    def age(self, epoch: int) -> float:
        """How many epochs before ``epoch`` the newest rows were made, mean over the samples; all ranks call it."""
        newest = self._newest()
        made_in = torch.where(newest > self._begun, newest - 1, self._begun) // self._steps_per_epoch
        return float((epoch - made_in).double().mean())

    def _newest(self) -> Tensor:
        return collectives.all_gather_ragged(self._times[None], self._world).max(dim=0).values

    def state_dict(self) -> dict[str, Any]:
        """All ranks' rows by position, on the CPU: (N, D) twice and (N,) times, and the time of the first.

        All ranks call it together.
        """
        if not self._rows:
            return {}
        positions, z1, z2 = (collectives.all_gather_ragged(x.cpu(), self._world) for x in self._compact())
        order = torch.argsort(positions)
        times = self._newest()[positions[order]]
        return {
            "positions": positions[order],
            "z1": z1[order],
            "z2": z2[order],
            "times": times,
            "begun": torch.tensor(self._begun),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's share of what :meth:`state_dict` gave, on any number of ranks."""
        if not state:
            return
        mine = torch.arange(len(state["positions"])).tensor_split(self._world.size)[self._world.rank]
        positions = state["positions"][mine]
        self._rows = [(positions, *(state[key][mine].to(self._world.device) for key in ("z1", "z2")))]
        self._begun = int(state["begun"])
        self._times.fill_(-1)
        self._times[positions] = state["times"][mine]


def _last_rows(positions: Tensor, num_samples: int) -> Tensor:
    """(M',) ascending rows: of each sample the last that holds it. NumPy promises that the last assignment stays."""
    last = np.full(num_samples, -1, dtype=np.int64)
    last[positions.numpy()] = np.arange(len(positions))
    return torch.from_numpy(np.sort(last[last >= 0]))
