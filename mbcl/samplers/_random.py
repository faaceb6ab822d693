"""The samplers that use no embeddings: ``fixed`` and ``shuffle``."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers._base import SAMPLERS, BaseSampler, PoolMap, serial
from mbcl.seeding import numpy_generator


@dataclass(frozen=True, kw_only=True)
class WholeSampler(BaseSampler):
    """Base of the samplers that cut the data set into no pools."""

    @abstractmethod
    def rows(self, num_samples: int, embeddings: Embeddings | None, *key: int) -> tuple[Tensor, Tensor | None]:
        """(S, B) int64 batches, and (S,) float64 scores if there are any; ``key`` is seed, epoch and round."""

    def plan(
        self,
        num_samples: int,
        embeddings: Embeddings | None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
        round: int = 0,
        map_pools: PoolMap = serial,
    ) -> BatchPlan:
        self.check(num_samples)
        batches, scores = self.rows(num_samples, embeddings, seed, epoch, round)
        return BatchPlan(batches, self.name, seed, epoch, round, scores).validate(num_samples, distinct=self.no_repeats)


@SAMPLERS.register("shuffle", aliases=("s",))
@dataclass(frozen=True, kw_only=True)
class Shuffle(WholeSampler):
    """A new random partition each epoch and round: the usual way to train, and the baseline of every comparison.

    A permutation is cut into batches; its last N mod B samples are dropped.

    Args:
        batch_size: B, global.

    Example:
        >>> Shuffle(batch_size=2).plan(4).digest != Shuffle(batch_size=2).plan(4, epoch=1).digest
        True
    """

    name: ClassVar[str] = "shuffle"

    def rows(self, num_samples: int, embeddings: Embeddings | None, *key: int) -> tuple[Tensor, Tensor | None]:
        # One purpose for both samplers: `fixed` has the batches that `shuffle` has in epoch 0.
        seed, *stream = key
        order = numpy_generator(seed, "sampler/shuffle", *stream).permutation(num_samples)
        used = self.plan_length(num_samples) * self.batch_size
        return torch.from_numpy(order[:used].reshape(-1, self.batch_size).astype("int64")), None


@SAMPLERS.register("fixed", aliases=("f",))
@dataclass(frozen=True, kw_only=True)
class Fixed(Shuffle):
    """The batches that ``shuffle`` has in epoch 0, in every epoch: the opposite extreme of ``shuffle``.

    Two samples in different batches never meet. The N mod B samples left out are never trained on.

    Args:
        batch_size: B, global.

    Example:
        >>> Fixed(batch_size=2).plan(4).digest == Fixed(batch_size=2).plan(4, epoch=1).digest
        True
    """

    name: ClassVar[str] = "fixed"

    def rows(self, num_samples: int, embeddings: Embeddings | None, *key: int) -> tuple[Tensor, Tensor | None]:
        return super().rows(num_samples, embeddings, key[0], 0, 0)
