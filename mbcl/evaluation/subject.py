"""The subject of an evaluation: a representation of a data set's images.

Letters: N images, F features, D dimensions of the projections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mbcl.config.evaluation import Evaluation
from mbcl.config.experiment import Data
from mbcl.data import ImageSet, clean_views
from mbcl.engine.embedding_pass import ViewKey, two_views
from mbcl.engine.setup import SplitData
from mbcl.errors import CheckpointError
from mbcl.seeding import derive


class Representation(Protocol):
    """A stateless map from images to features to projections: a model in evaluation mode, or a baseline."""

    def features(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) normalised images to (B, F) features, which class evaluations use."""

    def project(self, features: Tensor) -> Tensor:
        """Map (B, F) features to (B, D) projections, which retrieval compares."""


@dataclass(eq=False)
class Subject:
    """A representation with its input images; features that several metrics need are computed once and cached.

    Args:
        representation: the representation to evaluate, on ``device``.
        parts: all parts of the data set.
        data: the data set's configuration.
        settings: the evaluation block.
        seed: the experiment's seed, for views and corruptions.
        device: where to compute.
        dtype: of the images passed to the representation.
    """

    representation: Representation
    parts: SplitData
    data: Data
    settings: Evaluation
    seed: int
    device: torch.device
    dtype: torch.dtype = torch.float32

    @cached_property
    def images(self) -> ImageSet:
        """The split's images, moved to the device at first access."""
        return self.parts.part(self.settings.split).to(self.device)

    def views_key(self, purpose: str) -> ViewKey:
        """Return the key of the split's views for one purpose.

        The views differ from those of training and validation. They are the same for every setting of one seed, so
        that settings can be compared in pairs.
        """
        return ViewKey(derive(self.seed, f"{self.settings.split} {purpose}"))

    @cached_property
    def train(self) -> ImageSet:
        """The training images, moved to the device at first access."""
        return self.parts.train.to(self.device)

    @cached_property
    def train_features(self) -> Tensor:
        """(N, F) features of the training images without augmentation."""
        return self.clean(self.representation.features, self.train)

    @cached_property
    def features(self) -> Tensor:
        """(N, F) features of the split's images without augmentation."""
        return self.clean(self.representation.features, self.images)

    @cached_property
    def view_features(self) -> tuple[Tensor, Tensor]:
        """Features of both augmented views of the split's images, two of (N, F)."""
        return self.pairs(self.representation.features, self.images, self.views_key("evaluation views"))

    def projected(self, features: Tensor) -> Tensor:
        """Map features (N, F) to projections (N, D)."""
        with torch.no_grad():
            parts = [self.representation.project(part) for part in features.split(self.settings.batch_size)]
        return self._concatenate(parts)

    def projections(self, x: Tensor) -> Tensor:
        """Map a batch of images to projections."""
        return self.representation.project(self.representation.features(x))

    def clean(self, function: Callable[[Tensor], Tensor], images: ImageSet) -> Tensor:
        """Apply a function to all images without augmentation."""
        batches = self._batches(function, lambda rows: clean_views(images.pixels(rows), images=images), len(images))
        return self._concatenate(batches)

    def pairs(self, function: Callable[[Tensor], Tensor], images: ImageSet, key: ViewKey) -> tuple[Tensor, Tensor]:
        """Apply a function to both augmented views of all images."""
        outputs = self._batches(function, lambda positions: two_views(images, positions, key), len(images))
        views_1, views_2 = zip(*(output.chunk(2) for output in outputs), strict=True)
        return self._concatenate(views_1), self._concatenate(views_2)

    @torch.no_grad()
    def _batches(
        self, function: Callable[[Tensor], Tensor], views_of: Callable[[Tensor], Tensor], num_images: int
    ) -> list[Tensor]:
        """Apply a function to the views of all positions, in nearly equal batches."""
        chunks = torch.arange(num_images).tensor_split(-(-num_images // self.settings.batch_size))
        return [function(views_of(positions).to(self.dtype)) for positions in chunks]

    def _concatenate(self, parts: Sequence[Tensor]) -> Tensor:
        """Concatenate the rows of all parts.

        Raises:
            CheckpointError: if an entry is not finite, since no metric is defined then.
        """
        rows = torch.cat(list(parts))
        finite = torch.isfinite(rows).all(dim=1)
        if not bool(finite.all()):
            raise CheckpointError(f"its embeddings of {int((~finite).sum())} of {len(rows)} images are not finite")
        return rows
