"""Sets of images in memory, and how they are split.

Letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mbcl.data.views.recipe import ViewRecipe
from mbcl.errors import ConfigError, DataError
from mbcl.seeding import numpy_generator

_MOVED = 4096
"""Images that are moved to a device at once."""


@dataclass(frozen=True)
class ImageSet:
    """Images with labels; position p of a batch plan is image p, which :meth:`pixels` gives.

    Args:
        images: (N, C, H, W) uint8, on any device; more of them if ``rows`` says which they are.
        labels: (N,) int64, on the CPU. Pretraining never reads them.
        name: which data set, for messages.
        recipe: the views' default strengths for this data set.
        mean, std: one number a channel, of pixels in [0, 1].
        image_size: side of the views and of the encoder's input, pixels.
        classes: the classes' names by label, where the files tell them.
        files: the name of every image's file without its ending, where images have files or the archive names them.
        device: where :meth:`pixels` puts rows; where the images are if None.
        rows: (N,) int64 on the CPU, where the set's images lie in ``images``; in their order if None. So parts of a
            set share its memory, and those of a mapped file stay in the file.

    Raises:
        DataError: if it holds no images, or shapes and dtypes do not fit.
    """

    images: Tensor
    labels: Tensor
    name: str
    recipe: ViewRecipe
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    classes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    device: torch.device | None = None
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8 or 0 in self.images.shape[1:]:
            raise DataError(
                f"{self.name}: images must be (N, C, H, W) uint8, found {tuple(self.images.shape)} {self.images.dtype}"
            )
        if len(self) == 0:
            raise DataError(f"{self.name}: it holds no images")
        if self.labels.shape != (len(self),) or self.labels.dtype != torch.int64:
            raise DataError(
                f"{self.name}: {len(self)} images need as many int64 labels, found "
                f"{tuple(self.labels.shape)} {self.labels.dtype}"
            )
        if self.files and len(self.files) != len(self):
            raise DataError(f"{self.name}: {len(self)} images, but {len(self.files)} names of files")
        if not len(self.mean) == len(self.std) == self.channels:
            raise DataError(f"{self.name}: {self.channels} channels, but {len(self.mean)} means, {len(self.std)} stds")

    def __len__(self) -> int:
        return len(self.images if self.rows is None else self.rows)

    @property
    def channels(self) -> int:
        """C."""
        return self.images.shape[1]

    def part(self, positions: Tensor) -> ImageSet:
        """The images at ``positions`` ((M,) int64), in that order, in the memory of this set.

        ``positions[i]`` becomes position i.
        """
        files = tuple(self.files[position] for position in positions.tolist()) if self.files else ()
        rows = positions if self.rows is None else self.rows[positions]
        return replace(self, rows=rows, labels=self.labels[positions], files=files)

    def subset(self, positions: Tensor) -> ImageSet:
        """As :meth:`part`, with memory of its own."""
        return replace(self.part(positions), images=self._taken(positions), rows=None)

    def first(self, num: int) -> ImageSet:
        """The first ``num`` images, which keep no others in memory; all of them if there are fewer."""
        return self if num >= len(self) else self.subset(torch.arange(num))

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set for work on ``device``.

        Its images go there whole, still uint8, if they fit into half of the memory that is free; otherwise they stay
        where they are, which a warning says, and :meth:`pixels` moves the rows that are asked for.
        """
        device = torch.device(device)
        if self.images.device == device:
            return replace(self, device=device)
        size, free = len(self) * self.images[0].numel(), _free_memory(device)
        if free is not None and size > free / 2:
            warnings.warn(
                f"{self.name}: {size / 1e9:.1f} GB of images do not fit into half of the {free / 1e9:.1f} GB that are "
                f"free on {device}; they stay on {self.images.device}, and every batch is moved",
                UserWarning,
                stacklevel=2,
            )
            return replace(self, device=device)
        there = torch.empty((len(self), *self.images.shape[1:]), dtype=torch.uint8, device=device)
        for positions in torch.arange(len(self)).split(_MOVED):
            there[positions[0] : positions[-1] + 1] = self._taken(positions)
        return replace(self, images=there, rows=None, device=device)

    def pixels(self, positions: Tensor) -> Tensor:
        """The images at ``positions`` ((B,) int64, on any device), (B, C, H, W) uint8 on the set's device."""
        taken = self._taken(positions)
        return taken if self.device is None else taken.to(self.device)

    def _taken(self, positions: Tensor) -> Tensor:
        rows = positions if self.rows is None else self.rows[positions.to(self.rows.device)]
        return self.images[rows.to(self.images.device)]


def _free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None for the CPU, whose memory the images are in."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


@dataclass(frozen=True)
class Splits:
    """The two official parts of a data set. A validation part is cut off the first by :func:`split_validation`."""

    train: ImageSet
    test: ImageSet


def stratified_split(labels: Tensor, fraction: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Rows of two disjoint parts that have the classes' shares of the whole as nearly as counts allow.

    Args:
        labels: (N,) int64.
        fraction: share of the second part, in (0, 1); it gets round(N · fraction) rows, at least 1, at most N - 1.
        seed: which split.
        purpose: see :func:`mbcl.seeding.derive`.

    Returns:
        Two int64 tensors of rows, each ascending.

    Raises:
        ConfigError: if the fraction is not in (0, 1), or there are fewer than two rows.
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"the fraction of a split must be in (0, 1), found {fraction}")
    num = len(labels)
    if num < 2:
        raise ConfigError(f"a split needs at least 2 samples, found {num}")
    wanted = min(max(round(num * fraction), 1), num - 1)
    classes, inverse, counts = np.unique(labels.numpy(), return_inverse=True, return_counts=True)
    quotas = counts * (wanted / num)
    # The floors leave fewer than one row a class over; the largest remainders get them.
    takes = np.floor(quotas + 1e-9).astype(np.int64)
    for row in np.argsort(takes - quotas, kind="stable")[: wanted - int(takes.sum())]:
        takes[row] += 1
    chosen = np.zeros(num, dtype=bool)
    for index, label in enumerate(classes):
        members = np.flatnonzero(inverse == index)
        order = numpy_generator(seed, purpose, int(label)).permutation(len(members))
        chosen[members[order[: takes[index]]]] = True
    return torch.from_numpy(np.flatnonzero(~chosen)), torch.from_numpy(np.flatnonzero(chosen))


def split_validation(train: ImageSet, fraction: float = 0.1, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """Cut a validation set off a training set: seeded, stratified by label, disjoint.

    Both parts keep the order of the whole; positions start at 0 in each.

    Raises:
        ConfigError: if the fraction is not in (0, 1), or there are fewer than two samples.
    """
    kept, held_out = stratified_split(train.labels, fraction, seed, "validation")
    return train.part(kept), train.part(held_out)
