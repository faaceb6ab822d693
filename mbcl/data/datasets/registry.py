"""The data sets by name."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, get_args

from mbcl.data.corrupted.official_sets import CORRUPTED
from mbcl.data.datasets import cifar, digits, fashion_mnist, image_folder, tiny_imagenet
from mbcl.data.datasets.request import LARGEST_SIZE, LEAST_SIZE, DatasetRequest, Verify
from mbcl.data.images import ImageSet, Splits
from mbcl.data.packs.folder_sets import FolderSet
from mbcl.data.packs.node_cache import local_copy
from mbcl.data.packs.pack_file import DamagedPackError
from mbcl.data.views.recipe import ViewRecipe
from mbcl.errors import ConfigError
from mbcl.io.store import is_uri
from mbcl.io.uris import check_uri
from mbcl.registry import Registry


class Reader(Protocol):
    """Reads a data set's official files."""

    def __call__(self, request: DatasetRequest) -> Splits:
        """The two parts, complete and checked."""


@dataclass(frozen=True)
class DatasetSpec:
    """A known data set.

    Args:
        read: the reader of its files.
        summary: what it is, for people.
        files: what ``dir`` must hold and how to get it; empty if nothing is needed.
        recipe: the default strengths of its views.
        folders: how it is read where its images are files of their own, which can be packed.
        official: the names of official files that are read as they are, and so can be copied from a URI.
    """

    read: Reader
    summary: str
    files: str
    recipe: ViewRecipe
    folders: FolderSet | None = None
    official: tuple[str, ...] = ()


DATASETS: Registry[DatasetSpec] = Registry("data set")

DATASETS.register("digits")(
    DatasetSpec(
        digits.read,
        "1,797 real handwritten digits, 8 x 8 grey, 10 classes, shipped with scikit-learn; fixed test part of 20 %",
        "",
        digits.RECIPE,
    )
)
DATASETS.register("fashion_mnist")(
    DatasetSpec(
        fashion_mnist.read,
        "60,000 + 10,000 photographs of clothes, 28 x 28 grey, 10 classes",
        fashion_mnist.HOW_TO_GET,
        fashion_mnist.RECIPE,
        official=tuple(f"{file}{ending}" for file in fashion_mnist.FILES for ending in ("", ".gz")),
    )
)
for _reader, _summary in (
    (cifar.CIFAR10, "50,000 + 10,000 photographs, 32 x 32 colour, 10 classes"),
    (cifar.CIFAR100, "50,000 + 10,000 photographs, 32 x 32 colour, 100 classes"),
):
    DATASETS.register(_reader.name)(
        DatasetSpec(_reader, _summary, _reader.how_to_get, cifar.RECIPE, _reader.class_folders, (_reader.archive,))
    )
DATASETS.register("tiny_imagenet")(
    DatasetSpec(
        tiny_imagenet.read,
        "100,000 + 10,000 photographs, 64 x 64 colour, 200 classes; the official validation part is the test part",
        tiny_imagenet.HOW_TO_GET,
        tiny_imagenet.RECIPE,
        tiny_imagenet.FILES,
    )
)
DATASETS.register("image_folder")(
    DatasetSpec(
        image_folder.read,
        "any images in folders of classes, resized to data.image_size where they have other sizes",
        image_folder.HOW_TO_GET,
        image_folder.RECIPE,
        image_folder.FILES,
    )
)


def load(
    name: str,
    *,
    dir: str | None = None,
    image_size: int | None = None,
    max_samples: int | None = None,
    download: bool = False,
    verify: Verify = "warn",
) -> Splits:
    """Read a data set.

    Args:
        name: a name in ``DATASETS``.
        dir: the folder of its files; data sets that are embedded need none. A URI such as ``s3://bucket/folder`` is
            one that holds a pack, or official files that are read as they are: they are copied to this machine once
            (:mod:`mbcl.data.packs.node_cache`).
        image_size: side of the views in pixels; the images' own if omitted. Those of ``image_folder`` are brought to
            it when they are read.
        max_samples: keep only the first so many training images, before a validation set is cut off. The test part
            stays whole: retrieval among fewer images is easier, so numbers would not compare. Folders of classes are
            read class by class, so the first images are those of the first classes, as with the published option.
        download: fetch missing files into ``dir``, where the data set can be downloaded.
        verify: ``warn``: what is not official (checksums, counts) or has changed since it was packed is a warning;
            ``strict``: an error.

    Raises:
        DataError: if files are missing or damaged.
        ConfigError: if the name is unknown or a number is not positive.
    """
    request = request_of(dir=dir, image_size=image_size, max_samples=max_samples, download=download, verify=verify)
    if name in CORRUPTED:
        raise ConfigError(
            f"{name} is a corrupted test set without training images: train on {CORRUPTED[name].clean}, and evaluate "
            f"on {name}"
        )
    splits = _read(name, request)
    train = splits.train if max_samples is None else splits.train.first(max_samples)
    return Splits(_sized(train, image_size), _sized(splits.test, image_size))


def _read(name: str, request: DatasetRequest) -> Splits:
    local = _local(name, request)
    try:
        return DATASETS[name].read(local)
    except DamagedPackError as error:
        if not local.copied:
            raise
        # It was whole when it was copied.
        warnings.warn(f"{error.found}; this machine's copy is made again", UserWarning, stacklevel=2)
        return DATASETS[name].read(_local(name, request, found_damaged=True))


def _local(name: str, request: DatasetRequest, *, found_damaged: bool = False) -> DatasetRequest:
    """The request with this machine's copy in place of a URI; it is looked at again if it was found damaged."""
    source = DATASETS[name]
    if request.dir is None or not is_uri(request.dir) or not source.files:
        return request
    if request.download:
        raise ConfigError(f"download: found true, but dir is the URI {request.dir}; what it holds is copied by itself")
    pack_name = source.folders.pack_name(request.image_size) if source.folders else None
    canonical = DATASETS.canonical(name)
    folder = local_copy(request.dir, canonical, pack_name, source.official, found_damaged=found_damaged)
    return replace(request, dir=str(folder), copied=True)


def request_of(
    *,
    dir: str | None,
    image_size: int | None = None,
    max_samples: int | None = None,
    download: bool = False,
    verify: Verify = "warn",
) -> DatasetRequest:
    """What :func:`load` asks a reader for; its arguments.

    Raises:
        ConfigError: if a number is not positive or the folder is that of nobody.
    """
    if image_size is not None and not LEAST_SIZE <= image_size <= LARGEST_SIZE:
        raise ConfigError(f"data: image_size must be in {LEAST_SIZE}..{LARGEST_SIZE}, found {image_size}")
    if max_samples is not None and max_samples < 1:
        raise ConfigError(f"data: max_samples must be at least 1, found {max_samples}")
    if dir is not None and is_uri(dir):
        try:
            check_uri(dir)
        except ConfigError as error:
            raise ConfigError(f"dir: {error}") from error
    elif dir is not None:
        try:
            Path(dir).expanduser()
        except RuntimeError as error:
            raise ConfigError(f"dir: found {dir!r}, whose user has no home folder here") from error
    if verify not in get_args(Verify):
        raise ConfigError(f"verify: found {verify!r}, allowed: {', '.join(get_args(Verify))}")
    return DatasetRequest(dir=dir, image_size=image_size, max_samples=max_samples, download=download, verify=verify)


def _sized(part: ImageSet, image_size: int | None) -> ImageSet:
    return part if image_size is None else replace(part, image_size=image_size)


def describe(name: str) -> str:
    """What a data set is and what files it needs, in one line.

    Raises:
        ConfigError: if the name is unknown.
    """
    source = DATASETS[name]
    return f"{source.summary}; {source.files or 'no files needed'}"
