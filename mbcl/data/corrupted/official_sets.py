"""The official corrupted test sets: CIFAR-10-C, CIFAR-100-C, Tiny-ImageNet-C (Hendrycks and Dietterich 2019).

CIFAR's are archives of NumPy files, one a corruption, in which five severities of all test images follow each other;
they are mapped into memory, and nothing in them is unpickled. All may also be folders CORRUPTION/SEVERITY/CLASS/IMAGE.

Letters: N test images, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mbcl.data.corrupted.corrupted_folders import folder_reader, pack_folders, severities_in
from mbcl.data.corruptions import CORRUPTIONS, SEVERITIES, check_severity
from mbcl.data.datasets.request import DatasetRequest, Verify
from mbcl.data.images import ImageSet
from mbcl.data.packs.folder_sets import Packed
from mbcl.errors import ConfigError, DataError, nearest
from mbcl.io.store import is_uri, local_path
from mbcl.registry import Registry

_LABELS = "labels"
_OFFICIAL = 10_000  # test images of each


@dataclass(frozen=True)
class CorruptedSet:
    """An official corrupted test set.

    Args:
        name: ours.
        clean: the data set whose test images were corrupted.
        folder: what the official archive holds.
        archives: whether it is published as NumPy files.
    """

    name: str
    clean: str
    folder: str
    archives: bool

    @property
    def how_to_get(self) -> str:
        """What ``dir`` must hold."""
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


def corrupted_of(name: str) -> CorruptedSet | None:
    """The corrupted set of this name, or that of the clean data set of this name; None if there is none."""
    return next((CORRUPTED[known] for known in CORRUPTED if name in (known, CORRUPTED[known].clean)), None)


def corrupted_available(name: str, dir: str) -> dict[str, list[int]]:
    """Which corruptions and severities there are.

    Args:
        name: of the corrupted set, or of its clean one.
        dir: the folder of the corrupted set.

    Returns:
        Severities by corruption, the fifteen standard ones first in their order, then all others that are found.

    Raises:
        DataError: if the folder holds none.
        ConfigError: if there is no such set.
    """
    source = _source(name)
    root = _root(source, dir)
    found = {path.stem: list(SEVERITIES) for path in root.glob("*.npy")} if source.archives else {}
    found.pop(_LABELS, None)
    found = {**severities_in(root, SEVERITIES), **found}
    if not found:
        raise DataError(f"{source.name}: {root} holds no corruptions; {source.how_to_get}")
    order = [known for known in CORRUPTIONS if known in found] + sorted(set(found) - set(CORRUPTIONS))
    return {corruption: found[corruption] for corruption in order}


def check_complete(name: str, *, dir: str, verify: Verify = "warn") -> None:
    """Say which of the fifteen standard corruptions at five severities a folder lacks.

    Args:
        name: of the corrupted set, or of its clean one.
        dir: the folder of the corrupted set.
        verify: whether that is a warning or an error.

    Raises:
        DataError: if the folder holds none, or if it lacks some and ``verify`` is ``strict``.
        ConfigError: if there is no such set.
    """
    source, available = _source(name), corrupted_available(name, dir)
    request, where = DatasetRequest(dir=dir, verify=verify), f"{source.name}: {_root(source, dir)}"
    missing = [corruption for corruption in CORRUPTIONS if corruption not in available]
    if missing:
        held = f"{len(CORRUPTIONS) - len(missing)} of the {len(CORRUPTIONS)} standard corruptions"
        request.object(f"{where} holds {held}; missing: {', '.join(missing)}")
    for corruption, severities in available.items():
        lacking = [str(severity) for severity in SEVERITIES if severity not in severities]
        if lacking:
            request.object(f"{where}: {corruption} lacks severity {', '.join(lacking)}")


def load_corrupted(
    name: str, *, dir: str, corruption: str, severity: int, clean: ImageSet, verify: Verify = "warn"
) -> ImageSet:
    """One corruption at one severity, in the order of the clean test images.

    Args:
        name: of the corrupted set, ``cifar10_c``, ``cifar100_c``, ``tiny_imagenet_c``, or of its clean one.
        dir: the folder of the corrupted set.
        corruption: one of those of :func:`corrupted_available`.
        severity: 1 to 5.
        clean: the N clean test images, in any size of views.
        verify: whether what is not official is a warning or an error.

    Returns:
        N images, (N, 3, S, S) uint8, row for row those of ``clean``, with its labels, recipe and normalisation.

    Raises:
        DataError: if a file is missing, truncated, of another shape or type, cannot be read, or belongs to another
            image or class than where it lies.
        ConfigError: if there is no such set, corruption or severity.
    """
    read = _reader(name, dir, corruption, severity, clean, verify)
    return replace(clean, images=read().to(clean.images.device), rows=None, name=_source(name).name)


def check_corrupted(
    name: str, *, dir: str, corruption: str, severity: int, clean: ImageSet, verify: Verify = "warn"
) -> None:
    """Refuse what :func:`load_corrupted` would refuse, as far as it shows without reading images; its arguments.

    Raises:
        DataError, ConfigError: as :func:`load_corrupted`.
    """
    _reader(name, dir, corruption, severity, clean, verify)


def _reader(
    name: str, dir: str, corruption: str, severity: int, clean: ImageSet, verify: Verify
) -> Callable[[], torch.Tensor]:
    """What reads the images, (N, 3, S, S) uint8; all that the files' names, sizes and labels tell is checked before."""
    source = _source(name)
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
    root = _root(source, dir)
    archive = root / f"{corruption}.npy"
    if source.archives and archive.is_file():
        return _archive_reader(archive, severity, clean)
    return folder_reader(root, corruption, severity, clean, request, f"{source.name} {corruption} {severity}")


def pack_corrupted(
    name: str, *, dir: str, out: Path | None, force: bool, on_progress: Callable[[int, int], None]
) -> Iterator[Packed]:
    """Pack every corruption and severity that is a folder.

    See :func:`mbcl.data.corrupted.corrupted_folders.pack_folders`.

    Raises:
        DataError: if the folder holds none, or an image cannot be read.
    """
    source, available = _source(name), corrupted_available(name, dir)
    root = _root(source, dir)
    folders = {
        corruption: severities
        for corruption, severities in available.items()
        if (root / corruption).is_dir() and not (root / f"{corruption}.npy").is_file()
    }
    if not folders:
        raise DataError(f"{source.name}: {root} holds no folders of images to pack; its archives are read as they are")
    yield from pack_folders(root, folders, out=out, force=force, on_progress=on_progress)


def _source(name: str) -> CorruptedSet:
    source = corrupted_of(name)
    if source is None:
        raise ConfigError(f"there is no corrupted set of {name!r}; {nearest(name, CORRUPTED)}")
    return source


def _root(source: CorruptedSet, dir: str) -> Path:
    if is_uri(dir):
        raise ConfigError(
            f"{source.name}: found {dir}, a URI; corrupted sets are read from a folder that all nodes have"
        )
    root = local_path(dir)
    if not root.is_dir():
        raise DataError(f"{source.name}: {root} does not exist; {source.how_to_get}")
    inner = root / source.folder
    return inner if inner.is_dir() else root


def _archive_reader(path: Path, severity: int, clean: ImageSet) -> Callable[[], torch.Tensor]:
    """What reads the rows of one severity, (N, 3, S, S) uint8; shapes and labels are checked before."""
    num, size = len(clean), clean.images.shape[-1]
    images = _mapped(path)
    expected = (len(SEVERITIES) * num, size, size, 3)
    if images.shape != expected or images.dtype != np.uint8:
        raise DataError(
            f"{path}: expected uint8 {_times(expected)}, five severities of the {num} clean test images, found "
            f"{images.dtype} {_times(images.shape)}"
        )
    rows = slice((severity - 1) * num, severity * num)
    _check_labels(path.with_name(f"{_LABELS}.npy"), rows, clean)
    return lambda: torch.from_numpy(np.ascontiguousarray(images[rows].transpose(0, 3, 1, 2)))


def _check_labels(path: Path, rows: slice, clean: ImageSet) -> None:
    """Refuse labels that are not those of the clean images, in their order; officially they stand there five times."""
    if not path.is_file():
        raise DataError(f"{path}: missing; without it the order of the images cannot be checked")
    labels, num = _mapped(path), len(clean)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) not in (num, len(SEVERITIES) * num):
        raise DataError(
            f"{path}: expected {len(SEVERITIES) * num} or {num} whole numbers, found {labels.dtype} "
            f"{_times(labels.shape)}"
        )
    start = 0 if len(labels) == num else rows.start
    found = np.asarray(labels[start : start + num], dtype=np.int64)
    wrong = np.flatnonzero(found != clean.labels.numpy())
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{path}: {len(wrong)} labels are not those of the clean test images, first {found[row]} at position "
            f"{start + row}, expected {int(clean.labels[row])}: other images, or in another order"
        )


def _mapped(path: Path) -> npt.NDArray[np.generic]:
    """A NumPy file, mapped into memory; Python objects in it are refused."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("an archive of arrays (.npz)")
    except (OSError, ValueError, EOFError, SyntaxError) as error:  # a damaged header can raise all of them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a whole NumPy file of {path.stat().st_size} bytes: {reason}") from error
    return found


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
