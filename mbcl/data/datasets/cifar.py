"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, "Learning multiple layers of features from tiny images").

The sources are the official Python archive, packed or extracted, and class folders in the published layout.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mbcl.data.datasets.checksums import md5_differs, object_to_sums, official_md5
from mbcl.data.datasets.pickles import read_pickled_mapping
from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import ImageSet
from mbcl.data.messages import format_shape, one_line, read_bytes
from mbcl.data.packs.folder_sets import FolderSet
from mbcl.data.packs.folders import find_parts
from mbcl.data.samples import Splits
from mbcl.data.views.recipe import ViewRecipe
from mbcl.errors import ConfigError, DataError

SIZE = 32
OFFICIAL_COUNTS = (50_000, 10_000)


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """Reader of CIFAR-10 or CIFAR-100.

    Args:
        name: registered name; in capitals that of the torchvision class, which provides URL and checksums.
        archive: file name of the official archive.
        folder: top-level folder in the archive.
        train, test: file names of each part, in order.
        meta: name of the file with the class names, and their key in it.
        label_key: key of the labels in a file.
        num_classes: labels are 0..num_classes - 1.
        mean, std: one number per channel of the training part, for pixels in [0, 1].
    """

    name: str
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
        """Describe the files that ``dir`` must hold and how to get them."""
        return (
            f"expected {self.archive}, or {self.folder} with {', '.join((*self.train, *self.test))}, or folders "
            f"train/CLASS/IMAGE and test/CLASS/IMAGE; `download: true` fetches it into data.dir with torchvision"
        )

    def __call__(self, request: DatasetRequest) -> Splits:
        """Read both parts.

        ``dir`` is the extracted folder of the archive, or a folder that contains this folder, the archive, class
        folders, or a pack of them. If none of these exists, ``download`` fetches the archive from torchvision's URL.

        Raises:
            DataError: if a file is missing or damaged; the one-line message names it.
            ConfigError: if ``download`` is set without ``dir``.
        """
        root = request.root
        if root is None:
            no_folder = "download needs data.dir, the folder to download into"
            error_type, problem = (ConfigError, no_folder) if request.download else (DataError, "data.dir is not given")
            raise error_type(f"{self.name}: {problem}; {self.how_to_get}")
        splits = self._read(root, request)
        if splits is None and request.download:
            self._download(root)
            splits = self._read(root, request)
        if splits is None:
            problem = "holds none of the files" if root.is_dir() else "does not exist"
            raise DataError(f"{self.name}: {root} {problem}; {self.how_to_get}")
        return splits

    @property
    def class_folders(self) -> FolderSet:
        """The reader of the same set in class folders."""
        layout = self.how_to_get
        return FolderSet(
            name=self.name,
            find=partial(find_parts, name=self.name, layout=layout, max_classes=self.num_classes, size=SIZE),
            mean=self.mean,
            std=self.std,
            official_counts=OFFICIAL_COUNTS,
        )

    def _read(self, root: Path, request: DatasetRequest) -> Splits | None:
        """Read the first source that exists: extracted files, archive, pack or class folders; None if there is none."""
        names = (*self.train, *self.test)
        for folder in (root / self.folder, root):
            # is_file: CIFAR-100's files `train` and `test` are named like the folders of the published layout.
            if any((folder / name).is_file() for name in names):
                content = {name: read_bytes(folder / name) for name in names}
                self._check([folder / name for name in names], request)
                if (folder / self.meta[0]).is_file():
                    content[self.meta[0]] = read_bytes(folder / self.meta[0])
                return self._from_files(f"{folder}/", content, request)
        archive = root / self.archive
        if archive.is_file():
            content = _members(archive, self.folder, (*names, self.meta[0]))
            for name in names:
                if name not in content:
                    raise DataError(f"{archive}: it lacks {self.folder}/{name}; {self.how_to_get}")
            self._check([archive], request)
            return self._from_files(f"{archive}: {self.folder}/", content, request)
        return self.class_folders.read(request)

    def _check(self, paths: Sequence[Path], request: DatasetRequest) -> None:
        md5_by_name = official_md5(self.name.upper())
        object_to_sums(self.name, [path for path in paths if md5_differs(path, md5_by_name)], request)

    def _from_files(self, place: str, content: dict[str, bytes], request: DatasetRequest) -> Splits:
        """Parse the contents of the official files, by name; ``place`` precedes the names in messages."""
        classes: tuple[str, ...] = ()
        file, key = self.meta
        if file in content:
            classes = _decode_strings(read_pickled_mapping(content[file], place + file).get(key), self.num_classes)
            if not classes:
                raise DataError(f"{place}{file}: {key}: expected {self.num_classes} names of classes")
        train, test = (self._part(place, content, names, classes) for names in (self.train, self.test))
        request.object_to_counts(f"{self.name}: {place}", (len(train), len(test)), OFFICIAL_COUNTS)
        return Splits(train, test)

    def _part(self, place: str, content: dict[str, bytes], names: Sequence[str], classes: tuple[str, ...]) -> ImageSet:
        pixels, labels = [], []
        stems: list[str] = []
        for name in names:
            source = place + name
            batch = read_pickled_mapping(content[name], source)
            pixels.append(_pixels(batch.get("data"), source))
            labels.append(self._labels(batch.get(self.label_key), len(pixels[-1]), source))
            stems += [Path(word).stem for word in _decode_strings(batch.get("filenames"), len(pixels[-1]))]
        images = torch.from_numpy(np.concatenate(pixels).reshape(-1, 3, SIZE, SIZE))
        return ImageSet(
            images,
            torch.from_numpy(np.concatenate(labels)),
            self.name,
            ViewRecipe(),
            mean=self.mean,
            std=self.std,
            image_size=SIZE,
            classes=classes,
            files=tuple(stems) if len(stems) == len(images) else (),
        )

    def _labels(self, labels: Any, num: int, source: str) -> npt.NDArray[np.int64]:
        where = f"{source}: {self.label_key}"
        is_int_list = isinstance(labels, list) and all(type(label) is int for label in labels)
        if not is_int_list and not (isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu"):
            raise DataError(f"{where}: expected a list of whole numbers, found {_describe_type(labels)}")
        if len(labels) != num:
            raise DataError(f"{where}: expected {num} labels, one an image, found {len(labels)}")
        for position, label in enumerate(labels):
            if not 0 <= label < self.num_classes:
                raise DataError(
                    f"{where}: labels must be in 0..{self.num_classes - 1}, found {label} at position {position}"
                )
        return np.asarray(labels, dtype=np.int64)

    def _download(self, root: Path) -> None:
        import torchvision
        from torchvision.datasets.utils import download_url

        source = getattr(torchvision.datasets, self.name.upper())
        try:
            # Not with torchvision's class, which also unpickles the downloaded files.
            download_url(source.url, str(root), filename=self.archive, md5=source.tgz_md5)
        except (OSError, RuntimeError) as error:  # no network, no permission, a checksum that does not match
            problem = f"the download into {root} failed ({one_line(error)})"
            raise DataError(f"{self.name}: {problem}; {self.how_to_get}") from error


def _members(archive: Path, folder: str, names: Sequence[str]) -> dict[str, bytes]:
    """Read files of an archive into memory, by name, in one streaming pass that writes nothing to disk."""
    contents: dict[str, bytes] = {}
    name_of_member = {f"{folder}/{name}": name for name in names}
    try:
        with tarfile.open(archive, "r|gz") as content:
            for member in content:
                name = name_of_member.get(member.name.removeprefix("./"))
                stream = content.extractfile(member) if name and member.isreg() else None
                if name and stream:
                    contents[name] = stream.read()
                if len(contents) == len(name_of_member):
                    break
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        size = archive.stat().st_size
        raise DataError(f"{archive}: damaged archive of {size} bytes: {one_line(error)}") from error
    return contents


def _decode_strings(value: Any, num: int) -> tuple[str, ...]:
    """Decode a pickled list of ``num`` strings; empty for any other value."""
    if not isinstance(value, list) or len(value) != num or not all(isinstance(word, bytes | str) for word in value):
        return ()
    return tuple(word.decode("latin1") if isinstance(word, bytes) else word for word in value)


def _pixels(data: Any, source: str) -> npt.NDArray[np.uint8]:
    length = 3 * SIZE * SIZE
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (length,) or not len(data):
        raise DataError(f"{source}: data: expected an array of bytes, N x {length}, found {_describe_type(data)}")
    return data


def _describe_type(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, {format_shape(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


CIFAR10 = Cifar(
    name="cifar10",
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
