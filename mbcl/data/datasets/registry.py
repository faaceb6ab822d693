"""Registry of the data sets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mbcl.data.corrupted.official_sets import CORRUPTED
from mbcl.data.datasets import cifar, code_docs, digits, fashion_mnist, image_folder, pair_arrays, tiny_imagenet
from mbcl.data.datasets.request import DIM, TEST_SHARE, DatasetRequest, Verify
from mbcl.data.images import ImageSet, stratified_rows
from mbcl.data.packs.folder_sets import FolderSet
from mbcl.data.packs.node_cache import local_copy
from mbcl.data.packs.pack_file import DamagedPackError
from mbcl.data.samples import SampleSet, Splits
from mbcl.errors import ConfigError
from mbcl.io.store import is_uri
from mbcl.registry import Registry


@dataclass(frozen=True)
class DatasetSpec:
    """Registry entry of a data set.

    Args:
        read: reader of its files; it returns both parts, complete and validated.
        summary: one-line description for users.
        files: description of the files in ``dir`` and how to get them; empty if none are needed.
        folders: reader of the set as image files, which can be packed; None if the set has no such form.
        official: names of the official files that the reader opens directly, which can be copied from a URI.
        takes_file: whether ``dir`` may be a file.
        pairs: by key of ``data`` that only sets of pairs have, the defaults of this one; None for a set of images.
    """

    read: Callable[[DatasetRequest], Splits]
    summary: str
    files: str
    folders: FolderSet | None = None
    official: tuple[str, ...] = ()
    takes_file: bool = False
    pairs: Mapping[str, float] | None = None


def _cifar(reader: cifar.Cifar, summary: str) -> DatasetSpec:
    return DatasetSpec(reader, summary, reader.how_to_get, reader.class_folders, (reader.archive,))


def _folders(files: FolderSet, summary: str) -> DatasetSpec:
    return DatasetSpec(files.demanded, summary, files.layout, files)


DATASETS: Registry[DatasetSpec] = Registry("data set", "mbcl.datasets")
for _name, _spec in {
    "digits": DatasetSpec(
        digits.read,
        "1,797 real handwritten digits, 8 x 8 grey, 10 classes, shipped with scikit-learn; fixed test part of 20 %",
        "",
    ),
    "fashion_mnist": DatasetSpec(
        fashion_mnist.read,
        "60,000 + 10,000 photographs of clothes, 28 x 28 grey, 10 classes",
        fashion_mnist.HOW_TO_GET,
        official=tuple(f"{file}{ending}" for file in fashion_mnist.FILES for ending in ("", ".gz")),
    ),
    "cifar10": _cifar(cifar.CIFAR10, "50,000 + 10,000 photographs, 32 x 32 colour, 10 classes"),
    "cifar100": _cifar(cifar.CIFAR100, "50,000 + 10,000 photographs, 32 x 32 colour, 100 classes"),
    "tiny_imagenet": _folders(
        tiny_imagenet.FILES,
        "100,000 + 10,000 photographs, 64 x 64 colour, 200 classes; the official validation part is the test part",
    ),
    "image_folder": _folders(
        image_folder.FILES,
        "your own images, with classes or without, resized to data.image_size where they have other sizes",
    ),
    "code_docs": DatasetSpec(
        code_docs.read,
        "pairs of functions and their docstrings, from the packages installed beside mbcl; labels are packages",
        "",
        pairs={"dim": DIM, "dropout": 0.0},
    ),
    "pairs": DatasetSpec(
        pair_arrays.read,
        "pairs of your own arrays, of any widths",
        pair_arrays.HOW_TO_GET,
        official=(pair_arrays.ARCHIVE, *pair_arrays.ARRAY_FILES, pair_arrays.TRAIN_TABLE, pair_arrays.TEST_TABLE),
        takes_file=True,
        pairs={"dropout": 0.0, "test": TEST_SHARE},
    ),
}.items():
    DATASETS.register(_name)(_spec)


def load(
    name: str,
    *,
    dir: str | None = None,
    image_size: int | None = None,
    max_samples: int | None = None,
    download: bool = False,
    verify: Verify = "warn",
    dim: int | None = None,
    dropout: float | None = None,
    test: float | None = None,
    exif: bool = True,
    bits: int | None = None,
) -> Splits:
    """Read a data set.

    Args:
        name: a name in ``DATASETS``.
        dir: the folder of its files; None for embedded data sets. A URI such as ``s3://bucket/folder`` must hold a pack
            or official files, which are copied to this machine once (:mod:`mbcl.data.packs.node_cache`).
        image_size: side of the views in pixels; the size of the images if omitted. ``image_folder`` resizes its images
            to it while reading.
        max_samples: keep only so many training samples, drawn once and for all with the class proportions of the whole
            (:func:`mbcl.data.images.stratified_rows`); this precedes a validation split. The test part stays whole:
            retrieval among fewer samples is easier, so metrics would not be comparable.
        download: fetch missing files into ``dir``, if the data set can be downloaded.
        verify: whether unofficial files (checksums, counts) and files that changed after packing are a warning
            (``warn``) or an error (``strict``); images of ``image_folder`` that are not read, too.
        exif: turn the images of ``image_folder`` as their EXIF orientation says. The published code does not.
        bits: significant bits of 16-bit images of ``image_folder``, such as 12; all 16 if omitted.
        dim: of ``code_docs``: numbers of each side.
        dropout: of pairs: rate at which training drops numbers of both sides.
        test: of ``pairs``: share of the test part, where the files have none.

    Raises:
        DataError: if files are missing or damaged.
        ConfigError: if the name is unknown or a number is out of range.
    """
    if name in CORRUPTED:
        raise ConfigError(
            f"{name} is a corrupted test set without training images: train on {CORRUPTED[name].clean}, and evaluate "
            f"on {name}"
        )
    spec = DATASETS[name]
    request = DatasetRequest(
        dir=dir,
        image_size=image_size,
        max_samples=max_samples,
        download=download,
        verify=verify,
        dim=DIM if dim is None else dim,
        dropout=dropout or 0.0,
        test=TEST_SHARE if test is None else test,
        takes_file=spec.takes_file or not spec.files,
        exif=exif,
        bits=bits,
    )
    splits = _read(name, request)
    if max_samples is not None and max_samples < len(splits.train):
        few = splits.train.subset(stratified_rows(splits.train.labels, max_samples))
        splits = Splits(few, splits.test)
    return replace(splits, train=_resized(splits.train, image_size), test=_resized(splits.test, image_size))


def _resized(part: SampleSet, image_size: int | None) -> SampleSet:
    return replace(part, image_size=image_size) if image_size and isinstance(part, ImageSet) else part


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


def describe(name: str) -> str:
    """Return the summary of a data set and the files that it needs, in one line.

    Raises:
        ConfigError: if the name is unknown.
    """
    spec = DATASETS[name]
    return f"{spec.summary}; {spec.files or 'no files needed'}"
