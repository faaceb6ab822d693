"""Packs: the decoded images of a data set in one memory-mapped file, decoded once for all epochs and runs.

A pack is in the folder ``mbcl-pack`` of the data set. It consists of a manifest, ``NAME.json``, and the pixels in
``NAME-DIGEST.npy``, training images first. The pixel file is content-addressed and written first, the manifest last,
each with an atomic rename. So a reader sees a complete pack or none, and the old pack until the new one is complete.

Letters: N images, S pixels per side.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mbcl.data.content import pixels_header
from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.messages import data_errors
from mbcl.data.packs.folders import FOLDER as FOLDER
from mbcl.data.packs.folders import Listing, Parts, decoded
from mbcl.errors import DataError, pluralize
from mbcl.io.files import atomic_write, file_digest

_FORMAT = "mbcl pack 1"
_REBUILD_ADVICE = "delete it, or make it again with `mbcl data pack`"


class DamagedPackError(DataError):
    """A pack whose content differs from what was written; ``found`` names the file and the damage."""

    def __init__(self, found: str) -> None:
        super().__init__(f"{found}; {_REBUILD_ADVICE}")
        self.found = found


class Record(NamedTuple):
    """A packed file: path relative to the data set's folder, label, size in bytes, modification time in nanoseconds."""

    path: str
    label: int
    size: int
    time: int


@dataclass(frozen=True)
class Pack:
    """A pack, described by its manifest; :meth:`pixels` opens the pixels.

    Args:
        path: path of the manifest ``NAME.json``.
        train, test: the packed files, in order.
        classes: class names, indexed by label.
        size: S.
        source: folder of the files at the time of packing.
        data: name, size and digest of the pixel file: ``file``, ``bytes``, ``sha256``.
        exif, bits: as in :class:`mbcl.data.packs.image_file.Decoding`; packs of earlier versions have no EXIF.
    """

    path: Path
    train: list[Record]
    test: list[Record]
    classes: list[str]
    size: int
    source: str
    data: dict[str, Any]
    exif: bool = False
    bits: int | None = None

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Return the images, (N, 3, S, S) uint8, memory-mapped copy-on-write: writes do not change the file.

        Raises:
            DataError: if the file is missing, or if its size or digest is not that of the manifest.
        """
        path = self.path.with_name(self.data["file"])
        try:
            num_bytes = path.stat().st_size
            if num_bytes != self.data["bytes"]:
                raise DamagedPackError(f"{path}: damaged pack: expected {self.data['bytes']} bytes, found {num_bytes}")
            if file_digest(path) != self.data["sha256"]:
                raise DamagedPackError(f"{path}: damaged pack: its content is not what was written")
            images: npt.NDArray[np.uint8] = np.load(path, mmap_mode="c", allow_pickle=False)
        except OSError as error:
            raise DamagedPackError(f"{path}: damaged pack: cannot be read: {error.strerror}") from error
        return images

    def difference(self, parts: Parts) -> str | None:
        """Describe how the files differ from the packed ones; None if they are the same."""
        if self.classes != list(parts.classes):
            return f"{len(self.classes)} classes were packed, there are {len(parts.classes)}, or they have other names"
        if self.size != parts.size:
            return f"images of {self.size} pixels were packed, now they have {parts.size}"
        if (self.exif, self.bits) != (parts.exif, parts.bits):
            return f"they were packed with {describe_decoding(self)}, now it is {describe_decoding(parts)}"
        for packed, listing in ((self.train, parts.train), (self.test, parts.test)):
            old, new = ({record.path: record for record in records} for records in (packed, _records(parts, listing)))
            changed = [path for path in {**old, **new} if old.get(path) != new.get(path)]
            if changed:
                return f"{pluralize(len(changed), 'file')}, first {changed[0]}"
            if list(old) != list(new):
                return "the same files are in another order"
        return None

    def is_current(self, parts: Parts, name: str, request: DatasetRequest) -> bool:
        """Whether the files are the packed ones; otherwise their difference is reported through the request.

        Raises:
            DataError: if they differ and ``request.verify`` is strict.
        """
        difference = self.difference(parts)
        if difference is not None:
            request.object(
                f"{name}: {self.path} is not used, the files have changed since they were packed: {difference}; "
                f"`mbcl data pack` packs them again"
            )
        return difference is None


def describe_decoding(source: Pack | Parts | DatasetRequest) -> str:
    """Return the keys of ``data`` by which files become pixels, for messages."""
    bits = "null" if source.bits is None else source.bits
    return f"data.exif: {str(source.exif).lower()} and data.bits: {bits}"


def open_pack(folder: Path, name: str) -> Pack | None:
    """Return the pack of this name in a data set's folder or in a pack's own folder; None if there is none.

    Raises:
        DataError: if the manifest is damaged.
    """
    candidates = (folder / FOLDER / f"{name}.json", folder / f"{name}.json")
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        return None
    try:
        return read_pack(path.read_bytes(), path, name)
    except OSError as error:
        raise DamagedPackError(f"{path}: damaged pack: cannot be read: {error.strerror}") from error


def read_pack(raw: bytes, path: Path, name: str) -> Pack:
    """Parse the manifest of a pack; ``path``, in the folder of the pixel file, is its present or future path.

    Raises:
        DataError: if the manifest is damaged, or its pixel file would be outside the folder.
    """
    try:
        content = json.loads(raw)
        intact = content["format"] == _FORMAT and content.pop("digest") == _digest(content)
        # A digest detects damage but does not authenticate: the file name must not escape the folder (path traversal).
        intact = intact and re.fullmatch(re.escape(name) + r"-[0-9a-f]{16}\.npy", content["data"]["file"]) is not None
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise DamagedPackError(f"{path}: damaged pack, or one of another version")
    train, test = (_ungroup(content[part]) for part in ("train", "test"))
    decoding = {"exif": content.get("exif", False), "bits": content.get("bits")}
    return Pack(
        path, train, test, content["classes"], content["shape"][2], content["source"], content["data"], **decoding
    )


def write_pack(parts: Parts, folder: Path, name: str, on_progress: Callable[[int, int], None]) -> Path:
    """Decode all images once, write a pack into a folder, created if missing, and return the path of its manifest.

    ``on_progress`` is called with the number of images done and the total.

    Raises:
        DataError: if files are not images of the right size; the message names all.
        OSError: if the pack cannot be written; an older pack is unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listings = parts.train, parts.test
    train, test = (_records(parts, listing) for listing in listings)
    paths = [path for listing in listings for path in listing.paths]
    shape = (len(paths), 3, parts.size, parts.size)
    digest, done = hashlib.sha256(), 0

    def data_name() -> str:
        return f"{name}-{digest.hexdigest()[:16]}.npy"

    with atomic_write(folder / f"{name}.npy", name=data_name) as stream:
        header = pixels_header(shape)
        stream.write(header)
        digest.update(header)
        for chunk in decoded(paths, parts.decoding):
            content = np.ascontiguousarray(chunk).data
            stream.write(content)
            digest.update(content)
            done += len(chunk)
            on_progress(done, len(paths))
    data = folder / data_name()
    manifest = {
        "format": _FORMAT,
        "name": name,
        "shape": shape,
        "counts": {"train": len(train), "test": len(test)},
        "data": {"file": data.name, "bytes": data.stat().st_size, "sha256": digest.hexdigest()},
        "source": str(parts.root.absolute()),
        "classes": list(parts.classes),
        "exif": parts.exif,
        "bits": parts.bits,
        "train": _group_by_folder(train),
        "test": _group_by_folder(test),
    }
    manifest = json.loads(json.dumps(manifest))  # round trip: the digest is that of the content that a reader parses
    path = folder / f"{name}.json"
    with atomic_write(path) as stream:
        stream.write(json.dumps(manifest | {"digest": _digest(manifest)}, separators=(",", ":")).encode())
    for obsolete in folder.glob(f"{name}-{'[0-9a-f]' * 16}.npy"):
        if obsolete != data:
            obsolete.unlink(missing_ok=True)
    return path


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _records(parts: Parts, listing: Listing) -> list[Record]:
    records: list[Record] = []
    for path, label in zip(listing.paths, listing.labels, strict=True):
        with data_errors(path):
            stat = os.stat(path)
        records.append(Record(path.relative_to(parts.root).as_posix(), label, stat.st_size, stat.st_mtime_ns))
    return records


def _group_by_folder(records: list[Record]) -> list[Any]:
    """Group consecutive files of one folder, so that its name is stored once (run-length encoding)."""
    rows = ([*path.rpartition("/")[::2], *rest] for path, *rest in records)
    return [[folder, [row[1:] for row in run]] for folder, run in groupby(rows, itemgetter(0))]


def _ungroup(runs: list[Any]) -> list[Record]:
    return [Record(f"{folder}/{file}".lstrip("/"), *rest) for folder, files in runs for file, *rest in files]
