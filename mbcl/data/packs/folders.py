"""Images in folders of classes, the published layout: which files there are, and their pixels in memory.

Letters: N images, S pixels a side.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mbcl.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

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

    @property
    def files(self) -> tuple[str, ...]:
        """The files' names without their endings."""
        return tuple(path.stem for path in self.paths)


@dataclass(frozen=True)
class Parts:
    """The files of a data set.

    Args:
        root: the folder that they are below.
        train: of the training part.
        test: of the test part.
        classes: by label.
        size: S, what both sides of every image are, or become.
        resize: whether images of other sizes are brought to it; otherwise they are refused.
    """

    root: Path
    train: Listing
    test: Listing
    classes: Sequence[str]
    size: int
    resize: bool = False


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


def class_images(folder: Path) -> list[Path]:
    """The image files of one class: those in its folder, or in the folder ``images`` in it; sorted by name.

    Raises:
        DataError: if it cannot be read, or there are images elsewhere below it, which would be passed over.
    """
    inner = folder / "images"
    chosen = inner if inner.is_dir() else folder
    below = [folder / name for name in subfolders(folder) if folder / name != inner]
    for other in [*below, *([folder] if chosen == inner else [])]:
        if passed := image_files(other):
            raise DataError(f"{passed[0]}: not where images are expected, {chosen}/IMAGE")
    return image_files(chosen)


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
        files = class_images(folder / name)
        if not files:
            raise DataError(f"{folder / name}: it holds no images; expected {', '.join(SUFFIXES)}")
        paths += files
        labels += [places[name]] * len(files)
    if not paths:
        raise DataError(f"{folder}: it holds no folders of classes with images")
    return Listing(paths, labels)


def train_and_test(root: Path, name: str, layout: str) -> tuple[Path, Path] | None:
    """The folders ``train`` and ``test``, or ``val`` if there is no ``test``; None if there is no ``train``.

    Args:
        root: of the data set.
        name: its name, for the error.
        layout: what is expected, for the error.

    Raises:
        DataError: if there is no test part.
    """
    if not (root / "train").is_dir():
        return None
    test = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if test is None:
        raise DataError(f"{name}: {root} has a folder train, but neither test nor val; {layout}")
    return root / "train", test


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


Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def decode(listing: Listing, *, size: int, name: str, resize: bool = False) -> tuple[Tensor, Tensor]:
    """Read images into memory, several at a time; progress goes to the log.

    Args:
        listing: the files.
        size: S, what both sides of every image must be, or become.
        name: the data set's, for the log.
        resize: see :func:`decoded`.

    Returns:
        (N, 3, S, S) uint8, RGB, grey images repeated; (N,) int64 labels.

    Raises:
        DataError: for the first file that is no image of that size.
    """
    pixels = np.empty((len(listing), 3, size, size), np.uint8)
    done, told = 0, time.monotonic()
    for chunk in decoded(listing.paths, size=size, resize=resize):
        pixels[done : done + len(chunk)] = chunk
        done += len(chunk)
        if time.monotonic() - told > _LOG_EVERY:
            told = time.monotonic()
            logger.info("%s: %s of %s images decoded", name, f"{done:,}", f"{len(listing):,}")
    return torch.from_numpy(pixels), torch.tensor(listing.labels, dtype=torch.int64)


def decoded(paths: Sequence[Path], *, size: int, resize: bool = False) -> Iterator[Pixels]:
    """Images in order, some (M, 3, S, S) uint8 at a time, read by several threads.

    Args:
        paths: the files.
        size: S, pixels.
        resize: bring images of any size to S x S as evaluations usually do, the shorter side to S (bilinear,
            antialiased), then the centre: torchvision's ``Resize(S)`` and ``CenterCrop(S)``.

    Raises:
        DataError: for the first file that is no image, or not of S x S pixels unless resized.
    """
    from PIL import Image

    Image.init()  # here: threads would all load the plugins

    def work(start: int) -> Pixels:
        chunk = paths[start : start + _CHUNK]
        return np.stack([_read_image(path, size, resize).transpose(2, 0, 1) for path in chunk])

    with ThreadPoolExecutor(min(_MAX_THREADS, _usable_cpus()), thread_name_prefix="decode") as pool:
        yield from pool.map(work, range(0, len(paths), _CHUNK))


def image_dimensions(path: Path) -> tuple[int, int]:
    """Width and height of an image file, pixels; only its header is read.

    Raises:
        DataError: if it is no image.
    """
    from PIL import Image

    with _unreadable(path), Image.open(path, formats=_FORMATS) as image:
        return image.size


def _read_image(path: Path, size: int, resize: bool) -> Pixels:
    """(S, S, 3) uint8."""
    from PIL import Image

    with _unreadable(path), Image.open(path, formats=_FORMATS) as image:
        if image.size != (size, size) and not resize:
            width, height = image.size
            raise DataError(
                f"{path}: expected {size} x {size} pixels, found {width} x {height}; the data set "
                f"image_folder takes any with data.image_size"
            )
        return np.asarray(_centre(_eight_bits(image, path).convert("RGB"), size))


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """The image with 8 bits a channel: Pillow would cut the values of others off at 255, without a word."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode[0] in "IF":
        raise DataError(f"{path}: pixels of mode {image.mode}, whose range is not known; expected 8 or 16 bits")
    return image


def _centre(image: Image.Image, size: int) -> Image.Image:
    from PIL import Image

    width, height = image.size
    if (width, height) == (size, size):
        return image
    shorter = min(width, height)
    width, height = (size * side // shorter for side in (width, height))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    """Whatever a decoder raises is one line that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # decoders raise many kinds for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a readable image: {reason.removesuffix(f' {str(path)!r}')}") from error


def _usable_cpus() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
