"""Corrupted images in folders of classes, brought into the order of the clean images that they were made of."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import ImageSet
from mbcl.data.packs.folders import Listing
from mbcl.errors import DataError


def clean_order(folder: Path, found: Sequence[tuple[Path, str]], clean: ImageSet, request: DatasetRequest) -> Listing:
    """The images of ``folder/CLASS/IMAGE``, one for each clean image, in their order.

    A file belongs to the clean image whose file has its name (endings aside), or whose position its name is. If the
    names are neither, files of a class are taken in the order of their names, numbers by value, and the request is
    told.

    Args:
        folder: of one corruption and severity.
        found: its images, with the names of their folders of classes.
        clean: the clean images.
        request: how to say what is not certain.

    Raises:
        DataError: if a class is unknown, an image is missing or there is one too many, or one lies in the folder of
            another class.
    """
    files = _labelled(folder, found, clean)
    for names, keys in _schemes(clean, files):
        places = {name: position for position, name in enumerate(names)}
        if len(places) == len(names) and sum(key in places for key in keys) > len(keys) / 2:
            return _by_name(folder, clean, files, [places.get(key) for key in keys])
    return _by_rank(folder, clean, files, request)


def _schemes(clean: ImageSet, files: list[tuple[Path, int]]) -> Iterator[tuple[Sequence[Hashable], Sequence[Hashable]]]:
    """What the clean images may be called, and the files: by name, by name within a class, by position."""
    stems = [path.stem for path, _ in files]
    yield clean.files, stems
    yield list(zip(clean.labels.tolist(), clean.files, strict=False)), [(label, path.stem) for path, label in files]
    numbers = [int(stem) if stem.isdecimal() else None for stem in stems]
    if len(set(numbers)) == len(numbers):  # else they are counted anew in every class
        yield range(len(clean)), numbers


def _labelled(folder: Path, found: Sequence[tuple[Path, str]], clean: ImageSet) -> list[tuple[Path, int]]:
    """The images with the labels that their folders say."""
    labels = {name: label for label, name in enumerate(clean.classes)}
    for name in dict.fromkeys(name for _, name in found):
        if name not in labels and not (name.isdecimal() and int(name) <= int(clean.labels.max())):
            known = f"one of the {len(labels)} classes" if labels else "a number of a class"
            raise DataError(f"{folder / name}: not {known} of the clean test images")
    return [(path, labels[name] if name in labels else int(name)) for path, name in found]


def _by_name(folder: Path, clean: ImageSet, files: list[tuple[Path, int]], positions: list[int | None]) -> Listing:
    paths: dict[int, Path] = {}
    for (path, label), position in zip(files, positions, strict=True):
        if position is None:
            raise DataError(f"{path}: there is no clean test image of this name")
        if position in paths:
            raise DataError(f"{path}: a second file of this name, beside {paths[position]}")
        expected = int(clean.labels[position])
        if label != expected:
            name = clean.classes[expected] if clean.classes else str(expected)
            raise DataError(f"{path}: the clean test image of this name is of class {name}")
        paths[position] = path
    missing = [position for position in range(len(clean)) if position not in paths]
    if missing:
        name = f" ({clean.files[missing[0]]})" if clean.files else ""
        raise DataError(
            f"{folder}: it lacks {len(missing)} of the {len(clean)} test images, first that at position "
            f"{missing[0]}{name}"
        )
    return Listing([paths[position] for position in range(len(clean))], clean.labels.tolist())


def _by_rank(folder: Path, clean: ImageSet, files: list[tuple[Path, int]], request: DatasetRequest) -> Listing:
    groups: dict[int, list[Path]] = defaultdict(list)
    for path, label in files:
        groups[label].append(path)
    labels = clean.labels.tolist()
    for label in sorted({*labels, *groups}):
        if len(groups[label]) != labels.count(label):
            name = clean.classes[label] if clean.classes else str(label)
            raise DataError(
                f"{folder}: class {name} has {len(groups[label])} images, the clean test part {labels.count(label)}"
            )
    request.object(
        f"{clean.name}: {folder}: the files' names do not tell which clean images they were made of; those of a class "
        f"are taken in the order of their names"
    )
    waiting = {label: iter(sorted(paths, key=_natural)) for label, paths in groups.items()}
    return Listing([next(waiting[label]) for label in labels], labels)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts numbers in a name by value: img2 before img10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.stem)]
