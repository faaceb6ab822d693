"""Images in folders of classes, the published layout: which files there are, and their pixels in memory.

Letters: N images, S pixels a side.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbcl.errors import DataError

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What counts as an image, as in torchvision."""
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # PIL would start Ghostscript for a file that says EPS
_CHUNK = 256
_MAX_THREADS = 16
_LOG_EVERY = 2.0  # seconds


@dataclass(frozen=True)
class Listing:
    """Image files in the order of the data set, with their classes."""

    paths: Sequence[Path]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.paths)

    def first(self, num: int | None) -> Listing:
        """The first ``num`` images; all of them if None."""
        return Listing(self.paths[:num], self.labels[:num])


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without hidden ones.

    Raises:
        DataError: if it cannot be read.
    """
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder, sorted by name, without hidden ones.

    Raises:
        DataError: if it cannot be read.
    """
    return sorted(Path(entry.path) for entry in _entries(folder) if entry.name.lower().endswith(SUFFIXES))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error


def list_class_folders(folder: Path, classes: Sequence[str]) -> Listing:
    """The images of ``folder/CLASS/IMAGE`` or ``folder/CLASS/images/IMAGE``, class by class, each sorted by name.

    Args:
        folder: of one part of a data set. It may lack classes, but not hold others.
        classes: all classes; a label is a position in it.

    Raises:
        DataError: if a folder that is not empty is not one of the classes, or one of a class holds no images.
    """
    paths: list[Path] = []
    labels: list[int] = []
    places = {name: label for label, name in enumerate(classes)}
    for name in subfolders(folder):
        if name not in places:
            if not _entries(folder / name):
                continue
            raise DataError(f"{folder / name}: not one of the {len(classes)} classes of the training part")
        inner = folder / name / "images"
        files = image_files(inner if inner.is_dir() else folder / name)
        if not files:
            raise DataError(f"{folder / name}: it holds no images; expected {', '.join(SUFFIXES)}")
        paths += files
        labels += [places[name]] * len(files)
    if not paths:
        raise DataError(f"{folder}: it holds no folders of classes with images")
    return Listing(paths, labels)


def train_classes(folder: Path, most: int) -> list[str]:
    """The classes of a training part: its folders, sorted.

    Args:
        folder: of the training part.
        most: how many classes the data set has.

    Raises:
        DataError: if there are more.
    """
    classes = subfolders(folder)
    if len(classes) > most:
        raise DataError(f"{folder}: expected at most {most} folders of classes, found {len(classes)}")
    return classes


def decode(listing: Listing, *, size: int, name: str) -> tuple[Tensor, Tensor]:
    """Read images into memory, several at a time; progress goes to the log.

    Args:
        listing: the files.
        size: S, what both sides of every image must be.
        name: the data set's, for the log.

    Returns:
        (N, 3, S, S) uint8, RGB, grey images repeated; (N,) int64 labels.

    Raises:
        DataError: for the first file that is no image of that size.
    """
    from PIL import Image

    Image.init()  # here: threads would all load the plugins
    pixels = np.empty((len(listing), 3, size, size), np.uint8)

    def work(start: int) -> int:
        chunk = listing.paths[start : start + _CHUNK]
        for row, path in enumerate(chunk, start):
            pixels[row] = _read_image(path, size).transpose(2, 0, 1)
        return len(chunk)

    done, told = 0, time.monotonic()
    with ThreadPoolExecutor(min(_MAX_THREADS, _usable_cpus()), thread_name_prefix="decode") as pool:
        for num in pool.map(work, range(0, len(listing), _CHUNK)):
            done += num
            if time.monotonic() - told > _LOG_EVERY:
                told = time.monotonic()
                log.info("%s: %s of %s images decoded", name, f"{done:,}", f"{len(listing):,}")
    return torch.from_numpy(pixels), torch.tensor(listing.labels, dtype=torch.int64)


def _read_image(path: Path, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(S, S, 3) uint8."""
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.size != (size, size):
                width, height = image.size
                raise DataError(f"{path}: expected {size} x {size} pixels, found {width} x {height}")
            return np.asarray(image.convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # decoders raise many kinds for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a readable image: {reason.removesuffix(f' {str(path)!r}')}") from error


def _usable_cpus() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
