"""Listing and decoding of images in class folders, the published layout.

Letters: N images, S pixels per side.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import stratified_rows
from mbcl.data.messages import data_errors
from mbcl.data.packs.image_file import Decoding, Pixels, read_image
from mbcl.data.packs.unread import SUFFIXES, object_to_unread
from mbcl.errors import DataError

logger = logging.getLogger(__name__)

FOLDER = "mbcl-pack"
"""The folder of packs in that of a data set."""
_CHUNK = 256
_MAX_NAMED = 1000  # of unreadable files in one message
_MAX_THREADS = 16
_LOG_EVERY = 2.0  # seconds


@dataclass(frozen=True)
class Listing:
    """Image files and their labels, in the order of the data set."""

    paths: Sequence[Path]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.paths)

    def few(self, num: int | None) -> Listing:
        """Return ``num`` of the files, as :func:`mbcl.data.images.stratified_rows`; all of them for None."""
        if num is None:
            return self
        rows = stratified_rows(torch.tensor(self.labels), num).tolist()
        return Listing([self.paths[row] for row in rows], [self.labels[row] for row in rows])


@dataclass(frozen=True)
class Parts:
    """Files of the training and test part of a data set.

    Args:
        root: common folder of all files.
        train, test: files of each part.
        classes: class names, indexed by label.
        size: S, the side of every image, before or after resizing.
        resize: whether images of other sizes are resized; otherwise they are refused.
        exif: whether images are turned as their EXIF orientation says.
        bits: significant bits of images of 16 bits; None for all.
    """

    root: Path
    train: Listing
    test: Listing
    classes: Sequence[str]
    size: int
    resize: bool = False
    exif: bool = False
    bits: int | None = None

    @property
    def decoding(self) -> Decoding:
        """How the files are decoded."""
        return Decoding(self.size, self.resize, self.exif, self.bits)


def subfolders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, sorted, without hidden ones.

    Raises:
        DataError: if the folder cannot be read.
    """
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def image_files(folder: Path) -> list[Path]:
    """List the image files in a folder, sorted by name, without hidden ones.

    Raises:
        DataError: if the folder cannot be read.
    """
    return sorted(Path(entry.path) for entry in _entries(folder) if entry.name.lower().endswith(SUFFIXES))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with data_errors(folder), os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def images_folder(folder: Path) -> Path:
    """Return the folder with the images of one class: its folder ``images``, or else the folder itself."""
    return folder / "images" if (folder / "images").is_dir() else folder


def class_images(folder: Path) -> list[Path]:
    """List the image files of one class, sorted by name, and refuse others.

    Raises:
        DataError: if the folder cannot be read, or images elsewhere in it would be skipped.
    """
    inner = images_folder(folder)
    others = [folder / name for name in subfolders(folder) if folder / name != inner]
    for other in [*others, *([folder] if inner != folder else [])]:
        if misplaced := image_files(other):
            raise DataError(f"{misplaced[0]}: not where images are expected, {inner}/IMAGE")
    return image_files(inner)


def list_class_folders(folder: Path, classes: Sequence[str]) -> Listing:
    """List the images of ``folder/CLASS/IMAGE`` or ``folder/CLASS/images/IMAGE``, by class and then by name.

    A label is an index into ``classes``. The folder, one part of a data set, may lack classes, but not hold others.

    Raises:
        DataError: if a folder that is not empty is not a class, or if the folder of a class holds no images.
    """
    paths: list[Path] = []
    labels: list[int] = []
    label_of = {name: label for label, name in enumerate(classes)}
    for name in subfolders(folder):
        if name not in label_of:
            if not _entries(folder / name):
                continue
            raise DataError(f"{folder / name}: not one of the {len(classes)} classes of the training part")
        files = image_files(images_folder(folder / name))
        if not files:
            raise DataError(f"{folder / name}: it holds no images; expected {', '.join(SUFFIXES)}")
        paths += files
        labels += [label_of[name]] * len(files)
    if not paths:
        raise DataError(f"{folder}: it holds no folders of classes with images")
    return Listing(paths, labels)


def find_parts(request: DatasetRequest, *, name: str, layout: str, max_classes: int, size: int) -> Parts | None:
    """List the images of ``train/CLASS/IMAGE`` and ``test/CLASS/IMAGE``, or ``val`` without ``test``.

    Args:
        request: its folder.
        name: name of the data set, for the error message.
        layout: expected layout, for the error message.
        max_classes: see :func:`train_classes`.
        size: S, the same for all images.

    Returns:
        The files; None without a folder ``train``.

    Raises:
        DataError: if there is no test part, or a folder cannot be read; if images are not read and the request is
            strict.
    """
    root = request.root
    if root is None or not (root / "train").is_dir():
        return None
    test = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if test is None:
        raise DataError(f"{name}: {root} has a folder train, but neither test nor val; {layout}")
    classes = train_classes(root / "train", max_classes)
    train_files, test_files = (list_class_folders(folder, classes) for folder in (root / "train", test))
    object_to_unread(name, (root / "train", test), (*train_files.paths, *test_files.paths), request)
    return Parts(root, train_files, test_files, classes, size)


def train_classes(folder: Path, max_classes: int | None) -> list[str]:
    """Return the classes of a training part: the sorted names of its folders.

    Raises:
        DataError: if there are more than ``max_classes``, the number of classes of the data set, if it is fixed.
    """
    classes = subfolders(folder)
    if max_classes is not None and len(classes) > max_classes:
        raise DataError(f"{folder}: expected at most {max_classes} folders of classes, found {len(classes)}")
    return classes


def decode(listing: Listing, decoding: Decoding, *, name: str) -> tuple[Tensor, Tensor]:
    """Decode images into memory as :func:`decoded`, and log the progress with the name of the data set.

    Returns:
        (N, 3, S, S) uint8 in RGB, grey images with three equal channels; (N,) int64 labels.

    Raises:
        DataError: as :func:`decoded`.
    """
    pixels = np.empty((len(listing), 3, decoding.size, decoding.size), np.uint8)
    done, last_logged_at = 0, time.monotonic()
    for chunk in decoded(listing.paths, decoding):
        pixels[done : done + len(chunk)] = chunk
        done += len(chunk)
        if time.monotonic() - last_logged_at > _LOG_EVERY:
            last_logged_at = time.monotonic()
            logger.info("%s: %s of %s images decoded", name, f"{done:,}", f"{len(listing):,}")
    return torch.from_numpy(pixels), torch.tensor(listing.labels, dtype=torch.int64)


def decoded(paths: Sequence[Path], decoding: Decoding) -> Iterator[Pixels]:
    """Yield decoded images in order, in chunks of (M, 3, S, S) uint8, read by several threads.

    Raises:
        DataError: if a file is not an image as :func:`mbcl.data.packs.image_file.read_image` expects it. All files are
            read first, and the message names every one.
    """
    import joblib  # knows affinity and quotas
    from PIL import Image

    Image.init()  # once, before the threads, each of which would load the plugins
    failures: list[DataError] = []

    def decode_chunk(start: int) -> Pixels | list[DataError]:
        images: list[Pixels] = []
        errors: list[DataError] = []
        for path in paths[start : start + _CHUNK]:
            try:
                image = read_image(path, decoding)
                if not errors:
                    images.append(image.transpose(2, 0, 1))
            except DataError as error:
                errors.append(error)
        return errors or np.stack(images)

    with ThreadPoolExecutor(min(_MAX_THREADS, joblib.cpu_count()), thread_name_prefix="decode") as pool:
        for chunk in pool.map(decode_chunk, range(0, len(paths), _CHUNK)):
            if isinstance(chunk, list):
                failures += chunk
            elif not failures:
                yield chunk
    if len(failures) > 1:
        shown = "; ".join(map(str, failures[:_MAX_NAMED]))
        rest = f"; and {len(failures) - _MAX_NAMED:,} more" if len(failures) > _MAX_NAMED else ""
        raise DataError(f"{len(failures):,} of {len(paths):,} images cannot be read: {shown}{rest}") from failures[0]
    for failure in failures:
        raise failure
