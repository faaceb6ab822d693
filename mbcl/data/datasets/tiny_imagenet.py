"""Tiny ImageNet (Stanford CS231n): 200 classes of ImageNet at 64 x 64 pixels.

The official test part has no labels, so the official validation part is the test part here. Read from image files,
the set takes 1.23 GB (100,000 training images) and 0.12 GB (test part) of memory as uint8, in every process that reads
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.messages import read_bytes
from mbcl.data.packs.folder_sets import FolderSet
from mbcl.data.packs.folders import Listing, Parts, image_files, list_class_folders, subfolders, train_classes
from mbcl.data.packs.unread import object_to_unread
from mbcl.errors import DataError

NUM_CLASSES = 200
SIZE = 64
OFFICIAL_COUNTS = (100_000, 10_000)
FOLDER = "tiny-imagenet-200"
ANNOTATIONS = "val_annotations.txt"
HOW_TO_GET = (
    f"expected the extracted {FOLDER}.zip of http://cs231n.stanford.edu (train/WNID/images/*.JPEG, val/images/*.JPEG, "
    f"val/{ANNOTATIONS}) or folders train/CLASS/IMAGE and val/CLASS/IMAGE; there is no download"
)


def find(request: DatasetRequest) -> Parts | None:
    """List the training images and, as the test part, those of the official validation part; None without ``train``.

    Raises:
        DataError: if a file is missing or in the wrong folder; the one-line message names it.
    """
    root = request.root
    candidates = () if root is None else (root, root / FOLDER)
    folder = next((candidate for candidate in candidates if (candidate / "train").is_dir()), None)
    if folder is None:
        return None
    classes = _classes(folder)
    train, test = list_class_folders(folder / "train", classes), _test_part(folder, classes)
    _check_names(train, classes)
    tested = folder / test.paths[0].relative_to(folder).parts[0]
    object_to_unread("tiny_imagenet", (folder / "train", tested), (*train.paths, *test.paths), request)
    return Parts(folder, train, test, classes, SIZE)


FILES = FolderSet(
    name="tiny_imagenet",
    find=find,
    mean=(0.485, 0.456, 0.406),  # statistics of ImageNet, as published
    std=(0.229, 0.224, 0.225),
    official_counts=OFFICIAL_COUNTS,
    layout=HOW_TO_GET,
    no_download="it cannot be fetched",
)


def _check_names(listing: Listing, classes: Sequence[str]) -> None:
    """Raise DataError for an official file name, WNID_NUMBER, in the folder of another class."""
    for path, label in zip(listing.paths, listing.labels, strict=True):
        wnid = path.name.partition("_")[0]
        if wnid != classes[label] and wnid in classes:
            raise DataError(f"{path}: an image of {wnid} in the folder of {classes[label]}")


def _classes(folder: Path) -> list[str]:
    """Return the sorted class folders of the training part; ``wnids.txt``, if present, must list the same."""
    classes = train_classes(folder / "train", NUM_CLASSES)
    path = folder / "wnids.txt"
    if not path.is_file():
        return classes
    listed = {line.strip() for line in _lines(path)} - {""}
    for wnid in sorted(listed.symmetric_difference(classes)):
        difference = f"names {wnid}, which train lacks" if wnid in listed else f"lacks {wnid}, which train holds"
        raise DataError(f"{path}: it {difference}")
    return classes


def _test_part(folder: Path, classes: Sequence[str]) -> Listing:
    """List the official validation part, or class folders; the official test part has no labels and is never read."""
    val = folder / "val"
    if (val / "images").is_dir() and image_files(val / "images"):
        return _annotated(val, classes)
    # `val` comes first: users who convert it into class folders still have the unlabelled official `test`.
    for part in (val, folder / "test"):
        if part.is_dir() and set(subfolders(part)) - {"images"}:
            return list_class_folders(part, classes)
    raise DataError(f"tiny_imagenet: {folder} has no test part with labels; {HOW_TO_GET}")


def _annotated(val: Path, classes: Sequence[str]) -> Listing:
    """List the images of the official validation part in the order of the annotations."""
    path = val / ANNOTATIONS
    if not path.is_file():
        raise DataError(f"tiny_imagenet: {val} lacks {ANNOTATIONS}; {HOW_TO_GET}")
    unlisted = {file.name: file for file in image_files(val / "images")}
    label_of = {name: label for label, name in enumerate(classes)}
    paths, labels = [], []
    for number, name, wnid in _annotations(path):
        if wnid not in label_of:
            raise DataError(f"{path}: line {number}: {wnid} is not one of the {len(classes)} classes of train")
        if name not in unlisted:
            raise DataError(f"{path}: line {number}: {name} is given twice or is not in {val / 'images'}")
        paths.append(unlisted.pop(name))
        labels.append(label_of[wnid])
    if unlisted:
        raise DataError(f"{path}: it lacks {len(unlisted)} of the files in {val / 'images'}, first {min(unlisted)}")
    return Listing(paths, labels)


def _annotations(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, file name and class; the bounding box in the remaining columns is ignored."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            name, *rest = line.split("\t")
            if not rest:
                raise DataError(f"{path}: line {number}: expected FILE, tab, WNID, found {line[:80]!r}")
            yield number, name, rest[0].strip()


def _lines(path: Path) -> list[str]:
    try:
        return read_bytes(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read: not a text file") from error
