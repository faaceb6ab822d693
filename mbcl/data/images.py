"""Image sets in memory, and stratified splits of them.

Letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mbcl.data.messages import format_shape
from mbcl.data.samples import TWO_VIEWS, SampleSet, check_labels
from mbcl.data.views.augment import clean_views, make_views
from mbcl.data.views.recipe import ViewRecipe
from mbcl.errors import ConfigError, DataError, pluralize
from mbcl.seeding import numpy_generator

_TRANSFER_CHUNK = 4096
"""Images per host-to-device copy."""
THUMBNAIL = 32
"""Maximum side of a thumbnail in pixels."""


@dataclass(frozen=True)
class ImageSet(SampleSet):
    """Images with labels. Position p of a batch plan is image p; :meth:`pixels` returns it.

    Args:
        images: (N, C, H, W) uint8, on any device. It may hold more than N images if ``rows`` selects the N of this set.
        labels: (N,) int64, on the CPU. Pretraining never reads them.
        name: name of the data set, for messages.
        recipe: default augmentation strengths for this data set.
        mean, std: one number per channel, for pixels in [0, 1].
        image_size: side of the views and of the encoder's input, in pixels.
        classes: class names, indexed by label; empty if the files do not name them.
        labelled: whether the labels are classes; otherwise all are 0.
        files: file name of every image without its extension; empty if neither files nor the archive name the images.
        device: the device of what :meth:`pixels` returns; that of ``images`` if None.
        rows: (N,) int64 on the CPU, the row of each image in ``images``; the identity if None. This indirection lets
            subsets share one tensor, and leaves a memory-mapped tensor in its file.
        mapped: whether ``images`` is memory-mapped from a file, whose pages take no memory that others need.

    Raises:
        DataError: if the set is empty, or if shapes and dtypes do not match.
    """

    noun: ClassVar[str] = "image"
    draws_when_measured: ClassVar[bool] = True
    why_unlabelled: ClassVar[str] = "in no folders"

    images: Tensor
    labels: Tensor
    name: str
    recipe: ViewRecipe
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    classes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    labelled: bool = True
    device: torch.device | None = None
    rows: Tensor | None = None
    mapped: bool = False

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8 or 0 in self.images.shape[1:]:
            raise DataError(
                f"{self.name}: images must be (N, C, H, W) uint8, found {tuple(self.images.shape)} {self.images.dtype}"
            )
        check_labels(self.name, self.noun, len(self), self.labels)
        if self.files and len(self.files) != len(self):
            raise DataError(f"{self.name}: {len(self)} images, but {len(self.files)} names of files")
        if not len(self.mean) == len(self.std) == self.channels:
            means, stds = pluralize(len(self.mean), "mean"), pluralize(len(self.std), "std")
            raise DataError(f"{self.name}: {pluralize(self.channels, 'channel')}, but {means}, {stds}")

    def __len__(self) -> int:
        return len(self.images if self.rows is None else self.rows)

    @property
    def channels(self) -> int:
        """The number of channels, C."""
        return self.images.shape[1]

    @property
    def view_size(self) -> int:
        """The pixels of a view."""
        return self.image_size**2

    @property
    def shape_text(self) -> str:
        """Channels, height and width of an image."""
        return format_shape(self.images.shape[1:])

    def part(self, positions: Tensor) -> ImageSet:
        """Return the subset at ``positions`` ((M,) int64), in that order. It shares this set's memory.

        ``positions[i]`` becomes position i.
        """
        files = tuple(self.files[position] for position in positions.tolist()) if self.files else ()
        rows = positions if self.rows is None else self.rows[positions]
        return replace(self, rows=rows, labels=self.labels[positions], files=files)

    def subset(self, positions: Tensor) -> ImageSet:
        """Return the subset at ``positions`` ((M,) int64), in that order. It owns a copy of its images."""
        return replace(self.part(positions), images=self._gather(positions), rows=None, mapped=False)

    def first(self, num: int) -> ImageSet:
        """Return a copy of the first ``num`` images, so that the rest can be freed; the set itself if it is smaller."""
        return self if num >= len(self) else self.subset(torch.arange(num))

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the set with ``device`` as the device of :meth:`pixels`.

        All images are copied to ``device``, still uint8, if they fit into half of its free memory. Otherwise they stay
        on their device, a warning is issued, and :meth:`pixels` transfers each batch.
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
        moved = torch.empty((len(self), *self.images.shape[1:]), dtype=torch.uint8, device=device)
        for positions in torch.arange(len(self)).split(_TRANSFER_CHUNK):
            moved[positions[0] : positions[-1] + 1] = self._gather(positions)
        return replace(self, images=moved, rows=None, device=device)

    def pixels(self, positions: Tensor) -> Tensor:
        """Return the images at ``positions`` ((B,) int64, any device) as (B, C, H, W) uint8 on the set's device."""
        pixels = self._gather(positions)
        return pixels if self.device is None else pixels.to(self.device)

    def views(self, positions: Tensor, *, seed: int, epoch: int, numbers: range = TWO_VIEWS) -> Tensor:
        """Return augmented views of the images, (VB, C, S, S); see :meth:`SampleSet.views`."""
        return make_views(self.pixels(positions), positions, images=self, seed=seed, epoch=epoch, view=numbers)

    def clean(self, positions: Tensor) -> Tensor:
        """Return the images resized and normalised, (B, C, S, S): both views without augmentation are the same."""
        return clean_views(self.pixels(positions), images=self)

    def clean_views(self, positions: Tensor) -> Tensor:
        """Return the images twice, (2B, C, S, S)."""
        return self.clean(positions).repeat(2, 1, 1, 1)

    def by_sample(self, outputs: Tensor) -> Tensor:
        """Return the outputs as they are."""
        return outputs

    def split(self, fraction: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
        """Split the positions, stratified by label; see :func:`stratified_split`."""
        return stratified_split(self.labels, fraction, seed, purpose)

    def stored_bytes(self) -> dict[int, int]:
        """Return the bytes of the images by their address."""
        return {} if self.mapped else {self.images.data_ptr(): self.images.nbytes}

    def contents(self) -> Iterator[bytes]:
        """Yield the bytes of each image."""
        return (self.pixels(torch.tensor([position])).cpu().numpy().tobytes() for position in range(len(self)))

    def describe_input(self) -> dict[str, Any]:
        """Return size and normalisation."""
        return {
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "note": "pixels in [0, 1], minus mean, divided by std; both per channel",
        }

    def shown(self, positions: Tensor) -> list[dict[str, str]]:
        """Return small pictures of the images under ``picture``, as PNG files in base64."""
        return [{"picture": base64.b64encode(picture).decode()} for picture in self.thumbnails(positions)]

    def thumbnails(self, positions: Tensor) -> list[bytes]:
        """Return small pictures of the images at ``positions`` ((B,) int64) as PNG files, at most 32 pixels wide."""
        return [_thumbnail(pixels_CHW) for pixels_CHW in self._gather(positions).cpu()]

    def _gather(self, positions: Tensor) -> Tensor:
        rows = positions if self.rows is None else self.rows[positions.to(self.rows.device)]
        return self.images[rows.to(self.images.device)]


def _thumbnail(pixels_CHW: Tensor) -> bytes:
    """Return an image as a small PNG file; of colours it keeps 64."""
    from PIL import Image

    channels = pixels_CHW[:3] if len(pixels_CHW) >= 3 else pixels_CHW[:1]
    pixels = channels.permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    (image.quantize(64) if image.mode == "RGB" else image).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _free_memory(device: torch.device) -> int | None:
    """Return the free bytes on a device; None for the CPU, which already holds the images."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def stratified_split(labels: Tensor, fraction: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Split rows into two disjoint parts with the class proportions of the whole, up to rounding.

    Args:
        labels: (N,) int64.
        fraction: share of the second part, in (0, 1). It gets round(N · fraction) rows, clamped to [1, N - 1].
        seed: seed of the split.
        purpose: name of the random stream, see :func:`mbcl.seeding.derive`.

    Returns:
        Two int64 tensors of row indices, each ascending.

    Raises:
        ConfigError: if the fraction is not in (0, 1), or there are fewer than two rows.
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"the fraction of a split must be in (0, 1), found {fraction}")
    num = len(labels)
    if num < 2:
        raise ConfigError(f"a split needs at least 2 samples, found {num}")
    num_second = min(max(round(num * fraction), 1), num - 1)
    classes, inverse, counts = np.unique(labels.numpy(), return_inverse=True, return_counts=True)
    quotas = counts * (num_second / num)
    # Largest-remainder apportionment: floors leave fewer rows than classes, which go to the largest fractions.
    class_counts = np.floor(quotas + 1e-9).astype(np.int64)
    for row in np.argsort(class_counts - quotas, kind="stable")[: num_second - int(class_counts.sum())]:
        class_counts[row] += 1
    in_second = np.zeros(num, dtype=bool)
    for index, label in enumerate(classes):
        members = np.flatnonzero(inverse == index)
        order = numpy_generator(seed, purpose, int(label)).permutation(len(members))
        in_second[members[order[: class_counts[index]]]] = True
    return torch.from_numpy(np.flatnonzero(~in_second)), torch.from_numpy(np.flatnonzero(in_second))


def stratified_rows(labels: Tensor, num: int) -> Tensor:
    """Return ``num`` rows with the class proportions of the whole, up to rounding; all rows if there are no more.

    They are a function of the labels, (N,) int64, and do not depend on the experiment's seed, so that all seeds of a
    study train on the same samples. Fewer rows are a subset of more, but for the rounding of a class.

    Returns:
        (M,) int64, ascending.
    """
    return torch.arange(len(labels)) if num >= len(labels) else stratified_split(labels, num / len(labels), 0, "few")[1]
