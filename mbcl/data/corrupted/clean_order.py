"""Matching of corrupted images in class folders to the clean images that they were made from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import ImageSet
from mbcl.data.packs.folders import Listing
from mbcl.errors import DataError, pluralize


def clean_order(folder: Path, entries: Sequence[tuple[Path, str]], clean: ImageSet, request: DatasetRequest) -> Listing:
    """List the images of ``folder/CLASS/IMAGE`` in the order of the clean images, one for each.

    A file matches the clean image whose file has the same name without extension, or whose position is its name. If
    the names are neither, the files of each class are matched in natural sort order of their names (numbers by value),
    and a warning is reported through ``request``. ``entries`` are the images in ``folder``, which is that of one
    corruption and severity, each with the name of its class folder.

    Raises:
        DataError: if a class is unknown, an image is missing or extra, or an image is in the folder of another class.
    """
    files = _with_labels(folder, entries, clean)
    for names, keys in _join_keys(clean, files):
        positions = {name: position for position, name in enumerate(names)}
        if len(positions) == len(names) and sum(key in positions for key in keys) > len(keys) / 2:
            return _match_by_key(folder, clean, files, [positions.get(key) for key in keys])
    return _match_by_order(folder, clean, files, request)


def _join_keys(
    clean: ImageSet, files: list[tuple[Path, int]]
) -> Iterator[tuple[Sequence[Hashable], Sequence[Hashable]]]:
    """Yield key pairs to join clean images and files on: by name, by name within a class, by position."""
    stems = [path.stem for path, _ in files]
    yield clean.files, stems
    yield list(zip(clean.labels.tolist(), clean.files, strict=False)), [(label, path.stem) for path, label in files]
    numbers = [int(stem) if stem.isdecimal() else None for stem in stems]
    if len(set(numbers)) == len(numbers):  # repeated numbers mean that each class is numbered separately
        yield range(len(clean)), numbers


def _with_labels(folder: Path, entries: Sequence[tuple[Path, str]], clean: ImageSet) -> list[tuple[Path, int]]:
    """Return the images with the labels of their class folders."""
    labels = {name: label for label, name in enumerate(clean.classes)}
    for name in dict.fromkeys(name for _, name in entries):
        if name not in labels and not (name.isdecimal() and int(name) <= int(clean.labels.max())):
            expected = f"one of the {len(labels)} classes" if labels else "a number of a class"
            raise DataError(f"{folder / name}: not {expected} of the clean test images")
    return [(path, labels[name] if name in labels else int(name)) for path, name in entries]


def _match_by_key(folder: Path, clean: ImageSet, files: list[tuple[Path, int]], positions: list[int | None]) -> Listing:
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


def _match_by_order(folder: Path, clean: ImageSet, files: list[tuple[Path, int]], request: DatasetRequest) -> Listing:
    groups: dict[int, list[Path]] = defaultdict(list)
    for path, label in files:
        groups[label].append(path)
    labels = clean.labels.tolist()
    for label in sorted({*labels, *groups}):
        if len(groups[label]) != labels.count(label):
            name = clean.classes[label] if clean.classes else str(label)
            raise DataError(
                f"{folder}: class {name} has {pluralize(len(groups[label]), 'image')}, the clean test part "
                f"{labels.count(label)}"
            )
    request.object(
        f"{clean.name}: {folder}: the files' names do not tell which clean images they were made of; those of a class "
        f"are taken in the order of their names"
    )
    remaining = {label: iter(sorted(paths, key=_natural_sort_key)) for label, paths in groups.items()}
    return Listing([next(remaining[label]) for label in labels], labels)


def _natural_sort_key(path: Path) -> list[tuple[int, str]]:
    """Return a natural sort key, which compares numbers in a name by value: img2 before img10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.stem)]
