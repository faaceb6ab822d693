"""Reader of Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747) in its official IDX files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mbcl.data.datasets.checksums import md5_differs, object_to_sums, official_md5
from mbcl.data.datasets.idx import read_idx
from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import ImageSet
from mbcl.data.messages import one_line
from mbcl.data.samples import Splits
from mbcl.data.views.recipe import ViewRecipe
from mbcl.errors import ConfigError, DataError

NUM_CLASSES = 10
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
"""Installation folder of Debian's package ``dataset-fashion-mnist``."""

FILES = tuple(f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
CONTENT_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
"""MD5 of the uncompressed content. torchvision has only the checksums of the published .gz files."""
HOW_TO_GET = (
    f"expected {', '.join(FILES)}, plain or .gz; `apt-get install dataset-fashion-mnist` puts them into {DEBIAN_DIR}, "
    "`download: true` fetches them into data.dir with torchvision"
)

RECIPE = ViewRecipe(crop_scale=(0.3, 1.0), grey_probability=0.0, blur_sigma=(0.1, 1.0), blur_probability=0.5)


def read(request: DatasetRequest) -> Splits:
    """Read the four files with all their images.

    ``dir`` contains them directly, or in ``FashionMNIST/raw`` or ``raw``, the layout of torchvision. The default is the
    folder of Debian's package, whose files have the official content in another gzip compression.

    Raises:
        DataError: if a file is missing or damaged; the one-line message names it. Also if ``verify`` is strict and the
            content of a file is not the official one.
        ConfigError: if ``download`` is set without ``dir``.
    """
    if request.download and request.root is None:
        raise ConfigError("fashion_mnist: download needs data.dir, the folder to download into")
    root = request.root or DEBIAN_DIR
    folder = _folder(root)
    if request.download and (folder is None or not all(_find(folder, name) for name in FILES)):
        _download(root)
        folder = _folder(root)
    if folder is None:
        problem = "does not exist" if not root.is_dir() else "holds none of the files"
        hint = " (data.dir is not given)" if request.dir is None else ""
        raise DataError(f"fashion_mnist: {root} {problem}{hint}; {HOW_TO_GET}")
    train, test = _part(folder, "train", request), _part(folder, "t10k", request)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{folder}: training images are {tuple(train.images.shape[2:])}, test images "
            f"{tuple(test.images.shape[2:])} pixels"
        )
    return Splits(train, test)


def _folder(root: Path) -> Path | None:
    """Return the first known location under ``root`` that contains any of the files; None if there is none."""
    for folder in (root, root / "raw", root / "FashionMNIST" / "raw"):
        if any(_find(folder, name) for name in FILES):
            return folder
    return None


def _find(folder: Path, name: str) -> Path | None:
    """Return the path of a file; the uncompressed one if there are both, as after a download by torchvision."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _part(folder: Path, part: str, request: DatasetRequest) -> ImageSet:
    paths = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        path = _find(folder, f"{part}-{kind}")
        if path is None:
            raise DataError(f"fashion_mnist: {folder} lacks {part}-{kind}; {HOW_TO_GET}")
        paths.append(path)
    image_path, label_path = paths
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if len(images) != len(labels):
        raise DataError(f"{label_path}: {len(labels)} labels for the {len(images)} images of {image_path.name}")
    if images.shape[1] != images.shape[2]:
        raise DataError(f"{image_path}: expected square images, found {images.shape[1]} x {images.shape[2]}")
    if labels.max() >= NUM_CLASSES:
        row = int(np.argmax(labels >= NUM_CLASSES))
        raise DataError(f"{label_path}: labels must be in 0..{NUM_CLASSES - 1}, found {labels[row]} at position {row}")
    pairs = (image_path, images), (label_path, labels)
    object_to_sums("fashion_mnist", [path for path, content in pairs if not _is_official(path, content)], request)
    return ImageSet(
        torch.from_numpy(images.copy())[:, None],
        torch.from_numpy(labels.astype(np.int64)),
        "fashion_mnist",
        RECIPE,
        mean=(0.2860,),
        std=(0.3530,),
        image_size=images.shape[1],
    )


def _is_official(path: Path, content: npt.NDArray[np.uint8]) -> bool:
    """Whether the uncompressed content or the .gz file has an official checksum."""
    header = np.array([0x800 + content.ndim, *content.shape], dtype=">u4").tobytes()
    checksum = hashlib.md5(header + content.tobytes(), usedforsecurity=False)
    if checksum.hexdigest() == CONTENT_MD5[path.name.removesuffix(".gz")]:
        return True
    return path.suffix == ".gz" and not md5_differs(path, official_md5("FashionMNIST"))


def _download(root: Path) -> None:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(root=str(root), download=True)
    except (OSError, RuntimeError) as error:  # no network, no permission, a checksum that does not match
        problem = f"the download into {root} failed ({one_line(error)})"
        raise DataError(f"fashion_mnist: {problem}; {HOW_TO_GET}") from error
