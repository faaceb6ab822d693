"""The samplers that use no embeddings: ``fixed`` and ``shuffle``."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mbcl.errors import ConfigError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers._base import SAMPLERS, BaseSampler, Ids, Ints, PoolMap, check_widths, serial
from mbcl.samplers._conflicts import Rules, count_conflicts
from mbcl.samplers._groups import Groups
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
        apart: Ids | None = None,
        together: Ids | None = None,
    ) -> BatchPlan:
        groups = Groups.of(num_samples, apart, together)
        groups.check(self, num_samples)
        if embeddings is not None:
            check_widths(self, embeddings.widths)
        if not groups:
            batches, scores = self.rows(num_samples, embeddings, seed, epoch, round)
            plan = BatchPlan(batches, self.name, seed, epoch, round, scores)
        else:
            rows_SB = self.rows_in_groups(num_samples, groups, seed, epoch, round)
            conflicts = (
                None
                if groups.apart is None
                else torch.from_numpy(count_conflicts(rows_SB, Rules(group_N=groups.apart)))
            )
            plan = BatchPlan(torch.from_numpy(rows_SB), self.name, seed, epoch, round, batch_conflicts=conflicts)
        return plan.validate(num_samples, distinct=self.no_repeats)

    def rows_in_groups(self, num_samples: int, groups: Groups, *key: int) -> Ints:
        """(S, B) int64 batches that keep the groups of ``apart`` and ``together``.

        Raises:
            ConfigError: if the sampler does not.
        """
        raise ConfigError(f"sampler {self.name!r} cannot keep samples apart or together")


@SAMPLERS.register("shuffle", aliases=("s",))
@dataclass(frozen=True, kw_only=True)
class Shuffle(WholeSampler):
    """A new random partition each epoch and round: the usual way to train, and the baseline of every comparison.

    A permutation is cut into batches; its last N mod B samples are dropped.

    Formula:
        With pi a permutation of the N samples, drawn from (seed, epoch, round), batch s holds pi(sB), ..., pi(sB + B -
        1).

    Cost:
        A permutation. No embeddings, no forward pass.

    When to use:
        Always, as the baseline: a sampler that chooses batches has to be better than this one at an equal number of
        forward passes (``control: equal_passes``). Also in the first epochs of a training, whose embeddings mean little
        (``planner.warmup_epochs``).

    Args:
        batch_size: B, global.

    Reference:
        Cho et al., Mini-Batch Optimization of Contrastive Loss, arXiv 2307.05906, section 5: the SGD that the paper
        compares with.

    Example:
        >>> Shuffle(batch_size=2).plan(4).digest != Shuffle(batch_size=2).plan(4, epoch=1).digest
        True
    """

    name: ClassVar[str] = "shuffle"

    def rows(self, num_samples: int, embeddings: Embeddings | None, *key: int) -> tuple[Tensor, Tensor | None]:
        return torch.from_numpy(self._cut(self._order(num_samples, *key))), None

    def rows_in_groups(self, num_samples: int, groups: Groups, *key: int) -> Ints:
        seed, *stream = key
        rows_SB = np.concatenate([self._cut(part) for part in groups.by_source(self._order(num_samples, *key))])
        if groups.together is not None:
            rows_SB = rows_SB[numpy_generator(seed, "sampler/shuffle/merged", *stream).permutation(len(rows_SB))]
        return groups.parted(rows_SB, numpy_generator(seed, "sampler/shuffle/apart", *stream))

    def _order(self, num_samples: int, *key: int) -> Ints:
        # One purpose for both samplers: `fixed` has the batches that `shuffle` has in epoch 0.
        seed, *stream = key
        return numpy_generator(seed, "sampler/shuffle", *stream).permutation(num_samples).astype(np.int64)

    def _cut(self, order: Ints) -> Ints:
        """(S, B) consecutive batches; the remainder that fills none is left out."""
        return order[: len(order) // self.batch_size * self.batch_size].reshape(-1, self.batch_size)


@SAMPLERS.register("fixed", aliases=("f",))
@dataclass(frozen=True, kw_only=True)
class Fixed(Shuffle):
    """The batches that ``shuffle`` has in epoch 0, in every epoch: the opposite extreme of ``shuffle``.

    Two samples in different batches never meet. The N mod B samples left out are never trained on.

    Formula:
        The batches of ``shuffle`` for epoch 0 and round 0, in every epoch.

    Cost:
        A permutation. No embeddings, no forward pass.

    When to use:
        As a control: it shows what it costs that samples never meet others. Its minimum is not that of the loss of the
        whole data set.

    Args:
        batch_size: B, global.

    Reference:
        Cho et al., Mini-Batch Optimization of Contrastive Loss, arXiv 2307.05906, section 4.

    Example:
        >>> Fixed(batch_size=2).plan(4).digest == Fixed(batch_size=2).plan(4, epoch=1).digest
        True
    """

    name: ClassVar[str] = "fixed"

    def rows(self, num_samples: int, embeddings: Embeddings | None, *key: int) -> tuple[Tensor, Tensor | None]:
        return super().rows(num_samples, embeddings, key[0], 0, 0)

    def rows_in_groups(self, num_samples: int, groups: Groups, *key: int) -> Ints:
        return super().rows_in_groups(num_samples, groups, key[0], 0, 0)
