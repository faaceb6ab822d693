"""Image files in the folders of a data set that its reader passes over."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.messages import data_errors
from mbcl.errors import DataError, pluralize

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Extensions of image files that are read: those of torchvision, and other ones of JPEG."""
_UNREAD_SUFFIXES = (
    *(".gif", ".apng", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".tga", ".svg", ".ico", ".pcx", ".eps"),
    *(".psd", ".exr", ".hdr", ".dds", ".dcm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pbm"),
)
"""Extensions of other image files. Files with neither are recognised by their first bytes."""
_TEXTS = (".txt", ".csv", ".json", ".md", ".xml", ".yaml", ".yml", ".py", ".html", ".log", ".npy", ".npz")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"P5", b"P6")


def object_to_unread(name: str, folders: Iterable[Path], read: Iterable[Path], request: DatasetRequest) -> None:
    """Report the images in folders, at any depth, that are not among those that are read, by number and kind.

    Args:
        name: name of the data set, for the message.
        folders: the folders of the training and test part.
        read: the files that are read.
        request: reports.

    Raises:
        DataError: if there are any and ``request.verify`` is strict; if a folder cannot be read.
    """
    used = {os.fspath(path) for path in read}
    unread: dict[str, list[Path]] = defaultdict(list)
    for name_of_file in (file for folder in folders for file in _files(folder)):
        if name_of_file in used:
            continue
        path = Path(name_of_file)
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            unread["elsewhere than in a folder of a class"].append(path)
        elif suffix in _UNREAD_SUFFIXES:
            unread[f"{suffix} files"].append(path)
        elif suffix not in _TEXTS and _is_image(path):
            unread[f"files that end in {suffix}" if suffix else "files without an extension"].append(path)
    if not unread:
        return
    number = sum(map(len, unread.values()))
    kinds = ", ".join(f"{len(paths):,} {kind} (first {min(paths)})" for kind, paths in sorted(unread.items()))
    request.object(
        f"{name}: {number:,} of {pluralize(number + len(used), 'image', ',')} are not read: {kinds}; read are "
        f"{', '.join(SUFFIXES)} in CLASS/IMAGE"
    )


def _files(folder: Path) -> Iterator[str]:
    """Yield the paths of the files in a folder at any depth, without hidden ones.

    Of the folders that are links, those of classes are followed; links further down may lead back.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error

    with data_errors(folder), os.scandir(folder) as entries:
        links = [entry.path for entry in entries if entry.is_symlink() and entry.is_dir()]
    for root in (os.fspath(folder), *links):
        for parent, folders, files in os.walk(root, onerror=fail):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (os.path.join(parent, name) for name in files if not name.startswith("."))


def _is_image(path: Path) -> bool:
    """Whether a file begins like an image."""
    with data_errors(path), path.open("rb") as stream:
        start = stream.read(12)
    webp, iso = start[:4] == b"RIFF" and start[8:] == b"WEBP", start[4:8] == b"ftyp"
    return start.startswith(_SIGNATURES) or webp or iso
