"""Packs: the decoded images of a data set in one memory-mapped file, so that no epoch and no run decodes them again.

A pack lies in the folder ``mbcl-pack`` of the data set: ``NAME.json``, which says what was packed, and the pixels in
``NAME-DIGEST.npy``, training images first. The pixels are written first, under the name of their digest, the other file
last, both by a rename: a reader meets a whole pack or none, an older one until the newer is whole.

Letters: N images, S pixels a side.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mbcl.data.packs.folders import Listing, Parts, decoded
from mbcl.errors import DataError

FOLDER = "mbcl-pack"
_FORMAT = "mbcl pack 1"
_AGAIN = "delete it, or make it again with `mbcl data pack`"


class DamagedPackError(DataError):
    """A pack that is not what was written.

    Args:
        found: which file, and what is wrong with it.
    """

    def __init__(self, found: str) -> None:
        super().__init__(f"{found}; {_AGAIN}")
        self.found = found


Record = list[Any]
"""A file: path below the data set's folder, label, size in bytes, time of modification in nanoseconds."""


@dataclass(frozen=True)
class PackedPart:
    """What was packed of one part, in order."""

    records: list[Record]

    @property
    def labels(self) -> list[int]:
        """A label an image."""
        return [record[1] for record in self.records]

    @property
    def files(self) -> tuple[str, ...]:
        """The files' names without their endings."""
        return tuple(Path(record[0]).stem for record in self.records)


@dataclass(frozen=True)
class Pack:
    """A pack that was found; its pixels are read by :meth:`pixels`.

    Args:
        path: its ``NAME.json``.
        train, test: what was packed.
        classes: their names by label.
        size: S.
        source: the folder that the files lay in when they were packed.
        data: of the file of pixels: ``file``, ``bytes``, ``sha256``.
    """

    path: Path
    train: PackedPart
    test: PackedPart
    classes: list[str]
    size: int
    source: str
    data: dict[str, Any]

    def pixels(self) -> npt.NDArray[np.uint8]:
        """The images, (N, 3, S, S), mapped into memory; what a program writes into them does not reach the file.

        Raises:
            DataError: if the file is missing, has another size, or its content has another digest.
        """
        path = self.path.with_name(self.data["file"])
        try:
            found = path.stat().st_size
            if found != self.data["bytes"]:
                raise DamagedPackError(f"{path}: damaged pack: expected {self.data['bytes']} bytes, found {found}")
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != self.data["sha256"]:
                    raise DamagedPackError(f"{path}: damaged pack: its content is not what was written")
            images: npt.NDArray[np.uint8] = np.load(path, mmap_mode="c", allow_pickle=False)
        except OSError as error:
            raise DamagedPackError(f"{path}: damaged pack: cannot be read: {error.strerror}") from error
        return images

    def difference(self, parts: Parts) -> str | None:
        """How the files are no longer those that were packed, in words; None if they are the same."""
        if self.classes != list(parts.classes):
            return f"{len(self.classes)} classes were packed, there are {len(parts.classes)}, or they have other names"
        if self.size != parts.size:
            return f"images of {self.size} pixels were packed, now they have {parts.size}"
        for packed, listing in ((self.train, parts.train), (self.test, parts.test)):
            then, now = (
                {record[0]: record for record in found} for found in (packed.records, _records(parts, listing))
            )
            changed = [path for path in {**then, **now} if then.get(path) != now.get(path)]
            if changed:
                return f"{len(changed)} files, first {changed[0]}"
            if list(then) != list(now):
                return "the same files are in another order"
        return None


def open_pack(folder: Path, name: str) -> Pack | None:
    """The pack of this name in a data set's folder, or in the folder of a pack itself; None if there is none.

    Raises:
        DataError: if it is damaged.
    """
    places = (folder / FOLDER / f"{name}.json", folder / f"{name}.json")
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedPackError(f"{path}: damaged pack: cannot be read: {error.strerror}") from error
    return read_pack(content, path, name)


def read_pack(written: bytes, path: Path, name: str) -> Pack:
    """A pack by the content of its ``NAME.json``.

    Args:
        written: the content.
        path: where it lies, or will lie beside its pixels.
        name: of the pack.

    Raises:
        DataError: if it is damaged, or its file of pixels would lie elsewhere.
    """
    try:
        content = json.loads(written)
        whole = content["format"] == _FORMAT and content.pop("digest") == _digest(content)
        # The digest tells damage, not who wrote it: a name from somewhere else must not lead out of the folder.
        whole = whole and re.fullmatch(re.escape(name) + r"-[0-9a-f]{16}\.npy", content["data"]["file"]) is not None
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DamagedPackError(f"{path}: damaged pack, or one of another version")
    train, test = (PackedPart(_unfolded(content[part])) for part in ("train", "test"))
    return Pack(path, train, test, content["classes"], content["shape"][2], content["source"], content["data"])


def write_pack(parts: Parts, folder: Path, name: str, on_progress: Callable[[int, int], None]) -> Path:
    """Decode all images once and write a pack.

    Args:
        parts: the files.
        folder: the pack's; made if it is not there.
        name: of the pack.
        on_progress: is told how many images of how many are done.

    Returns:
        The path of its ``NAME.json``.

    Raises:
        DataError: for the first file that is no image of the right size.
        OSError: if it cannot be written; what was there before is still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listings = parts.train, parts.test
    train, test = (_records(parts, listing) for listing in listings)
    paths = [path for listing in listings for path in listing.paths]
    shape = (len(paths), 3, parts.size, parts.size)
    digest, done = hashlib.sha256(), 0
    with _new_file(folder) as (stream, finish):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        stream.write(header.getvalue())
        digest.update(header.getvalue())
        for chunk in decoded(paths, size=parts.size, resize=parts.resize):
            content = np.ascontiguousarray(chunk).data
            stream.write(content)
            digest.update(content)
            done += len(chunk)
            on_progress(done, len(paths))
        data = finish(f"{name}-{digest.hexdigest()[:16]}.npy")
    manifest = {
        "format": _FORMAT,
        "name": name,
        "shape": shape,
        "counts": {"train": len(train), "test": len(test)},
        "data": {"file": data.name, "bytes": data.stat().st_size, "sha256": digest.hexdigest()},
        "source": str(parts.root.absolute()),
        "classes": list(parts.classes),
        "train": _folded(train),
        "test": _folded(test),
    }
    manifest = json.loads(json.dumps(manifest))  # as it will be read
    with _new_file(folder) as (stream, finish):
        stream.write(json.dumps(manifest | {"digest": _digest(manifest)}, separators=(",", ":")).encode())
        path = finish(f"{name}.json")
    for old in folder.glob(f"{name}-{'[0-9a-f]' * 16}.npy"):
        if old != data:
            old.unlink(missing_ok=True)
    return path


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _records(parts: Parts, listing: Listing) -> list[Record]:
    records: list[Record] = []
    for path, label in zip(listing.paths, listing.labels, strict=True):
        try:
            found = os.stat(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        records.append([path.relative_to(parts.root).as_posix(), label, found.st_size, found.st_mtime_ns])
    return records


def _folded(records: list[Record]) -> list[Any]:
    """Runs of files in one folder, so that its name is written once."""
    runs: list[Any] = []
    for path, *facts in records:
        folder, _, file = path.rpartition("/")
        if not runs or runs[-1][0] != folder:
            runs.append([folder, []])
        runs[-1][1].append([file, *facts])
    return runs


def _unfolded(runs: list[Any]) -> list[Record]:
    return [[f"{folder}/{file}", *facts] for folder, files in runs for file, *facts in files]


@contextmanager
def _new_file(folder: Path) -> Iterator[tuple[BinaryIO, Callable[[str], Path]]]:
    """A temporary file and the function that gives it its name, once it is written; else it goes."""
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as stream:

            def finish(name: str) -> Path:
                stream.flush()
                os.fsync(stream.fileno())
                return temporary.replace(folder / name)

            yield stream, finish
    finally:
        temporary.unlink(missing_ok=True)
