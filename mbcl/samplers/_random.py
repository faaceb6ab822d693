"""The samplers that use no embeddings: ``fixed`` and ``shuffle``."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers._base import SAMPLERS, BaseSampler, PoolMap, serial
from mbcl.seeding import numpy_generator


@dataclass(frozen=True, kw_only=True)
class RandomSampler(BaseSampler):
    """Base of the samplers whose batches are a random partition: a permutation cut into batches, its remainder dropped.

    The remainder are the last N mod B samples of the permutation.
    """

    @abstractmethod
    def stream(self, epoch: int, round: int) -> tuple[int, int]:
        """Return the epoch and the round whose random numbers are used."""

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
        """Make the plan; see :meth:`Sampler.plan`."""
        self.check(num_samples)
        # One purpose for both samplers: `fixed` has the batches that `shuffle` has in epoch 0.
        order = numpy_generator(seed, "sampler/shuffle", *self.stream(epoch, round)).permutation(num_samples)
        num_batches = self.plan_length(num_samples)
        batches = order[: num_batches * self.batch_size].reshape(num_batches, self.batch_size).astype("int64")
        return BatchPlan(torch.from_numpy(batches), self.name, seed, epoch, round).validate(
            num_samples, distinct=self.no_repeats
        )


@SAMPLERS.register("shuffle", aliases=("s",))
@dataclass(frozen=True, kw_only=True)
class Shuffle(RandomSampler):
    """A new random partition each epoch and round: the usual way to train, and the baseline of every comparison.

    Args:
        batch_size: B, global.

    Example:
        >>> Shuffle(batch_size=2).plan(4).digest != Shuffle(batch_size=2).plan(4, epoch=1).digest
        True
    """

    name: ClassVar[str] = "shuffle"

    def stream(self, epoch: int, round: int) -> tuple[int, int]:
        """Return the epoch and the round themselves: every plan has its own random numbers."""
        return epoch, round


@SAMPLERS.register("fixed", aliases=("f",))
@dataclass(frozen=True, kw_only=True)
class Fixed(RandomSampler):
    """The batches that ``shuffle`` has in epoch 0, in every epoch: the opposite extreme of ``shuffle``.

    Two samples in different batches never meet. The N mod B samples left out are never trained on.

    Args:
        batch_size: B, global.

    Example:
        >>> Fixed(batch_size=2).plan(4).digest == Fixed(batch_size=2).plan(4, epoch=1).digest
        True
    """

    name: ClassVar[str] = "fixed"

    def stream(self, epoch: int, round: int) -> tuple[int, int]:
        """Return epoch 0 and round 0."""
        return 0, 0
