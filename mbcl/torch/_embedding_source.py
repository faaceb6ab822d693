"""The embeddings of all samples that a replanner plans from: computed when a plan is due, or observed in the loop.

Letters: N samples of the data set, m rows, D dimensions, W ranks.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.errors import CheckpointError, ConfigError
from mbcl.functional import check_choice, check_count
from mbcl.plan import Embeddings
from mbcl.planner import EmbeddingCache, PlanKey
from mbcl.torch._embedding import Embed, embed_shard, observed_rows


class EmbeddingSource:
    """This rank's share of the embeddings for each plan.

    Args:
        embed: see :class:`~mbcl.torch.Replanner`, as ``embeddings``, ``embed_batch_size`` and ``device``.
        embeddings: ``fresh``, ``cached`` or None.
        num_samples: N.
        steps: the batches of an epoch.
        seed: of the chunks in which samples are embedded.
        embed_batch_size: the most samples of a call of ``embed``.
        device: where embeddings are kept.

    Raises:
        ConfigError: if an argument does not fit the others.
    """

    def __init__(
        self,
        embed: Embed | None,
        embeddings: str | None,
        *,
        num_samples: int,
        steps: int,
        seed: int,
        embed_batch_size: int,
        device: torch.device | str,
    ) -> None:
        source = embeddings or ("cached" if embed is None else "fresh")
        check_choice("embeddings", source, ("fresh", "cached"))
        if embed is None and source == "fresh":
            raise ConfigError("embeddings: 'fresh' ones need embed; without it they are 'cached'")
        self.is_cached = source == "cached"
        self._embed = embed
        self._num_samples = num_samples
        self._steps = steps
        self._seed = seed
        self._embed_batch_size = check_count("embed_batch_size", embed_batch_size)
        self._device = torch.device(device)
        self._observed = 0
        """Calls of :meth:`observe`, the time stamps of the cache."""

    @cached_property
    def world(self) -> World:
        """The ranks: found at the first use, since frameworks make the process group late."""
        cuda = self._device == torch.device("cuda")
        return collectives.current(torch.device("cuda", torch.cuda.current_device()) if cuda else self._device)

    @cached_property
    def cache(self) -> EmbeddingCache | None:
        """What the loop observed; None if all embeddings are fresh."""
        return self._empty_cache() if self.is_cached else None

    def observe(self, indices: Tensor, z1: Tensor, z2: Tensor) -> None:
        """See :meth:`mbcl.torch.Replanner.observe`."""
        if self.cache is None:
            raise ConfigError("observe: the embeddings are 'fresh' ones; embeddings='cached' uses what a loop observes")
        rows = observed_rows(indices, z1, z2, self._num_samples, self.cache.widths, self.world.device)
        self._observed += 1
        if self._embed is not None and not self.cache.begun:
            return  # `embed` will compute all
        self.cache.record(*rows, time=self._observed)
        if self.cache.num_rows > 2 * self._num_samples:
            self.cache.drop_superseded()

    def shard(self, key: PlanKey) -> Embeddings | None:
        """Return this rank's rows of the embeddings; None on every rank if samples are missing. A collective call."""
        fresh = None
        if self._embed is not None and (self.cache is None or not self.cache.begun):
            keys = (self._seed, key.epoch, key.round)
            fresh = embed_shard(self._embed, self._num_samples, self._embed_batch_size, self.world, *keys)
        if self.cache is None:
            return fresh
        if fresh is not None:
            self.cache.record(fresh.indices, fresh.z1, fresh.z2, time=self._observed)
        widths = self.cache.widths
        width = widths[0] if widths is not None and widths[0] == widths[1] else widths
        calls = collectives.gather_objects((self._observed, width), self.world)
        if len(set(calls)) > 1:
            raise ConfigError(f"observe: calls and dimensions differ between the ranks: {calls}")
        if self.cache.count() < self._num_samples:
            return None
        return collectives.run_and_sync_errors(self.cache.shard, self.world)

    def state_dict(self) -> dict[str, Any]:
        """Return what the loop observed. A collective call, with the same result on every rank."""
        return {"observed": self._observed, "cache": self.cache.state_dict() if self.cache else {}}

    def load_state_dict(self, observed: int, rows: dict[str, Any]) -> None:
        """Restore the two entries of a :meth:`state_dict`.

        Raises:
            CheckpointError: if it has observed embeddings, and the embeddings here are fresh ones.
        """
        if rows and self.cache is None:
            raise CheckpointError("the state has observed embeddings that do not fit this Replanner")
        self._observed = observed
        if self.cache is not None:
            self.cache = self._empty_cache()
            self.cache.load_state_dict(rows)

    def _empty_cache(self) -> EmbeddingCache:
        return EmbeddingCache(self._num_samples, self._steps, self.world)
