"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747) from its official idx files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mbcl.data.idx import read_idx
from mbcl.data.images import ImageSet, Splits
from mbcl.data.recipe import ViewRecipe
from mbcl.errors import ConfigError, DataError

NUM_CLASSES = 10
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` installs the files."""

FILES = tuple(f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
HOW_TO_GET = (
    f"expected {', '.join(FILES)}, plain or .gz; `apt-get install dataset-fashion-mnist` puts them into {DEBIAN_DIR}, "
    "`download: true` fetches them into data.dir with torchvision"
)

RECIPE = ViewRecipe(crop_scale=(0.3, 1.0), grey_probability=0.0, blur_sigma=(0.1, 1.0), blur_probability=0.5)


def read(*, dir: str | None, download: bool, max_samples: int | None = None) -> Splits:
    """Read the four files.

    Args:
        dir: a folder that holds them, itself or in ``FashionMNIST/raw`` or ``raw`` as torchvision lays them out; the
            folder of Debian's package if omitted.
        download: fetch them into ``dir`` with torchvision if they are not there.
        max_samples: not used, all images are read.

    Raises:
        DataError: if a file is missing or damaged, in one line that names it.
        ConfigError: if ``download`` is asked for without ``dir``.
    """
    if download and dir is None:
        raise ConfigError("fashion_mnist: download needs data.dir, the folder to download into")
    root = DEBIAN_DIR if dir is None else Path(dir).expanduser()
    folder = _folder(root)
    if download and (folder is None or not all(_find(folder, name) for name in FILES)):
        _download(root)
        folder = _folder(root)
    if folder is None:
        what = "does not exist" if not root.is_dir() else "holds none of the files"
        given = " (data.dir is not given)" if dir is None else ""
        raise DataError(f"fashion_mnist: {root} {what}{given}; {HOW_TO_GET}")
    train, test = _part(folder, "train"), _part(folder, "t10k")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{folder}: training images are {tuple(train.images.shape[2:])}, test images "
            f"{tuple(test.images.shape[2:])} pixels"
        )
    return Splits(train, test)


def _folder(root: Path) -> Path | None:
    """The first usual place under ``root`` that holds any of the files."""
    for folder in (root, root / "raw", root / "FashionMNIST" / "raw"):
        if any(_find(folder, name) for name in FILES):
            return folder
    return None


def _find(folder: Path, name: str) -> Path | None:
    """The file, plain before gzipped, as torchvision leaves both."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _part(folder: Path, part: str) -> ImageSet:
    paths = {}
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        path = _find(folder, f"{part}-{kind}")
        if path is None:
            raise DataError(f"fashion_mnist: {folder} lacks {part}-{kind}; {HOW_TO_GET}")
        paths[kind] = path
    image_path, label_path = paths.values()
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if len(images) != len(labels):
        raise DataError(f"{label_path}: {len(labels)} labels for the {len(images)} images of {image_path.name}")
    if images.shape[1] != images.shape[2]:
        raise DataError(f"{image_path}: expected square images, found {images.shape[1]} x {images.shape[2]}")
    if labels.max() >= NUM_CLASSES:
        row = int(np.argmax(labels >= NUM_CLASSES))
        raise DataError(f"{label_path}: labels must be in 0..{NUM_CLASSES - 1}, found {labels[row]} at position {row}")
    return ImageSet(
        torch.from_numpy(images.copy())[:, None],
        torch.from_numpy(labels.astype(np.int64)),
        "fashion_mnist",
        RECIPE,
        mean=(0.2860,),
        std=(0.3530,),
        image_size=images.shape[1],
    )


def _download(root: Path) -> None:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(root=str(root), download=True)
    except (OSError, RuntimeError) as error:  # no network, no permission, a checksum that does not match
        reason = " ".join(str(error).split())
        raise DataError(f"fashion_mnist: the download into {root} failed ({reason}); {HOW_TO_GET}") from error
