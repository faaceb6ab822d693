"""Data sets whose images are files of their own: read from the files, or from a pack of them where there is one.

Letters: N images, S pixels a side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import ImageSet, Splits
from mbcl.data.packs.folders import Listing, Parts, decode
from mbcl.data.packs.pack_file import FOLDER, Pack, open_pack, write_pack
from mbcl.data.views.recipe import ViewRecipe
from mbcl.errors import ConfigError, DataError


@dataclass(frozen=True)
class Packed:
    """What was packed, whether it was now, and how many seconds that took."""

    path: Path
    num_train: int
    num_test: int
    size: int
    new: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FolderSet:
    """A data set of image files.

    Args:
        name: ours.
        find: the files that a request's folder holds, listed and checked; None if it holds no such set.
        mean: one number a channel, of pixels in [0, 1].
        std: likewise.
        recipe: default strengths of the views.
        sized: whether all images have one size; those of other sets are brought to ``data.image_size``.
        official_counts: of training and test images, where that is known.
    """

    name: str
    find: Callable[[DatasetRequest], Parts | None]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    recipe: ViewRecipe
    sized: bool = True
    official_counts: tuple[int, int] | None = None

    def read(self, request: DatasetRequest) -> Splits | None:
        """Both parts; None if there is neither a folder of this set nor a pack of it.

        Raises:
            DataError: if a file is missing or damaged; if the pack is; if the files are no longer those that were
                packed and ``request.verify`` is strict (otherwise that is a warning, and the files are read).
        """
        pack, parts = self._pack(request, self.find(request))
        if pack is not None:
            splits = self._from_pack(pack)
            splits = Splits(splits.train.first(request.max_samples or len(splits.train)), splits.test)
            counts = len(pack.train.labels), len(pack.test.labels)
        elif parts is not None:
            chosen = parts.train.first(request.max_samples), parts.test
            splits = Splits(*(self._decoded(listing, parts) for listing in chosen))
            counts = len(parts.train), len(parts.test)
        else:
            return None
        if self.official_counts:
            where = parts.root if parts else pack and pack.path
            request.object_to_counts(f"{self.name}: {where}", counts, self.official_counts)
        return splits

    def demanded(self, request: DatasetRequest, *, layout: str, no_download: str) -> Splits:
        """Both parts of a set that has no other files than these, and no download.

        Args:
            request: what is asked for.
            layout: what the folder must hold.
            no_download: why it cannot be downloaded.

        Raises:
            DataError: as :meth:`read`, and if there is nothing to read.
            ConfigError: if ``download`` is asked for.
        """
        if request.download:
            raise ConfigError(f"{self.name}: download: found true, but {no_download}; {layout}")
        if request.root is None:
            raise DataError(f"{self.name}: data.dir is not given; {layout}")
        found = self.read(request)
        if found is None:
            what = "holds no folder train" if request.root.is_dir() else "does not exist"
            raise DataError(f"{self.name}: {request.root} {what}; {layout}")
        return found

    def pack_name(self, image_size: int | None) -> str:
        """What a pack of this set is called; those that are brought to a size have a pack for each."""
        return self.name if self.sized or image_size is None else f"{self.name}-{image_size}"

    def pack(
        self, request: DatasetRequest, *, out: Path | None, force: bool, on_progress: Callable[[int, int], None]
    ) -> Packed:
        """Pack the files, unless a whole pack of them is there already.

        Args:
            request: where they are; ``image_size`` for sets that are brought to a size.
            out: the pack's folder; ``mbcl-pack`` in the data set's own by default, where it is found by itself.
            force: pack even if there is one.
            on_progress: is told how many images of how many are done.

        Raises:
            DataError: if there are no such files, or one cannot be read.
        """
        parts = self.find(request)
        if parts is None:
            raise DataError(
                f"{self.name}: {request.root} holds no folders of images to pack; expected train/CLASS/IMAGE"
            )
        return pack_parts(parts, out or parts.root / FOLDER, self.pack_name(request.image_size), force, on_progress)

    def _pack(self, request: DatasetRequest, parts: Parts | None) -> tuple[Pack | None, Parts | None]:
        """The pack of the files, if there is one and it is theirs, and the files, which may lie elsewhere."""
        places = [request.root] if request.root else []
        if parts and parts.root not in places:
            places.append(parts.root)
        packs = (open_pack(place, self.pack_name(request.image_size)) for place in places)
        pack = next((pack for pack in packs if pack), None)
        if pack is None:
            return None, parts
        if parts is None and not request.copied:
            parts = self.find(replace(request, dir=pack.source))
        difference = pack.difference(parts) if parts else None
        if difference is None:
            return pack, parts
        request.object(
            f"{self.name}: {pack.path} is not used, the files have changed since they were packed: {difference}; "
            f"`mbcl data pack` packs them again"
        )
        return None, parts

    def _from_pack(self, pack: Pack) -> Splits:
        pixels = torch.from_numpy(pack.pixels())
        border = len(pack.train.labels)
        images = pixels[:border], pixels[border:]
        found = zip(images, (pack.train, pack.test), strict=True)
        return Splits(*(self._set(i, torch.tensor(part.labels), part.files, pack.classes) for i, part in found))

    def _decoded(self, listing: Listing, parts: Parts) -> ImageSet:
        images, labels = decode(listing, size=parts.size, name=self.name, resize=parts.resize)
        return self._set(images, labels, listing.files, parts.classes)

    def _set(self, images: Tensor, labels: Tensor, files: tuple[str, ...], classes: Sequence[str]) -> ImageSet:
        return ImageSet(
            images,
            labels,
            self.name,
            self.recipe,
            mean=self.mean,
            std=self.std,
            image_size=images.shape[-1],
            classes=tuple(classes),
            files=files,
        )


def pack_parts(parts: Parts, folder: Path, name: str, force: bool, on_progress: Callable[[int, int], None]) -> Packed:
    """Pack files, unless a whole pack of them is there already.

    The arguments are those of :func:`mbcl.data.packs.pack_file.write_pack`.

    Raises:
        DataError: if a file cannot be read.
    """
    start = time.perf_counter()
    there = None if force else _whole(folder, name, parts)
    path = there.path if there else write_pack(parts, folder, name, on_progress)
    return Packed(path, len(parts.train), len(parts.test), parts.size, there is None, time.perf_counter() - start)


def _whole(folder: Path, name: str, parts: Parts) -> Pack | None:
    """The pack of these files that a folder holds, unless it is damaged."""
    try:
        pack = open_pack(folder, name)
        if pack is None or pack.difference(parts):
            return None
        pack.pixels()
    except DataError:
        return None
    return pack
