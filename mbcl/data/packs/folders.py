"""Listing and decoding of images in class folders, the published layout.

Letters: N images, S pixels per side.
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

from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import stratified_rows
from mbcl.data.messages import data_errors, one_line
from mbcl.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Extensions of image files, as in torchvision."""
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # an allowlist: Pillow starts Ghostscript for EPS content
_CHUNK = 256
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
    """

    root: Path
    train: Listing
    test: Listing
    classes: Sequence[str]
    size: int
    resize: bool = False


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


def class_images(folder: Path) -> list[Path]:
    """List the image files of one class, sorted by name: those in its folder ``images``, or else in the folder itself.

    Raises:
        DataError: if the folder cannot be read, or images elsewhere in it would be skipped.
    """
    inner = folder / "images"
    image_folder = inner if inner.is_dir() else folder
    others = [folder / name for name in subfolders(folder) if folder / name != inner]
    for other in [*others, *([folder] if image_folder == inner else [])]:
        if misplaced := image_files(other):
            raise DataError(f"{misplaced[0]}: not where images are expected, {image_folder}/IMAGE")
    return image_files(image_folder)


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
        files = class_images(folder / name)
        if not files:
            raise DataError(f"{folder / name}: it holds no images; expected {', '.join(SUFFIXES)}")
        paths += files
        labels += [label_of[name]] * len(files)
    if not paths:
        raise DataError(f"{folder}: it holds no folders of classes with images")
    return Listing(paths, labels)


def find_parts(
    request: DatasetRequest, *, name: str, layout: str, max_classes: int | None = None, size: int | None = None
) -> Parts | None:
    """List the images of ``train/CLASS/IMAGE`` and ``test/CLASS/IMAGE``, or ``val`` without ``test``.

    Args:
        request: its folder.
        name: name of the data set, for the error message.
        layout: expected layout, for the error message.
        max_classes: see :func:`train_classes`.
        size: S of a set with one fixed size. Others are resized to the request's ``image_size``; without it, all images
            must be squares of the same size as the first one.

    Returns:
        The files; None without a folder ``train``.

    Raises:
        DataError: if there is no test part, a folder cannot be read, or the size cannot be determined.
    """
    root, resize = request.root, size is None and request.image_size is not None
    if root is None or not (root / "train").is_dir():
        return None
    test = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if test is None:
        raise DataError(f"{name}: {root} has a folder train, but neither test nor val; {layout}")
    classes = train_classes(root / "train", max_classes)
    train_files, test_files = (list_class_folders(folder, classes) for folder in (root / "train", test))
    size = size or request.image_size or square_side(train_files.paths[0], "; data.image_size says the side")
    return Parts(root, train_files, test_files, classes, size, resize)


def train_classes(folder: Path, max_classes: int | None) -> list[str]:
    """Return the classes of a training part: the sorted names of its folders.

    Raises:
        DataError: if there are more than ``max_classes``, the number of classes of the data set, if it is fixed.
    """
    classes = subfolders(folder)
    if max_classes is not None and len(classes) > max_classes:
        raise DataError(f"{folder}: expected at most {max_classes} folders of classes, found {len(classes)}")
    return classes


Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def decode(listing: Listing, *, size: int, name: str, resize: bool = False) -> tuple[Tensor, Tensor]:
    """Decode images into memory as :func:`decoded`, and log the progress with the name of the data set.

    Returns:
        (N, 3, S, S) uint8 in RGB, grey images with three equal channels; (N,) int64 labels.

    Raises:
        DataError: for the first file that is not an image of that size.
    """
    pixels = np.empty((len(listing), 3, size, size), np.uint8)
    done, last_logged_at = 0, time.monotonic()
    for chunk in decoded(listing.paths, size=size, resize=resize):
        pixels[done : done + len(chunk)] = chunk
        done += len(chunk)
        if time.monotonic() - last_logged_at > _LOG_EVERY:
            last_logged_at = time.monotonic()
            logger.info("%s: %s of %s images decoded", name, f"{done:,}", f"{len(listing):,}")
    return torch.from_numpy(pixels), torch.tensor(listing.labels, dtype=torch.int64)


def decoded(paths: Sequence[Path], *, size: int, resize: bool = False) -> Iterator[Pixels]:
    """Yield decoded images in order, in chunks of (M, 3, S, S) uint8, read by several threads.

    Args:
        paths: the files.
        size: S, the side of every image in pixels, before or after resizing.
        resize: resize images of any size to S x S with the usual evaluation transform, torchvision's ``Resize(S)``
            (shorter side to S, bilinear, antialiased) and ``CenterCrop(S)``.

    Raises:
        DataError: for the first file that is not an image, or not of S x S pixels unless ``resize`` is set.
    """
    import joblib  # knows affinity and quotas
    from PIL import Image

    Image.init()  # once, before the threads, each of which would load the plugins

    def decode_chunk(start: int) -> Pixels:
        chunk = paths[start : start + _CHUNK]
        return np.stack([_read_image(path, size, resize).transpose(2, 0, 1) for path in chunk])

    with ThreadPoolExecutor(min(_MAX_THREADS, joblib.cpu_count()), thread_name_prefix="decode") as pool:
        yield from pool.map(decode_chunk, range(0, len(paths), _CHUNK))


def square_side(path: Path, advice: str = "") -> int:
    """Return the side of a square image in pixels; only the file's header is read.

    Raises:
        DataError: if the file is not an image, or not a square; ``advice`` ends the message.
    """
    from PIL import Image

    with _wrap_decoder_errors(path), Image.open(path, formats=_FORMATS) as image:
        width, height = image.size
        if width != height:
            raise DataError(f"{path}: found {width} x {height} pixels, not a square{advice}")
        return width


def _read_image(path: Path, size: int, resize: bool) -> Pixels:
    """Decode one image to (S, S, 3) uint8."""
    from PIL import Image
    from torchvision.transforms import functional as transforms

    with _wrap_decoder_errors(path), Image.open(path, formats=_FORMATS) as image:
        if image.size != (size, size) and not resize:
            width, height = image.size
            raise DataError(
                f"{path}: expected {size} x {size} pixels, found {width} x {height}; the data set "
                f"image_folder takes any with data.image_size"
            )
        colour = _to_eight_bits(image, path).convert("RGB")
        return np.asarray(transforms.center_crop(transforms.resize(colour, [size]), [size]))


def _to_eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """Convert an image to 8 bits per channel; Pillow alone would silently clip deeper values at 255."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode[0] in "IF":
        raise DataError(f"{path}: pixels of mode {image.mode}, whose range is not known; expected 8 or 16 bits")
    return image


@contextmanager
def _wrap_decoder_errors(path: Path) -> Iterator[None]:
    """Convert any exception of a decoder into a one-line DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # decoders raise many exception types for damaged files
        reason = one_line(error).removesuffix(f" {str(path)!r}")
        raise DataError(f"{path}: not a readable image: {reason}") from error
