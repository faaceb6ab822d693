"""The subject of an evaluation: a representation of a data set's images.

Letters: N images, F features, D dimensions of the projections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from mbcl.config.data import Data
from mbcl.config.evaluation import Evaluation
from mbcl.data.samples import SampleSet
from mbcl.engine.embedding_pass import ViewKey, groups_of_views, key_of_draws, pass_size, views_of
from mbcl.engine.setup import SplitData
from mbcl.errors import CheckpointError

_VIEWS = "evaluation views"


class Representation(Protocol):
    """A stateless map from inputs to features to projections: a model in evaluation mode, or a baseline."""

    def features(self, x: Tensor) -> Tensor:
        """Map inputs, such as (B, C, H, W) normalised images, to (B, F) features, which class evaluations use."""

    def project(self, features: Tensor) -> Tensor:
        """Map (B, F) features to (B, D) projections, which retrieval compares."""


@dataclass(eq=False)
class Subject:
    """A representation with its input samples; features that several metrics need are computed once and cached.

    Args:
        representation: the representation to evaluate, on ``device``.
        parts: all parts of the data set.
        data: the data set's configuration.
        settings: the evaluation block.
        seed: the experiment's seed, for views and corruptions.
        device: where to compute.
        dtype: of the inputs passed to the representation.
    """

    representation: Representation
    parts: SplitData
    data: Data
    settings: Evaluation
    seed: int
    device: torch.device
    dtype: torch.dtype = torch.float32

    @cached_property
    def images(self) -> SampleSet:
        """The split's samples, moved to the device at first access."""
        return self.parts.part(self.settings.split).to(self.device)

    def views_key(self, purpose: str, draws: int) -> ViewKey:
        """Return the key of so many draws of the split's views, for one purpose.

        The views differ from those of training and validation. They are the same for every setting, so that settings
        can be compared in pairs; several draws are the same for every seed, too.
        """
        augmented = self.images.draws_when_measured
        return key_of_draws(self.seed, f"{self.settings.split} {purpose}", draws, augmented=augmented)

    @cached_property
    def train(self) -> SampleSet:
        """The training samples, moved to the device at first access."""
        return self.parts.train.to(self.device)

    @cached_property
    def train_features(self) -> Tensor:
        """(N, F) features of the training samples without augmentation; of pairs those of both sides, (N, 2F)."""
        return self.clean(self.representation.features, self.train)

    @cached_property
    def features(self) -> Tensor:
        """(N, F) features of the split's samples without augmentation; of pairs those of both sides, (N, 2F)."""
        return self.clean(self.representation.features, self.images)

    @cached_property
    def view_features(self) -> tuple[Tensor, Tensor]:
        """Features of both views of the split's samples, two of (N, F), in the one draw of the seed."""
        return next(self.pairs(self.representation.features, self.images, self.views_key(_VIEWS, 1)))

    def view_draws(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the projections of both views of the split's samples, two of (N, D), for each draw; pairs have one."""
        draws = self.images.to_eval_draws(self.settings.draws)
        if draws == 1:
            view_1, view_2 = map(self.projected, self.view_features)
            yield view_1, view_2
        else:
            yield from self.pairs(self.projections, self.images, self.views_key(_VIEWS, draws), draws)

    def projected(self, features: Tensor) -> Tensor:
        """Map features (N, F) to projections (N, D)."""
        with torch.no_grad():
            parts = [self.representation.project(part) for part in features.split(self.settings.batch_size)]
        return self._concatenate(parts)

    def projections(self, x: Tensor) -> Tensor:
        """Map a batch of inputs to projections."""
        return self.representation.project(self.representation.features(x))

    def batches(self, images: SampleSet) -> tuple[Tensor, ...]:
        """Divide the positions of all samples into nearly equal batches of one forward pass."""
        return torch.arange(len(images)).tensor_split(-(-len(images) // self.settings.batch_size))

    @torch.no_grad()
    def clean(self, function: Callable[[Tensor], Tensor], images: SampleSet, batches: Sequence[Tensor] = ()) -> Tensor:
        """Apply a function to samples without augmentation, by default to all; return a row for each."""
        inputs = (images.clean(positions) for positions in batches or self.batches(images))
        return self._concatenate([images.by_sample(function(x.to(self.dtype))) for x in inputs])

    @torch.no_grad()
    def pairs(
        self,
        function: Callable[[Tensor], Tensor],
        images: SampleSet,
        key: ViewKey,
        draws: int = 1,
        batches: Sequence[Tensor] = (),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Apply a function to both views of samples, by default of all; yield both results of every draw.

        A draw's second view is the next draw's first, see :func:`mbcl.engine.embedding_pass.views_of`, and kept from
        one to the other. Of few samples several views share a forward pass.
        """
        num_views, kept = draws + 1, None
        size = pass_size(num_views, images, self.settings.batch_size, self.device)
        parts = (positions.tensor_split(-(-len(positions) // size)) for positions in batches or self.batches(images))
        batches = list(chain.from_iterable(parts))
        for group in groups_of_views(num_views, max(map(len, batches)), size):
            inputs = (views_of(images, positions, key, group) for positions in batches)
            outputs = [function(x.to(self.dtype)).unflatten(0, (len(group), -1)) for x in inputs]
            for view in range(len(group)):
                rows = self._concatenate([output[view] for output in outputs])
                if kept is not None:
                    yield kept, rows
                kept = rows

    def _concatenate(self, parts: Sequence[Tensor]) -> Tensor:
        """Concatenate the rows of all parts.

        Raises:
            CheckpointError: if an entry is not finite, since no metric is defined then.
        """
        rows = torch.cat(list(parts))
        finite = torch.isfinite(rows).all(dim=1)
        if not bool(finite.all()):
            raise CheckpointError(
                f"its embeddings of {int((~finite).sum())} of {len(rows)} {self.images.noun}s are not finite"
            )
        return rows
