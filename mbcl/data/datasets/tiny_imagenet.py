"""Tiny ImageNet (Stanford CS231n): 200 classes of ImageNet at 64 x 64 pixels.

The official test part has no labels: the validation part is the test part here. All images are held in memory as bytes,
1.23 GB for the 100,000 of the training part and 0.12 GB for the test part, by every process that reads the set; cutting
a validation split off copies the training part once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import Splits
from mbcl.data.packs.folder_sets import FolderSet
from mbcl.data.packs.folders import Listing, Parts, image_files, list_class_folders, subfolders, train_classes
from mbcl.data.views.recipe import ViewRecipe
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
RECIPE = ViewRecipe()


def find(request: DatasetRequest) -> Parts | None:
    """The training images and, as the test part, those of the official validation part.

    Raises:
        DataError: if a file is missing, or lies where it does not belong, in one line that names it.
    """
    root = request.root
    places = () if root is None else (root, root / FOLDER)
    folder = next((place for place in places if (place / "train").is_dir()), None)
    if folder is None:
        return None
    classes = _classes(folder)
    train, test = list_class_folders(folder / "train", classes), _test_part(folder, classes)
    _check_names(train, classes)
    return Parts(folder, train, test, classes, SIZE)


FILES = FolderSet(
    name="tiny_imagenet",
    find=find,
    mean=(0.485, 0.456, 0.406),  # ImageNet's, as published
    std=(0.229, 0.224, 0.225),
    recipe=RECIPE,
    official_counts=OFFICIAL_COUNTS,
)


def read(request: DatasetRequest) -> Splits:
    """Read both parts, from the extracted folder, one that holds it, or one of class folders.

    Raises:
        DataError: if a file is missing or damaged, in one line that names it.
        ConfigError: if ``download`` is asked for: torchvision has none of this set.
    """
    return FILES.demanded(request, layout=HOW_TO_GET, no_download="it cannot be fetched")


def _check_names(listing: Listing, classes: Sequence[str]) -> None:
    """Official files are called WNID_NUMBER: one in another class's folder was put there by mistake."""
    for path, label in zip(listing.paths, listing.labels, strict=True):
        wnid = path.name.partition("_")[0]
        if wnid != classes[label] and wnid in classes:
            raise DataError(f"{path}: an image of {wnid} in the folder of {classes[label]}")


def _classes(folder: Path) -> list[str]:
    """The classes, sorted: the folders of the training part, which ``wnids.txt`` must agree with if it is there."""
    found = train_classes(folder / "train", NUM_CLASSES)
    path = folder / "wnids.txt"
    if not path.is_file():
        return found
    listed = {line.strip() for line in _lines(path)} - {""}
    for wnid in sorted(listed.symmetric_difference(found)):
        where = f"names {wnid}, which train lacks" if wnid in listed else f"lacks {wnid}, which train holds"
        raise DataError(f"{path}: it {where}")
    return found


def _test_part(folder: Path, classes: Sequence[str]) -> Listing:
    """The official validation part, or class folders; the official test part, without labels, is never read."""
    val = folder / "val"
    if (val / "images").is_dir() and image_files(val / "images"):
        return _annotated(val, classes)
    # The official folder has a test part beside class folders in `val` that were made from the annotations.
    for part in (val, folder / "test"):
        if part.is_dir() and set(subfolders(part)) - {"images"}:
            return list_class_folders(part, classes)
    raise DataError(f"tiny_imagenet: {folder} has no test part with labels; {HOW_TO_GET}")


def _annotated(val: Path, classes: Sequence[str]) -> Listing:
    """The images of the official validation part in the order of the annotations."""
    path = val / ANNOTATIONS
    if not path.is_file():
        raise DataError(f"tiny_imagenet: {val} lacks {ANNOTATIONS}; {HOW_TO_GET}")
    waiting = {file.name: file for file in image_files(val / "images")}
    labels_of = {name: label for label, name in enumerate(classes)}
    paths, labels = [], []
    for number, name, wnid in _annotations(path):
        if wnid not in labels_of:
            raise DataError(f"{path}: line {number}: {wnid} is not one of the {len(classes)} classes of train")
        if name not in waiting:
            raise DataError(f"{path}: line {number}: {name} is given twice or is not in {val / 'images'}")
        paths.append(waiting.pop(name))
        labels.append(labels_of[wnid])
    if waiting:
        raise DataError(f"{path}: it lacks {len(waiting)} of the files in {val / 'images'}, first {min(waiting)}")
    return Listing(paths, labels)


def _annotations(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, file and class; what follows on a line is a bounding box."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            name, *rest = line.split("\t")
            if not rest:
                raise DataError(f"{path}: line {number}: expected FILE, tab, WNID, found {line[:80]!r}")
            yield number, name, rest[0].strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise DataError(f"{path}: cannot be read: {reason}") from error
