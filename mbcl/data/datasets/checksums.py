"""Checksums of official files, those that torchvision carries, read from it when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from mbcl.data.datasets.request import DatasetRequest


def official_md5(torchvision_name: str) -> dict[str, str]:
    """MD5 by file name: of the archive and of the files in it.

    Args:
        torchvision_name: of the class in ``torchvision.datasets``.
    """
    import torchvision

    source = getattr(torchvision.datasets, torchvision_name)
    pairs = [*getattr(source, "train_list", ()), *getattr(source, "test_list", ()), *getattr(source, "resources", ())]
    known = dict(pairs)
    if hasattr(source, "filename"):
        known[source.filename] = source.tgz_md5
    return known


def md5_differs(path: Path, known: dict[str, str]) -> bool:
    """Whether a file is not the official one of its name; a file without a known sum is none of those.

    Args:
        path: the file.
        known: MD5 by name.
    """
    expected = known.get(path.name)
    if expected is None:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, new_md5).hexdigest() != expected


def new_md5() -> hashlib._Hash:
    """MD5, not for security: these are the sums that exist."""
    return hashlib.md5(usedforsecurity=False)


def object_to_sums(name: str, paths: Sequence[Path], request: DatasetRequest) -> None:
    """Say which files do not have the official checksum, in one line; nothing if there are none.

    Args:
        name: of the data set.
        paths: the files, all of one folder.
        request: how to say it.

    Raises:
        DataError: if there are any and ``request.verify`` is strict.
    """
    if paths:
        words = ", ".join(path.name for path in paths)
        request.object(f"{name}: {paths[0].parent}: not the official checksum (MD5): {words}")
