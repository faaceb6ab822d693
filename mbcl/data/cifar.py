"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, "Learning multiple layers of features from tiny images").

Read from the official Python archive, extracted or not, or from folders of classes, the published layout.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbcl.data.folders import decode, list_class_folders, train_classes
from mbcl.data.images import ImageSet, Splits, warn_of_counts
from mbcl.data.pickles import read_pickled_mapping
from mbcl.data.recipe import ViewRecipe
from mbcl.errors import ConfigError, DataError

SIZE = 32
OFFICIAL_COUNTS = (50_000, 10_000)
RECIPE = ViewRecipe()


@dataclass(frozen=True)
class _Files:
    """The content of the official files by name, and what an error line calls their folder."""

    place: str
    content: dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """The reader of one of the two data sets.

    Args:
        name: ours.
        torchvision: the name of torchvision's class, which downloads.
        archive: the official archive.
        folder: what the archive holds.
        train: the files of the training part, in order.
        test: the files of the test part.
        label_key: of the labels in a file.
        num_classes: labels are 0..num_classes - 1.
        mean: of the training part, one number a channel, of pixels in [0, 1].
        std: likewise.
    """

    name: str
    torchvision: str
    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_key: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def how_to_get(self) -> str:
        """What ``dir`` must hold and how to get it."""
        return (
            f"expected {self.archive}, or {self.folder} with {', '.join((*self.train, *self.test))}, or folders "
            f"train/CLASS/IMAGE and test/CLASS/IMAGE; `download: true` fetches it into data.dir with torchvision"
        )

    def __call__(self, *, dir: str | None, download: bool, max_samples: int | None = None) -> Splits:
        """Read both parts.

        Args:
            dir: the archive's extracted folder, or a folder that holds it, the archive, or folders of classes.
            download: fetch the archive into ``dir`` with torchvision if none of that is there.
            max_samples: decode no more training images than that, where images are files of their own.

        Raises:
            DataError: if a file is missing or damaged, in one line that names it.
            ConfigError: if ``download`` is asked for without ``dir``.
        """
        if dir is None:
            asked = "download needs data.dir, the folder to download into" if download else "data.dir is not given"
            raise (ConfigError if download else DataError)(f"{self.name}: {asked}; {self.how_to_get}")
        root = Path(dir).expanduser()
        found = self._read(root, max_samples)
        if found is None and download:
            self._download(root)
            found = self._read(root, max_samples)
        if found is None:
            what = "holds none of the files" if root.is_dir() else "does not exist"
            raise DataError(f"{self.name}: {root} {what}; {self.how_to_get}")
        return found

    def _read(self, root: Path, max_samples: int | None) -> Splits | None:
        """What there is, official files first; None if there is nothing."""
        names = (*self.train, *self.test)
        for folder in (root / self.folder, root):
            if any((folder / name).is_file() for name in names):
                return self._from_files(_Files(f"{folder}/", {name: _content(folder / name) for name in names}))
        archive = root / self.archive
        if archive.is_file():
            content = _members(archive, self.folder, names)
            for name in names:
                if name not in content:
                    raise DataError(f"{archive}: it lacks {self.folder}/{name}; {self.how_to_get}")
            return self._from_files(_Files(f"{archive}: {self.folder}/", content))
        if not (root / "train").is_dir():
            return None
        test = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
        if test is None:
            raise DataError(f"{self.name}: {root} has a folder train, but neither test nor val; {self.how_to_get}")
        return self._from_class_folders(root / "train", test, max_samples)

    def _from_files(self, files: _Files) -> Splits:
        train, test = self._part(files, self.train), self._part(files, self.test)
        warn_of_counts(f"{self.name}: {files.place}", (len(train), len(test)), OFFICIAL_COUNTS)
        return Splits(train, test)

    def _part(self, files: _Files, names: Sequence[str]) -> ImageSet:
        pixels, labels = [], []
        for name in names:
            source = files.place + name
            batch = read_pickled_mapping(files.content[name], source)
            pixels.append(_pixels(batch.get("data"), source))
            labels.append(self._labels(batch.get(self.label_key), len(pixels[-1]), source))
        images = torch.from_numpy(np.concatenate(pixels).reshape(-1, 3, SIZE, SIZE))
        return self._image_set(images, torch.from_numpy(np.concatenate(labels)))

    def _labels(self, found: Any, num: int, source: str) -> npt.NDArray[np.int64]:
        where = f"{source}: {self.label_key}"
        numbers = isinstance(found, list) and all(type(label) is int for label in found)
        if not numbers and not (isinstance(found, np.ndarray) and found.ndim == 1 and found.dtype.kind in "iu"):
            raise DataError(f"{where}: expected a list of whole numbers, found {_kind(found)}")
        if len(found) != num:
            raise DataError(f"{where}: expected {num} labels, one an image, found {len(found)}")
        for position, label in enumerate(found):
            if not 0 <= label < self.num_classes:
                raise DataError(
                    f"{where}: labels must be in 0..{self.num_classes - 1}, found {label} at position {position}"
                )
        return np.asarray(found, dtype=np.int64)

    def _from_class_folders(self, train: Path, test: Path, max_samples: int | None) -> Splits:
        classes = train_classes(train, self.num_classes)
        listings = list_class_folders(train, classes), list_class_folders(test, classes)
        warn_of_counts(f"{self.name}: {train.parent}", (len(listings[0]), len(listings[1])), OFFICIAL_COUNTS)
        chosen = listings[0].first(max_samples), listings[1]
        first, second = (self._image_set(*decode(part, size=SIZE, name=self.name)) for part in chosen)
        return Splits(first, second)

    def _image_set(self, images: Tensor, labels: Tensor) -> ImageSet:
        return ImageSet(images, labels, self.name, RECIPE, mean=self.mean, std=self.std, image_size=SIZE)

    def _download(self, root: Path) -> None:
        import torchvision

        try:
            # torchvision unpickles what it has fetched, but only files of the official checksum
            getattr(torchvision.datasets, self.torchvision)(root=str(root), download=True)
        except (OSError, RuntimeError) as error:  # no network, no permission, a checksum that does not match
            reason = " ".join(str(error).split())
            raise DataError(f"{self.name}: the download into {root} failed ({reason}); {self.how_to_get}") from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _members(archive: Path, folder: str, names: Sequence[str]) -> dict[str, bytes]:
    """The files of these names in an archive, in one pass; nothing is extracted to disk."""
    found: dict[str, bytes] = {}
    wanted = {f"{folder}/{name}": name for name in names}
    try:
        with tarfile.open(archive, "r|gz") as content:
            for member in content:
                name = wanted.get(member.name.removeprefix("./"))
                stream = content.extractfile(member) if name and member.isreg() else None
                if name and stream:
                    found[name] = stream.read()
                if len(found) == len(wanted):
                    break
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{archive}: damaged archive of {archive.stat().st_size} bytes: {reason}") from error
    return found


def _pixels(found: Any, source: str) -> npt.NDArray[np.uint8]:
    length = 3 * SIZE * SIZE
    if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.shape[1:] != (length,) or not len(found):
        raise DataError(f"{source}: data: expected an array of bytes, N x {length}, found {_kind(found)}")
    return found


def _kind(found: Any) -> str:
    if isinstance(found, np.ndarray):
        return f"an array of {found.dtype}, {' x '.join(map(str, found.shape))}"
    return "nothing" if found is None else f"a {type(found).__name__}"


CIFAR10 = Cifar(
    name="cifar10",
    torchvision="CIFAR10",
    archive="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    label_key="labels",
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
CIFAR100 = Cifar(
    name="cifar100",
    torchvision="CIFAR100",
    archive="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    train=("train",),
    test=("test",),
    label_key="fine_labels",
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
