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

from mbcl.data.datasets.checksums import md5_differs, object_to_sums, official_md5
from mbcl.data.datasets.pickles import read_pickled_mapping
from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import ImageSet, Splits
from mbcl.data.packs.folder_sets import FolderSet
from mbcl.data.packs.folders import Parts, list_class_folders, train_and_test, train_classes
from mbcl.data.views.recipe import ViewRecipe
from mbcl.errors import ConfigError, DataError

SIZE = 32
OFFICIAL_COUNTS = (50_000, 10_000)
RECIPE = ViewRecipe()


@dataclass(frozen=True)
class _Files:
    """The content of the official files by name, what an error line calls their folder, and the classes' file."""

    place: str
    content: dict[str, bytes]
    meta: bytes | None


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
        meta: the file with the classes' names, and their key in it.
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
    meta: tuple[str, str]
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

    def __call__(self, request: DatasetRequest) -> Splits:
        """Read both parts.

        The folder is the archive's extracted one, one that holds it, the archive, or folders of classes, or a pack of
        them. If none of that is there the archive can be fetched with torchvision.

        Raises:
            DataError: if a file is missing or damaged, in one line that names it.
            ConfigError: if ``download`` is asked for without ``dir``.
        """
        root = request.root
        if root is None:
            asked = "download needs data.dir, the folder to download into"
            kind, what = (ConfigError, asked) if request.download else (DataError, "data.dir is not given")
            raise kind(f"{self.name}: {what}; {self.how_to_get}")
        found = self._read(root, request)
        if found is None and request.download:
            self._download(root)
            found = self._read(root, request)
        if found is None:
            what = "holds none of the files" if root.is_dir() else "does not exist"
            raise DataError(f"{self.name}: {root} {what}; {self.how_to_get}")
        return found

    @property
    def class_folders(self) -> FolderSet:
        """The set as folders of classes."""
        return FolderSet(
            name=self.name,
            find=self._find,
            mean=self.mean,
            std=self.std,
            recipe=RECIPE,
            official_counts=OFFICIAL_COUNTS,
        )

    def _find(self, request: DatasetRequest) -> Parts | None:
        found = None if request.root is None else train_and_test(request.root, self.name, self.how_to_get)
        if found is None:
            return None
        train, test = found
        classes = train_classes(train, self.num_classes)
        return Parts(train.parent, list_class_folders(train, classes), list_class_folders(test, classes), classes, SIZE)

    def _read(self, root: Path, request: DatasetRequest) -> Splits | None:
        """What there is, official files first; None if there is nothing."""
        names = (*self.train, *self.test)
        for folder in (root / self.folder, root):
            # CIFAR-100's files are called as folders of classes are.
            if any((folder / name).is_file() for name in names):
                content = {name: _content(folder / name) for name in names}
                self._check([folder / name for name in names], request)
                meta = _content(folder / self.meta[0]) if (folder / self.meta[0]).is_file() else None
                return self._from_files(_Files(f"{folder}/", content, meta), request)
        archive = root / self.archive
        if archive.is_file():
            content = _members(archive, self.folder, (*names, self.meta[0]))
            for name in names:
                if name not in content:
                    raise DataError(f"{archive}: it lacks {self.folder}/{name}; {self.how_to_get}")
            self._check([archive], request)
            return self._from_files(_Files(f"{archive}: {self.folder}/", content, content.get(self.meta[0])), request)
        return self.class_folders.read(request)

    def _check(self, paths: Sequence[Path], request: DatasetRequest) -> None:
        known = official_md5(self.torchvision)
        object_to_sums(self.name, [path for path in paths if md5_differs(path, known)], request)

    def _from_files(self, files: _Files, request: DatasetRequest) -> Splits:
        classes = self._classes(files)
        train, test = self._part(files, self.train, classes), self._part(files, self.test, classes)
        request.object_to_counts(f"{self.name}: {files.place}", (len(train), len(test)), OFFICIAL_COUNTS)
        return Splits(train, test)

    def _classes(self, files: _Files) -> tuple[str, ...]:
        """The classes' names, if the file that holds them is there."""
        if files.meta is None:
            return ()
        source = files.place + self.meta[0]
        names = _words(read_pickled_mapping(files.meta, source).get(self.meta[1]), self.num_classes)
        if not names:
            raise DataError(f"{source}: {self.meta[1]}: expected {self.num_classes} names of classes")
        return names

    def _part(self, files: _Files, names: Sequence[str], classes: tuple[str, ...]) -> ImageSet:
        pixels, labels = [], []
        stems: list[str] = []
        for name in names:
            source = files.place + name
            batch = read_pickled_mapping(files.content[name], source)
            pixels.append(_pixels(batch.get("data"), source))
            labels.append(self._labels(batch.get(self.label_key), len(pixels[-1]), source))
            stems += [Path(word).stem for word in _words(batch.get("filenames"), len(pixels[-1]))]
        images = torch.from_numpy(np.concatenate(pixels).reshape(-1, 3, SIZE, SIZE))
        return ImageSet(
            images,
            torch.from_numpy(np.concatenate(labels)),
            self.name,
            RECIPE,
            mean=self.mean,
            std=self.std,
            image_size=SIZE,
            classes=classes,
            files=tuple(stems) if len(stems) == len(images) else (),
        )

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

    def _download(self, root: Path) -> None:
        import torchvision
        from torchvision.datasets.utils import download_url

        source = getattr(torchvision.datasets, self.torchvision)
        try:
            # Not by torchvision's class, which also unpickles what it has fetched.
            download_url(source.url, str(root), filename=self.archive, md5=source.tgz_md5)
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


def _words(found: Any, num: int) -> tuple[str, ...]:
    """So many words of a pickle; nothing if it is anything else."""
    if not isinstance(found, list) or len(found) != num or not all(isinstance(word, bytes | str) for word in found):
        return ()
    return tuple(word.decode("latin1") if isinstance(word, bytes) else word for word in found)


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
    meta=("batches.meta", "label_names"),
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
    meta=("meta", "fine_label_names"),
    label_key="fine_labels",
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
