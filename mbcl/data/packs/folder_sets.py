"""Data sets of image files, read from a pack if a valid one exists, or else from the files.

Letters: N images, S pixels per side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import ImageSet
from mbcl.data.packs.folders import FOLDER, Listing, Parts, decode
from mbcl.data.packs.pack_file import Pack, describe_decoding, open_pack, write_pack
from mbcl.data.samples import Splits
from mbcl.data.views.recipe import ViewRecipe
from mbcl.errors import ConfigError, DataError


@dataclass(frozen=True)
class Packed:
    """Result of packing: path and size of the pack, whether it is new, and the seconds spent."""

    path: Path
    num_train: int
    num_test: int
    size: int
    new: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FolderSet:
    """A data set of image files, with the published augmentation for natural images.

    Args:
        name: registered name.
        find: function that lists and checks the files in a request's folder; it returns None if there are none.
        mean, std: one number per channel, for pixels in [0, 1].
        sized: whether all images have one fixed size. Otherwise they are resized to ``data.image_size``.
        official_counts: official numbers of training and test images, if known.
        missing: what a folder without the files lacks, for errors.
        layout, no_download: expected layout of the folder and reason why the set cannot be downloaded, for the errors
            of :meth:`demanded`.
    """

    name: str
    find: Callable[[DatasetRequest], Parts | None]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sized: bool = True
    official_counts: tuple[int, int] | None = None
    missing: str = "holds no folder train"
    layout: str = ""
    no_download: str = ""

    def read(self, request: DatasetRequest) -> Splits | None:
        """Read both parts; return None if there are neither files nor a pack of this set.

        Raises:
            DataError: if a file is missing or damaged; if the pack is damaged or was made with other keys of ``data``;
                if the files changed after packing and ``request.verify`` is strict (otherwise a warning is issued and
                the files are read).
        """
        pack, parts = self._valid_pack(request, self.find(request))
        if pack is not None:
            splits = self._from_pack(pack)
            counts = len(pack.train), len(pack.test)
        elif parts is not None:
            splits = self._decoded(parts, parts.train.few(request.max_samples))
            counts = len(parts.train), len(parts.test)
        else:
            return None
        if self.official_counts:
            location = parts.root if parts else pack and pack.path
            request.object_to_counts(f"{self.name}: {location}", counts, self.official_counts)
        return splits

    def demanded(self, request: DatasetRequest) -> Splits:
        """Read both parts of a set that has no other source and no download.

        Raises:
            DataError: as :meth:`read`, and if there are neither files nor a pack.
            ConfigError: if ``download`` is set.
        """
        if request.download:
            raise ConfigError(f"{self.name}: download: found true, but {self.no_download}; {self.layout}")
        if request.root is None:
            raise DataError(f"{self.name}: data.dir is not given; {self.layout}")
        splits = self.read(request)
        if splits is None:
            problem = self.missing if request.root.is_dir() else "does not exist"
            raise DataError(f"{self.name}: {request.root} {problem}; {self.layout}")
        return splits

    def pack_name(self, image_size: int | None) -> str:
        """Return the name of this set's pack; sets that are resized have one pack per size."""
        return self.name if self.sized or image_size is None else f"{self.name}-{image_size}"

    def pack(
        self, request: DatasetRequest, *, out: Path | None, force: bool, on_progress: Callable[[int, int], None]
    ) -> Packed:
        """Pack the files, as :func:`pack_parts`; sets that are resized need ``image_size``.

        The default of ``out`` is the folder ``mbcl-pack`` of the data set, where :meth:`read` finds the pack.

        Raises:
            DataError: if there are no files, or one cannot be read.
        """
        parts = self.find(request)
        if parts is None:
            raise DataError(
                f"{self.name}: {request.root} holds no folders of images to pack; expected train/CLASS/IMAGE"
            )
        return pack_parts(parts, out or parts.root / FOLDER, self.pack_name(request.image_size), force, on_progress)

    def _valid_pack(self, request: DatasetRequest, parts: Parts | None) -> tuple[Pack | None, Parts | None]:
        """Return the pack, None if missing or out of date, and the files, which may be in the pack's source folder."""
        folders = [request.root] if request.root else []
        if parts and parts.root not in folders:
            folders.append(parts.root)
        packs = (open_pack(folder, self.pack_name(request.image_size)) for folder in folders)
        pack = next((pack for pack in packs if pack), None)
        if pack is None:
            return None, parts
        if parts is None and not request.copied:
            parts = self.find(replace(request, dir=pack.source))
        if parts is None and not self.sized and (pack.exif, pack.bits) != (request.exif, request.bits):
            found, wanted = describe_decoding(pack), describe_decoding(request)
            raise DataError(
                f"{pack.path}: packed with {found}, expected {wanted}; `mbcl data pack` packs the files again"
            )
        return pack if parts is None or pack.is_current(parts, self.name, request) else None, parts

    def _from_pack(self, pack: Pack) -> Splits:
        pixels = torch.from_numpy(pack.pixels())
        parts = []
        for images, records in zip(pixels.tensor_split([len(pack.train)]), (pack.train, pack.test), strict=True):
            labels, files = torch.tensor([file.label for file in records]), [Path(file.path).stem for file in records]
            parts.append(replace(self._image_set(images, labels, files, pack.classes), mapped=True))
        return Splits(*parts, pixels_sha256=pack.data["sha256"])

    def _decoded(self, parts: Parts, train: Listing) -> Splits:
        """Decode both parts in one go, so that the error names every unreadable file."""
        paths = [*train.paths, *parts.test.paths]
        images, labels = decode(Listing(paths, [*train.labels, *parts.test.labels]), parts.decoding, name=self.name)
        bounds = [len(train)]
        files = [path.stem for path in paths]
        stems = files[: len(train)], files[len(train) :]
        sets = zip(images.tensor_split(bounds), labels.tensor_split(bounds), stems, strict=True)
        return Splits(*(self._image_set(*each, parts.classes) for each in sets))

    def _image_set(self, images: Tensor, labels: Tensor, files: Sequence[str], classes: Sequence[str]) -> ImageSet:
        return ImageSet(
            images,
            labels,
            self.name,
            ViewRecipe(),
            mean=self.mean,
            std=self.std,
            image_size=images.shape[-1],
            classes=tuple(classes),
            files=tuple(files),
            labelled=bool(classes),
        )


def pack_parts(parts: Parts, folder: Path, name: str, force: bool, on_progress: Callable[[int, int], None]) -> Packed:
    """Pack files, unless an intact pack of them exists.

    ``force`` packs them anyway. The other arguments are those of :func:`mbcl.data.packs.pack_file.write_pack`.

    Raises:
        DataError: if a file cannot be read.
    """
    start = time.perf_counter()
    existing = None if force else _find_intact(folder, name, parts)
    path = existing.path if existing else write_pack(parts, folder, name, on_progress)
    return Packed(path, len(parts.train), len(parts.test), parts.size, existing is None, time.perf_counter() - start)


def _find_intact(folder: Path, name: str, parts: Parts) -> Pack | None:
    """Return the pack of these files in a folder; None if it is missing, out of date or damaged."""
    try:
        pack = open_pack(folder, name)
        if pack is None or pack.difference(parts):
            return None
        pack.pixels()
    except DataError:
        return None
    return pack
