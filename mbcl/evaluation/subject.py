"""What is evaluated: a representation of a data set's images.

Letters: N images, F features, D dimensions of the projections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mbcl.config.experiment import Data, Evaluation
from mbcl.data import ImageSet, clean_views
from mbcl.engine.embedding_pass import ViewKey, two_views
from mbcl.engine.setup import SplitData
from mbcl.errors import CheckpointError
from mbcl.seeding import derive


class Representation(Protocol):
    """Images to features to projections, without state: a model in evaluation mode, or what stands for one."""

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) normalised images to (B, F) features, which class evaluations read."""

    def project(self, features: Tensor) -> Tensor:
        """(B, F) features to (B, D) projections, which retrieval compares."""


class Subject:
    """A representation with the images that it is shown. What several evaluations need is computed once.

    Args:
        representation: what is evaluated, on ``device``.
        images: all parts of the data set.
        data: which data set it is.
        settings: the evaluation block.
        seed: the experiment's: of views and corruptions.
        device: where to compute.
        dtype: of the images that the representation is given.
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
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.representation = representation
        self.settings = settings
        self.seed = seed
        self.data = data
        self.images = images.part(settings.split).to(device)
        self._train, self._device, self._dtype = images.train, device, dtype

    def views_key(self, purpose: str) -> ViewKey:
        """Views of the split for one purpose.

        They are not those of training or validation, and the same for every setting of one seed, so that they pair.
        """
        return ViewKey(derive(self.seed, f"{self.settings.split} {purpose}"))

    @cached_property
    def train(self) -> ImageSet:
        """The training images, which go to the device when they are first asked for."""
        return self._train.to(self._device)

    @cached_property
    def train_features(self) -> Tensor:
        """(N, F) features of the training images as they are."""
        return self._clean(self.representation.features, self.train)

    @cached_property
    def features(self) -> Tensor:
        """(N, F) features of the split's images as they are."""
        return self._clean(self.representation.features, self.images)

    @cached_property
    def view_features(self) -> tuple[Tensor, Tensor]:
        """Features of both augmented views of the split's images, two of (N, F)."""
        return self._pairs(self.representation.features, self.images, self.views_key("evaluation views"))

    def projected(self, features: Tensor) -> Tensor:
        """Projections of features, (N, F) to (N, D)."""
        rows = features.split(self.settings.batch_size)
        return self._whole([self._computed(self.representation.project, part) for part in rows])

    def projections(self, images: ImageSet) -> Tensor:
        """Projections of images as they are, (N, D)."""
        return self._clean(self._images_to_projections, images)

    def projection_pairs(self, images: ImageSet, key: ViewKey) -> tuple[Tensor, Tensor]:
        """Projections of both augmented views of images, two of (N, D)."""
        return self._pairs(self._images_to_projections, images, key)

    def _images_to_projections(self, x: Tensor) -> Tensor:
        return self.representation.project(self.representation.features(x))

    def _clean(self, function: Callable[[Tensor], Tensor], images: ImageSet) -> Tensor:
        def look(positions: Tensor) -> Tensor:
            return clean_views(images.pixels(positions), images=images)

        return self._whole(self._batches(function, look, len(images)))

    def _pairs(self, function: Callable[[Tensor], Tensor], images: ImageSet, key: ViewKey) -> tuple[Tensor, Tensor]:
        found = self._batches(function, lambda positions: two_views(images, positions, key), len(images))
        views_1, views_2 = zip(*(both.chunk(2) for both in found), strict=True)
        return self._whole(views_1), self._whole(views_2)

    def _batches(
        self, function: Callable[[Tensor], Tensor], look: Callable[[Tensor], Tensor], num_images: int
    ) -> list[Tensor]:
        chunks = torch.arange(num_images).tensor_split(-(-num_images // self.settings.batch_size))
        return [self._computed(function, look(positions).to(self._dtype)) for positions in chunks]

    @torch.no_grad()
    def _computed(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return function(x)

    def _whole(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of all parts.

        Raises:
            CheckpointError: if an entry is not finite, which no metric has a meaning for.
        """
        found = torch.cat(list(parts))
        finite = torch.isfinite(found).all(dim=1)
        if not bool(finite.all()):
            raise CheckpointError(f"its embeddings of {int((~finite).sum())} of {len(found)} images are not finite")
        return found
