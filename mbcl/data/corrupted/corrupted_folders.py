"""Corrupted sets as folders ``CORRUPTION/SEVERITY/CLASS/IMAGE``, with one pack per corruption and severity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbcl.data.corrupted.clean_order import clean_order
from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import ImageSet
from mbcl.data.packs.folder_sets import Packed, pack_parts
from mbcl.data.packs.folders import Listing, Parts, class_images, decode, image_dimensions, subfolders
from mbcl.data.packs.pack_file import FOLDER, Pack, open_pack
from mbcl.errors import DataError

_EMPTY = Listing([], [])


def severities_in(root: Path, severities: tuple[int, ...]) -> dict[str, list[int]]:
    """List the severities that exist as folders or as packs, by corruption."""
    present: dict[str, set[int]] = {}
    for corruption in subfolders(root):
        names = set(subfolders(root / corruption))
        present[corruption] = {severity for severity in severities if str(severity) in names}
    for folder in (root / FOLDER, root):
        for path in folder.glob("*-?.json"):
            corruption, _, severity = path.stem.rpartition("-")
            if severity in map(str, severities):
                present.setdefault(corruption, set()).add(int(severity))
    return {corruption: sorted(found) for corruption, found in present.items() if found}


def pack_folders(
    root: Path,
    available: dict[str, list[int]],
    *,
    out: Path | None,
    force: bool,
    on_progress: Callable[[int, int], None],
) -> Iterator[Packed]:
    """Pack the folder of each corruption and severity, unless an intact pack of it exists.

    Args:
        root: folder of the corrupted set.
        available: severities by corruption; those without a folder are skipped.
        out: folder for the packs; ``mbcl-pack`` in the set's folder by default, where readers look for them.
        force: pack even if an intact pack exists.
        on_progress: callback with the number of images done and the total of the current pack.

    Raises:
        DataError: if an image cannot be read, or its size differs from that of the first.
    """
    for corruption, severities in available.items():
        for severity in severities:
            if (root / corruption / str(severity)).is_dir():
                yield pack_parts(
                    _parts(root, corruption, severity),
                    out or root / FOLDER,
                    f"{corruption}-{severity}",
                    force,
                    on_progress,
                )


def folder_reader(
    root: Path, corruption: str, severity: int, clean: ImageSet, request: DatasetRequest, name: str
) -> Callable[[], Tensor]:
    """Check the files of one corruption and severity, and return a function that reads them.

    The function returns (N, 3, S, S) uint8, in the order of the clean images.

    Args:
        root: folder of the corrupted set.
        corruption: name of the corruption's folder.
        severity: name of the severity's folder in it.
        clean: the N clean test images. The files are matched to their names and labels immediately.
        request: the request that uncertain matches are reported to.
        name: name of the set, for messages.

    Raises:
        DataError: as :func:`mbcl.data.corrupted.clean_order.clean_order`; if a pack is damaged. The returned function
            raises it if an image cannot be read.
    """
    folder, size = root / corruption / str(severity), clean.images.shape[-1]
    pack = _usable_pack(root, corruption, severity, request, name)
    if pack is None:
        listing = clean_order(folder, _class_files(folder), clean, request)
        return lambda: decode(listing, size=size, name=name)[0]
    if pack.size != size:
        raise DataError(f"{pack.path}: holds images of {pack.size} pixels, the clean ones have {size}")
    row_of = {root / record[0]: row for row, record in enumerate(pack.test.records)}
    files = [(path, pack.classes[record[1]]) for path, record in zip(row_of, pack.test.records, strict=True)]
    rows = [row_of[path] for path in clean_order(folder, files, clean, request).paths]
    return lambda: torch.from_numpy(np.ascontiguousarray(pack.pixels()[rows]))


def _usable_pack(root: Path, corruption: str, severity: int, request: DatasetRequest, name: str) -> Pack | None:
    """Return the pack if it matches the files, or if the files were removed; None otherwise."""
    pack = open_pack(root, f"{corruption}-{severity}")
    if pack is None or not (root / corruption / str(severity)).is_dir():
        return pack
    difference = pack.difference(_parts(root, corruption, severity))
    if difference is None:
        return pack
    request.object(
        f"{name}: {pack.path} is not used, the files have changed since they were packed: {difference}; "
        f"`mbcl data pack` packs them again"
    )
    return None


def _class_files(folder: Path) -> list[tuple[Path, str]]:
    """List all images of ``folder/CLASS/IMAGE``, each with the name of its class."""
    return [(path, name) for name in subfolders(folder) for path in class_images(folder / name)]


def _parts(root: Path, corruption: str, severity: int) -> Parts:
    """Return the files of one folder as a test part, with an empty training part."""
    folder = root / corruption / str(severity)
    classes = subfolders(folder)
    files = _class_files(folder)
    if not files:
        raise DataError(f"{folder}: it holds no folders of classes with images")
    listing = Listing([path for path, _ in files], [classes.index(name) for _, name in files])
    width, height = image_dimensions(files[0][0])
    if width != height:
        raise DataError(f"{files[0][0]}: found {width} x {height} pixels, not a square")
    return Parts(root, _EMPTY, listing, classes, width)
