"""Reader of your own images: ``train/CLASS/IMAGE`` and ``test/CLASS/IMAGE``, also without classes or test."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import stratified_split
from mbcl.data.packs.folder_sets import FolderSet
from mbcl.data.packs.folders import FOLDER, Listing, Parts, image_files, images_folder, list_class_folders, subfolders
from mbcl.data.packs.image_file import square_side
from mbcl.data.packs.unread import object_to_unread
from mbcl.errors import DataError, pluralize

NAME = "image_folder"
TEST_SHARE = 0.2
HOW_TO_GET = (
    "expected folders train/CLASS/IMAGE and test/CLASS/IMAGE (or val/CLASS/IMAGE); without test a fifth of the images "
    "is drawn for it, CLASS/IMAGE needs no train, and images in no folder of a class have no labels; images of other "
    "sizes than data.image_size are resized, the shorter side to it, and the centre is taken; there is no download"
)


def find(request: DatasetRequest) -> Parts | None:
    """List the images of a folder; None if it holds none where they are expected.

    Raises:
        DataError: if the training and the test part do not match, a folder cannot be read, or the size of the images
            cannot be determined; if images are not read and the request is strict.
    """
    root = request.root
    if root is None or not root.is_dir():
        return None
    test = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    train = root / "train" if (root / "train").is_dir() else root
    if train == root and test is not None:
        raise DataError(f"{NAME}: {root} has a folder {test.name}, but none called train; {HOW_TO_GET}")
    classes = _classes(train, root)
    listing = list_class_folders(train, classes) if classes and train != root else _listing(train, classes)
    if not listing.paths:
        return None
    if test is None:
        parts = _drawn_test(listing, root)
    else:
        parts = listing, list_class_folders(test, classes) if classes else _listing(test, ())
        if not parts[1].paths:
            raise DataError(f"{test}: it holds no images, but folders of them; those of {train} have no classes")
    object_to_unread(NAME, (train,) if test is None else (train, test), [*parts[0].paths, *parts[1].paths], request)
    size = request.image_size or square_side(listing.paths[0], "; data.image_size says the side")
    resize = request.image_size is not None
    return Parts(root, *parts, classes, size, resize, exif=request.exif, bits=request.bits)


def _classes(train: Path, root: Path) -> list[str]:
    """Return the folders of classes; none if the images lie in the training folder itself."""
    names = [name for name in subfolders(train) if train != root or name != FOLDER]
    if any(image_files(images_folder(train / name)) for name in names):
        # Beside other folders than `train`, which the user's folder may hold, only those with images are classes.
        return names if train != root else [name for name in names if image_files(images_folder(train / name))]
    return [] if image_files(train) or train == root else names


def _listing(folder: Path, classes: list[str] | tuple[()]) -> Listing:
    """List the images of class folders, or without classes those of the folder itself, labelled 0."""
    if not classes:
        paths = image_files(folder)
        return Listing(paths, [0] * len(paths))
    by_class = [image_files(images_folder(folder / name)) for name in classes]
    labels = [label for label, paths in enumerate(by_class) for _ in paths]
    return Listing([path for paths in by_class for path in paths], labels)


def _drawn_test(listing: Listing, root: Path) -> tuple[Listing, Listing]:
    """Draw a test part, the same for the same files and independent of the experiment's seed, and say so."""
    if len(listing) < 2:
        raise DataError(f"{NAME}: {root} has one image, from which no test part can be drawn")
    rows = stratified_split(torch.tensor(listing.labels), TEST_SHARE, 0, "image_folder test part")
    parts = [
        Listing([listing.paths[row] for row in part], [listing.labels[row] for row in part])
        for part in (each.tolist() for each in rows)
    ]
    warnings.warn(
        f"{NAME}: {root} has no folder test or val; its test part is {len(parts[1]):,} of the "
        f"{pluralize(len(listing), 'image', ',')}, drawn by the names of the files, the same for every seed",
        UserWarning,
        stacklevel=2,
    )
    return parts[0], parts[1]


FILES = FolderSet(
    name=NAME,
    find=find,
    mean=(0.485, 0.456, 0.406),  # statistics of ImageNet
    std=(0.229, 0.224, 0.225),
    sized=False,
    missing="holds no images",
    layout=HOW_TO_GET,
    no_download="there is nothing to fetch",
)
