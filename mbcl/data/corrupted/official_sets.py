"""The official corrupted test sets: CIFAR-10-C, CIFAR-100-C, Tiny-ImageNet-C (Hendrycks and Dietterich 2019).

Those of CIFAR are archives with one NumPy file per corruption: all test images at severity 1, then at severity 2, up to
5. The files are memory-mapped and never unpickled. Every set may also be folders CORRUPTION/SEVERITY/CLASS/IMAGE.
A function's ``name`` is that of the corrupted set or of its clean data set, ``dir`` the folder of the corrupted set.

Letters: N test images, S pixels per side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mbcl.data.corrupted.corrupted_folders import folder_reader, severities_in, severity_parts
from mbcl.data.corruptions import CORRUPTIONS, SEVERITIES, check_severity
from mbcl.data.datasets.request import DatasetRequest, Verify
from mbcl.data.images import ImageSet
from mbcl.data.messages import format_shape, one_line
from mbcl.data.packs.folder_sets import Packed, pack_parts
from mbcl.data.packs.pack_file import FOLDER
from mbcl.errors import ConfigError, DataError, nearest
from mbcl.io.store import is_uri, local_path
from mbcl.registry import Registry

_LABELS = "labels"
_OFFICIAL = 10_000  # test images per set


@dataclass(frozen=True)
class CorruptedSet:
    """An official corrupted test set.

    Args:
        name: registered name.
        clean: registered name of the data set whose test images were corrupted.
        folder: top-level folder of the official archive.
        archives: whether the set is published as NumPy files.
    """

    name: str
    clean: str
    folder: str
    archives: bool

    @property
    def how_to_get(self) -> str:
        """Describe the files that ``dir`` must hold."""
        folders = "folders CORRUPTION/SEVERITY/CLASS/IMAGE (severities 1 to 5)"
        arrays = f"the extracted {self.folder}.tar (CORRUPTION.npy of 5 x N images and labels.npy) or "
        return f"expected {arrays if self.archives else ''}{folders}, in the folder or in {self.folder}; no download"


CORRUPTED: Registry[CorruptedSet] = Registry("corrupted data set")
for _set in (
    CorruptedSet("cifar10_c", "cifar10", "CIFAR-10-C", archives=True),
    CorruptedSet("cifar100_c", "cifar100", "CIFAR-100-C", archives=True),
    CorruptedSet("tiny_imagenet_c", "tiny_imagenet", "Tiny-ImageNet-C", archives=False),
):
    CORRUPTED.register(_set.name)(_set)


def corrupted_available(name: str, dir: str) -> dict[str, list[int]]:
    """List the severities by corruption in the folder of a corrupted set: the standard fifteen first, others by name.

    Raises:
        DataError: if the folder holds no corruptions.
        ConfigError: if the set is unknown.
    """
    source, root = _open_set(name, dir)
    severities = severities_in(root)
    if source.archives:
        severities |= {path.stem: list(SEVERITIES) for path in root.glob("*.npy") if path.stem != _LABELS}
    if not severities:
        raise DataError(f"{source.name}: {root} holds no corruptions; {source.how_to_get}")
    order = [name for name in CORRUPTIONS if name in severities] + sorted(set(severities) - set(CORRUPTIONS))
    return {corruption: severities[corruption] for corruption in order}


def check_complete(name: str, *, dir: str, verify: Verify = "warn") -> None:
    """Report which of the fifteen standard corruptions at five severities are missing in a folder.

    Raises:
        DataError: if the folder holds no corruptions, or if it lacks some and ``verify`` is ``strict``.
        ConfigError: if the set is unknown.
    """
    (source, root), available = _open_set(name, dir), corrupted_available(name, dir)
    request, location = DatasetRequest(dir=dir, verify=verify), f"{source.name}: {root}"
    missing = [corruption for corruption in CORRUPTIONS if corruption not in available]
    if missing:
        present = f"{len(CORRUPTIONS) - len(missing)} of the {len(CORRUPTIONS)} standard corruptions"
        request.object(f"{location} holds {present}; missing: {', '.join(missing)}")
    for corruption, severities in available.items():
        missing_severities = [str(severity) for severity in SEVERITIES if severity not in severities]
        if missing_severities:
            request.object(f"{location}: {corruption} lacks severity {', '.join(missing_severities)}")


def load_corrupted(
    name: str, *, dir: str, corruption: str, severity: int, clean: ImageSet, verify: Verify = "warn"
) -> ImageSet:
    """Load one corruption at one severity, in the order of the clean test images.

    Args:
        name: ``cifar10_c``, ``cifar100_c``, ``tiny_imagenet_c`` or the name of its clean data set.
        dir: the folder of the corrupted set.
        corruption: one of those of :func:`corrupted_available`.
        severity: 1 to 5.
        clean: the N clean test images; their ``image_size`` may be any.
        verify: whether a deviation from the official set is a warning or an error.

    Returns:
        N images, (N, 3, S, S) uint8, aligned row by row with ``clean``, with its labels, recipe and normalisation.

    Raises:
        DataError: if a file is missing, truncated or unreadable, has another shape or type, or is in the place of
            another image or class.
        ConfigError: if the set, corruption or severity is unknown.
    """
    read = check_corrupted(name, dir=dir, corruption=corruption, severity=severity, clean=clean, verify=verify)
    return replace(clean, images=read().to(clean.images.device), rows=None, name=_open_set(name, dir)[0].name)


def check_corrupted(
    name: str, *, dir: str, corruption: str, severity: int, clean: ImageSet, verify: Verify = "warn"
) -> Callable[[], torch.Tensor]:
    """Check names, sizes and labels of the files; return a function that reads the images, (N, 3, S, S) uint8.

    Arguments and errors are those of :func:`load_corrupted`.
    """
    source, root = _open_set(name, dir)
    check_severity(severity)
    available = corrupted_available(name, dir)
    if corruption not in available:
        raise ConfigError(f"{source.name}: no corruption {corruption!r} in {dir}; {nearest(corruption, available)}")
    if severity not in available[corruption]:
        raise DataError(
            f"{source.name}: {corruption} has no severity {severity} in {dir}, found {available[corruption]}"
        )
    request = DatasetRequest(dir=dir, verify=verify)
    if len(clean) != _OFFICIAL:
        request.object(f"{source.name}: the official set has {_OFFICIAL:,} images, the clean one has {len(clean):,}")
    archive = root / f"{corruption}.npy"
    if source.archives and archive.is_file():
        return _archive_reader(archive, severity, clean)
    return folder_reader(root, corruption, severity, clean, request, f"{source.name} {corruption} {severity}")


def pack_corrupted(
    name: str, *, dir: str, out: Path | None, force: bool, on_progress: Callable[[int, int], None]
) -> Iterator[Packed]:
    """Pack every corruption and severity that is stored as a folder of images, unless an intact pack of it exists.

    The folder of the packs is ``out``, by default ``mbcl-pack`` in the set's folder, where readers look for them. The
    other arguments are those of :func:`mbcl.data.packs.folder_sets.pack_parts`.

    Raises:
        DataError: if there is no folder of images, or an image cannot be read or differs from the first in size.
    """
    (source, root), available = _open_set(name, dir), corrupted_available(name, dir)
    folders = [
        (corruption, severity)
        for corruption, severities in available.items()
        for severity in severities
        if (root / corruption / str(severity)).is_dir() and not (root / f"{corruption}.npy").is_file()
    ]
    if not folders:
        raise DataError(f"{source.name}: {root} holds no folders of images to pack; its archives are read as they are")
    for corruption, severity in folders:
        parts, pack_name = severity_parts(root, corruption, severity), f"{corruption}-{severity}"
        yield pack_parts(parts, out or root / FOLDER, pack_name, force, on_progress)


def _open_set(name: str, dir: str) -> tuple[CorruptedSet, Path]:
    """Return the corrupted set for its own name or for the name of its clean data set, and the folder of its files."""
    source = next((CORRUPTED[key] for key in CORRUPTED if name in (key, CORRUPTED[key].clean)), None)
    if source is None:
        raise ConfigError(f"there is no corrupted set of {name!r}; {nearest(name, CORRUPTED)}")
    if is_uri(dir):
        raise ConfigError(
            f"{source.name}: found {dir}, a URI; corrupted sets are read from a folder that all nodes have"
        )
    root = local_path(dir)
    if not root.is_dir():
        raise DataError(f"{source.name}: {root} does not exist; {source.how_to_get}")
    inner = root / source.folder
    return source, inner if inner.is_dir() else root


def _archive_reader(path: Path, severity: int, clean: ImageSet) -> Callable[[], torch.Tensor]:
    """Check shapes and labels; return a function that reads the rows of one severity, (N, 3, S, S) uint8."""
    num, size = len(clean), clean.images.shape[-1]
    images = _load_mapped(path)
    expected = (len(SEVERITIES) * num, size, size, 3)
    if images.shape != expected or images.dtype != np.uint8:
        raise DataError(
            f"{path}: expected uint8 {format_shape(expected)}, five severities of the {num} clean test images, found "
            f"{images.dtype} {format_shape(images.shape)}"
        )
    rows = slice((severity - 1) * num, severity * num)
    _check_labels(path.with_name(f"{_LABELS}.npy"), rows, clean)
    return lambda: torch.from_numpy(np.ascontiguousarray(images[rows].transpose(0, 3, 1, 2)))


def _check_labels(path: Path, rows: slice, clean: ImageSet) -> None:
    """Raise DataError unless the labels equal those of the clean images; the official file repeats them five times."""
    if not path.is_file():
        raise DataError(f"{path}: missing; without it the order of the images cannot be checked")
    labels, num = _load_mapped(path), len(clean)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) not in (num, len(SEVERITIES) * num):
        raise DataError(
            f"{path}: expected {len(SEVERITIES) * num} or {num} whole numbers, found {labels.dtype} "
            f"{format_shape(labels.shape)}"
        )
    start = 0 if len(labels) == num else rows.start
    found_N = np.asarray(labels[start : start + num], dtype=np.int64)
    wrong = np.flatnonzero(found_N != clean.labels.numpy())
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{path}: {len(wrong)} labels are not those of the clean test images, first {found_N[row]} at position "
            f"{start + row}, expected {int(clean.labels[row])}: other images, or in another order"
        )


def _load_mapped(path: Path) -> npt.NDArray[np.generic]:
    """Memory-map a NumPy file; Python objects in it are refused."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive of arrays (.npz)")
    except (OSError, ValueError, EOFError, SyntaxError) as error:  # a damaged header can raise any of these
        raise DataError(f"{path}: not a whole NumPy file of {path.stat().st_size} bytes: {one_line(error)}") from error
    return array
