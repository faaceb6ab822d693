"""MD5 checksums of official files, taken from torchvision on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mbcl.data.datasets.request import DatasetRequest
from mbcl.io.files import file_digest


def official_md5(torchvision_name: str) -> dict[str, str]:
    """Return the MD5 of the archive and of the files in it, by file name.

    Args:
        torchvision_name: name of the class in ``torchvision.datasets``.
    """
    import torchvision

    source = getattr(torchvision.datasets, torchvision_name)
    pairs = [*getattr(source, "train_list", ()), *getattr(source, "test_list", ()), *getattr(source, "resources", ())]
    md5_by_name = dict(pairs)
    if hasattr(source, "filename"):
        md5_by_name[source.filename] = source.tgz_md5
    return md5_by_name


def md5_differs(path: Path, md5_by_name: dict[str, str]) -> bool:
    """Whether the MD5 of a file differs from the official one; False for a file without an official checksum.

    Args:
        path: the file.
        md5_by_name: official MD5 by file name.
    """
    return path.name in md5_by_name and file_digest(path, "md5") != md5_by_name[path.name]


def object_to_sums(name: str, paths: Sequence[Path], request: DatasetRequest) -> None:
    """Report files whose checksum is not the official one, in one line; do nothing for an empty list.

    Args:
        name: name of the data set.
        paths: the files with wrong checksums, all in one folder.
        request: the request that they are reported to.

    Raises:
        DataError: if there are any and ``request.verify`` is strict.
    """
    if paths:
        names = ", ".join(path.name for path in paths)
        request.object(f"{name}: {paths[0].parent}: not the official checksum (MD5): {names}")
