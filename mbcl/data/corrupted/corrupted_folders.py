"""Corrupted sets as folders ``CORRUPTION/SEVERITY/CLASS/IMAGE``, with one pack per corruption and severity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbcl.data.corrupted.clean_order import clean_order
from mbcl.data.corruptions import SEVERITIES
from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import ImageSet
from mbcl.data.packs.folders import Listing, Parts, class_images, decode, subfolders
from mbcl.data.packs.image_file import Decoding, square_side
from mbcl.data.packs.pack_file import FOLDER, open_pack
from mbcl.errors import DataError


def severities_in(root: Path) -> dict[str, list[int]]:
    """List the severities that exist as folders or as packs, by corruption."""
    names = [(corruption, severity) for corruption in subfolders(root) for severity in subfolders(root / corruption)]
    packs = (path.stem for folder in (root / FOLDER, root) for path in folder.glob("*-?.json"))
    names += [(stem[:-2], stem[-1]) for stem in packs]
    present: dict[str, set[int]] = defaultdict(set)
    for corruption, severity in names:
        if severity in map(str, SEVERITIES):
            present[corruption].add(int(severity))
    return {corruption: sorted(severities) for corruption, severities in present.items()}


def folder_reader(
    root: Path, corruption: str, severity: int, clean: ImageSet, request: DatasetRequest, name: str
) -> Callable[[], Tensor]:
    """Check the files of one corruption and severity, and return a function that reads them.

    The files are matched immediately to the names and labels of the N clean test images, and uncertain matches are
    reported to the request. ``name`` is that of the set, for messages. The function returns (N, 3, S, S) uint8, in the
    order of the clean images; it raises DataError if an image cannot be read.

    Raises:
        DataError: as :func:`mbcl.data.corrupted.clean_order.clean_order`; if a pack is damaged.
    """
    folder, size = root / corruption / str(severity), clean.images.shape[-1]
    pack = open_pack(root, f"{corruption}-{severity}")  # the files may have been removed after packing
    if pack is None or (
        folder.is_dir() and not pack.is_current(severity_parts(root, corruption, severity), name, request)
    ):
        listing = clean_order(folder, _class_files(folder), clean, request)
        return lambda: decode(listing, Decoding(size), name=name)[0]
    if pack.size != size:
        raise DataError(f"{pack.path}: holds images of {pack.size} pixels, the clean ones have {size}")
    row_of = {root / record.path: row for row, record in enumerate(pack.test)}
    files = [(path, pack.classes[record.label]) for path, record in zip(row_of, pack.test, strict=True)]
    rows = [row_of[path] for path in clean_order(folder, files, clean, request).paths]
    return lambda: torch.from_numpy(np.ascontiguousarray(pack.pixels()[rows]))


def _class_files(folder: Path) -> list[tuple[Path, str]]:
    """List all images of ``folder/CLASS/IMAGE``, each with the name of its class."""
    return [(path, name) for name in subfolders(folder) for path in class_images(folder / name)]


def severity_parts(root: Path, corruption: str, severity: int) -> Parts:
    """Return the files of one folder as a test part, with an empty training part.

    Raises:
        DataError: if there is no image, or the first one is not a square.
    """
    folder = root / corruption / str(severity)
    classes = subfolders(folder)
    files = _class_files(folder)
    if not files:
        raise DataError(f"{folder}: it holds no folders of classes with images")
    listing = Listing([path for path, _ in files], [classes.index(name) for _, name in files])
    return Parts(root, Listing([], []), listing, classes, square_side(files[0][0]))
