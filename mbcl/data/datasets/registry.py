"""Registry of the data sets."""

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
    """Callable that reads the official files of a data set."""

    def __call__(self, request: DatasetRequest) -> Splits:
        """Return both parts, complete and validated."""


@dataclass(frozen=True)
class DatasetSpec:
    """Registry entry of a data set.

    Args:
        read: reader of its files.
        summary: one-line description for users.
        files: description of the files in ``dir`` and how to get them; empty if none are needed.
        recipe: default augmentation strengths.
        folders: reader of the set as image files, which can be packed; None if the set has no such form.
        official: names of the official files that the reader opens directly, which can be copied from a URI.
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
        dir: the folder of its files; None for embedded data sets. A URI such as ``s3://bucket/folder`` must hold a pack
            or official files, which are copied to this machine once (:mod:`mbcl.data.packs.node_cache`).
        image_size: side of the views in pixels; the size of the images if omitted. ``image_folder`` resizes its images
            to it while reading.
        max_samples: keep only the first ``max_samples`` training images; this precedes a validation split. The test
            part stays whole: retrieval among fewer images is easier, so metrics would not be comparable. Class folders
            are read class by class, so the first images are those of the first classes, as in the published option.
        download: fetch missing files into ``dir``, if the data set can be downloaded.
        verify: whether unofficial files (checksums, counts) and files that changed after packing are a warning
            (``warn``) or an error (``strict``).

    Raises:
        DataError: if files are missing or damaged.
        ConfigError: if the name is unknown or a number is out of range.
    """
    request = request_of(dir=dir, image_size=image_size, max_samples=max_samples, download=download, verify=verify)
    if name in CORRUPTED:
        raise ConfigError(
            f"{name} is a corrupted test set without training images: train on {CORRUPTED[name].clean}, and evaluate "
            f"on {name}"
        )
    splits = _read(name, request)
    train = splits.train if max_samples is None else splits.train.first(max_samples)
    return Splits(_with_image_size(train, image_size), _with_image_size(splits.test, image_size))


def _read(name: str, request: DatasetRequest) -> Splits:
    local_request = _resolve_uri(name, request)
    try:
        return DATASETS[name].read(local_request)
    except DamagedPackError as error:
        if not local_request.copied:
            raise
        # The copy was intact when it was made, so the damage is local: copy again.
        warnings.warn(f"{error.found}; this machine's copy is made again", UserWarning, stacklevel=2)
        return DATASETS[name].read(_resolve_uri(name, request, found_damaged=True))


def _resolve_uri(name: str, request: DatasetRequest, *, found_damaged: bool = False) -> DatasetRequest:
    """Replace a URI in the request by this machine's copy; ``found_damaged`` verifies the copy's content again."""
    spec = DATASETS[name]
    if request.dir is None or not is_uri(request.dir) or not spec.files:
        return request
    if request.download:
        raise ConfigError(f"download: found true, but dir is the URI {request.dir}; what it holds is copied by itself")
    pack_name = spec.folders.pack_name(request.image_size) if spec.folders else None
    canonical = DATASETS.canonical(name)
    folder = local_copy(request.dir, canonical, pack_name, spec.official, found_damaged=found_damaged)
    return replace(request, dir=str(folder), copied=True)


def request_of(
    *,
    dir: str | None,
    image_size: int | None = None,
    max_samples: int | None = None,
    download: bool = False,
    verify: Verify = "warn",
) -> DatasetRequest:
    """Build the validated request of :func:`load`; the arguments are the same.

    Raises:
        ConfigError: if a number is out of range, the URI is refused, or ``~user`` in the folder has no home folder.
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


def _with_image_size(part: ImageSet, image_size: int | None) -> ImageSet:
    return part if image_size is None else replace(part, image_size=image_size)


def describe(name: str) -> str:
    """Return the summary of a data set and the files that it needs, in one line.

    Raises:
        ConfigError: if the name is unknown.
    """
    spec = DATASETS[name]
    return f"{spec.summary}; {spec.files or 'no files needed'}"
