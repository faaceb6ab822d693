"""What is evaluated: a representation of a data set's images.

Letters: N images, F features, D dimensions of the projections.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mbcl.data import ImageSet, clean_views
from mbcl.engine.embed import ViewKey, two_views
from mbcl.engine.prepare import SplitData
from mbcl.experiment import Data, Evaluation
from mbcl.seeding import derive


class Representation(Protocol):
    """Images to features and to projections, without state: a model in evaluation mode, or what stands for one."""

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) normalised images to (B, F) features, which class evaluations read."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) normalised images to (B, D) projections, which retrieval compares."""


class Subject:
    """A representation with the images that it is shown. What several evaluations need is computed once.

    Args:
        representation: what is evaluated, on ``device``.
        images: all parts of the data set.
        data: which data set it is.
        settings: the evaluation block.
        seed: the experiment's: of views and corruptions.
        device: where to compute.
    """

    def __init__(
        self,
        representation: Representation,
        images: SplitData,
        *,
        data: Data,
        settings: Evaluation,
        seed: int,
        device: torch.device,
    ) -> None:
        self.representation = representation
        self.settings = settings
        self.seed = seed
        self.data = data
        self.train = images.train.to(device)
        self.images = images.part(settings.split).to(device)

    def views_key(self, purpose: str) -> ViewKey:
        """Views of the split for one purpose.

        They are not those of training or validation, and the same for every setting of one seed, so that they pair.
        """
        return ViewKey(derive(self.seed, f"{self.settings.split} {purpose}"))

    @cached_property
    def train_features(self) -> Tensor:
        """(N, F) features of the training images as they are."""
        return self.clean(self.representation.features, self.train)

    @cached_property
    def features(self) -> Tensor:
        """(N, F) features of the split's images as they are."""
        return self.clean(self.representation.features, self.images)

    def clean(self, function: Callable[[Tensor], Tensor], images: ImageSet) -> Tensor:
        """A function of all images as they are, (N, F)."""
        views = self._batches(
            function, lambda positions: clean_views(images.pixels(positions), images=images), len(images)
        )
        return torch.cat(views)

    def pairs(self, function: Callable[[Tensor], Tensor], images: ImageSet, key: ViewKey) -> tuple[Tensor, Tensor]:
        """A function of both augmented views of all images, two of (N, F)."""
        found = self._batches(function, lambda positions: two_views(images, positions, key), len(images))
        views_1, views_2 = zip(*(both.chunk(2) for both in found), strict=True)
        return torch.cat(views_1), torch.cat(views_2)

    @torch.no_grad()
    def _batches(
        self, function: Callable[[Tensor], Tensor], look: Callable[[Tensor], Tensor], num_images: int
    ) -> list[Tensor]:
        chunks = torch.arange(num_images).tensor_split(-(-num_images // self.settings.batch_size))
        return [function(look(positions)) for positions in chunks]
