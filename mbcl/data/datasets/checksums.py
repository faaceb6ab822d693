"""MD5 checksums of official files, taken from torchvision on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mbcl.data.datasets.request import DatasetRequest
from mbcl.io.files import file_digest


def official_md5(torchvision_name: str) -> dict[str, str]:
    """Return the MD5 of the archive of a class in ``torchvision.datasets``, and of the files in it, by file name."""
    import torchvision

    source = getattr(torchvision.datasets, torchvision_name)
    pairs = [*getattr(source, "train_list", ()), *getattr(source, "test_list", ()), *getattr(source, "resources", ())]
    md5_by_name = dict(pairs)
    if hasattr(source, "filename"):
        md5_by_name[source.filename] = source.tgz_md5
    return md5_by_name


def md5_differs(path: Path, md5_by_name: dict[str, str]) -> bool:
    """Whether the MD5 of a file differs from that of its name; False for a file without an official checksum."""
    return path.name in md5_by_name and file_digest(path, "md5") != md5_by_name[path.name]


def object_to_sums(name: str, paths: Sequence[Path], request: DatasetRequest) -> None:
    """Report files of a data set whose checksum is not the official one, all in one folder, in one line.

    Raises:
        DataError: if there are any and ``request.verify`` is strict.
    """
    if paths:
        names = ", ".join(path.name for path in paths)
        request.object(f"{name}: {paths[0].parent}: not the official checksum (MD5): {names}")
