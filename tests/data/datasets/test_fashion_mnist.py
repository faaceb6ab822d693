"""Fashion-MNIST from idx files: reading, damage, download, checksums."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from mbcl import data
from mbcl.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:fashion_mnist.*not the official checksum:UserWarning")

PARTS = {"train": 12, "t10k": 5}


def idx(array: np.ndarray) -> bytes:
    """The official format: 0, 0, type, dimensions; sizes as big-endian 32-bit integers; bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def contents() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, num in PARTS.items():
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (num, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = rng.integers(0, 10, num, dtype=np.uint8)
    return arrays


def write(folder: Path, *, gz: bool = False, **replaced: bytes) -> dict[str, np.ndarray]:
    """All four files; ``replaced`` maps a file's name, with _ for -, to other bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = contents()
    for name, array in arrays.items():
        raw = replaced.get(name.replace("-", "_"), idx(array))
        (folder / (f"{name}.gz" if gz else name)).write_bytes(gzip.compress(raw) if gz else raw)
    return arrays


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("layout", ["", "raw", "FashionMNIST/raw"])
def test_fashion_mnist_reads_idx_files(tmp_path, gz, layout):
    arrays = write(tmp_path / layout, gz=gz)
    splits = data.load("fashion_mnist", dir=str(tmp_path))
    for part, images in (("train", splits.train), ("t10k", splits.test)):
        assert images.images.shape == (PARTS[part], 1, 28, 28)
        assert images.images.dtype == torch.uint8
        assert np.array_equal(images.images[:, 0].numpy(), arrays[f"{part}-images-idx3-ubyte"])
        assert np.array_equal(images.labels.numpy(), arrays[f"{part}-labels-idx1-ubyte"])
        assert images.image_size == 28


def test_fashion_mnist_equals_torchvision(tmp_path):
    from torchvision.datasets import FashionMNIST

    write(tmp_path / "FashionMNIST" / "raw")
    splits = data.load("fashion_mnist", dir=str(tmp_path))
    for train, part in ((True, splits.train), (False, splits.test)):
        expected = FashionMNIST(root=str(tmp_path), train=train)
        assert torch.equal(expected.data, part.images[:, 0])
        assert torch.equal(expected.targets, part.labels)


def test_fashion_mnist_expands_the_home_folder(tmp_path, monkeypatch):
    write(tmp_path / "clothes")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(data.load("fashion_mnist", dir="~/clothes").train) == 12


IMAGES = idx(contents()["train-images-idx3-ubyte"])
LABELS = idx(contents()["train-labels-idx1-ubyte"])
BAD_LABELS = contents()["train-labels-idx1-ubyte"].copy()
BAD_LABELS[3] = 10
DAMAGE = {
    "truncated": ("train_images_idx3_ubyte", IMAGES[:-7], r"12 x 28 x 28 = 9408 bytes, found 9401"),
    "no header": ("train_images_idx3_ubyte", IMAGES[:9], r"expected a header of 16 bytes, found 9"),
    "empty file": ("train_images_idx3_ubyte", b"", r"expected magic number 0x00000803, found 0x$"),
    "too long": ("train_images_idx3_ubyte", IMAGES + b"!", r"too long: .* = 9408 bytes, found 9409"),
    "wrong magic": ("train_images_idx3_ubyte", b"\x89PNG" + IMAGES[4:], r"0x00000803, found 0x89504e47"),
    "labels as images": ("train_images_idx3_ubyte", LABELS, r"0x00000803, found 0x00000801"),
    "images as labels": ("train_labels_idx1_ubyte", IMAGES, r"0x00000801, found 0x00000803"),
    "no images": ("train_images_idx3_ubyte", idx(np.zeros((0, 28, 28), np.uint8)), r"empty: its header says 0 x 28"),
    "no pixels": ("train_images_idx3_ubyte", idx(np.zeros((12, 0, 28), np.uint8)), r"empty: its header says 12 x 0"),
    "not square": ("train_images_idx3_ubyte", idx(np.zeros((12, 28, 14), np.uint8)), r"square images, found 28 x 14"),
    "fewer labels": ("train_labels_idx1_ubyte", idx(np.zeros(11, np.uint8)), r"11 labels for the 12 images"),
    "label 10": ("train_labels_idx1_ubyte", idx(BAD_LABELS), r"labels must be in 0..9, found 10 at position 3"),
}


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_fashion_mnist_names_the_damaged_file_in_one_line(tmp_path, damage, gz):
    name, content, text = DAMAGE[damage]
    write(tmp_path, gz=gz, **{name: content})
    with pytest.raises(DataError, match=text) as caught:
        data.load("fashion_mnist", dir=str(tmp_path))
    assert name.replace("_", "-") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fashion_mnist_allocates_nothing_for_a_too_large_header(tmp_path):
    huge = struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    write(tmp_path, train_images_idx3_ubyte=huge)
    with pytest.raises(DataError, match="truncated"):
        data.load("fashion_mnist", dir=str(tmp_path))


@pytest.mark.parametrize(
    "damaged", [b"not gzip at all", gzip.compress(IMAGES)[:-20], b""], ids=["not gzip", "cut", "empty"]
)
def test_fashion_mnist_refuses_damaged_gzip(tmp_path, damaged):
    write(tmp_path, gz=True)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(damaged)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz: (damaged gzip|not an idx)"):
        data.load("fashion_mnist", dir=str(tmp_path))


def test_fashion_mnist_refuses_parts_of_different_sizes(tmp_path):
    write(tmp_path, t10k_images_idx3_ubyte=idx(np.zeros((5, 8, 8), np.uint8)))
    with pytest.raises(DataError, match=r"training images are \(28, 28\), test images \(8, 8\)"):
        data.load("fashion_mnist", dir=str(tmp_path))


def test_fashion_mnist_names_a_missing_file(tmp_path):
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="lacks t10k-labels-idx1-ubyte; expected train-images-idx3-ubyte"):
        data.load("fashion_mnist", dir=str(tmp_path))


@pytest.mark.parametrize("folder, problem", [("nowhere", "does not exist"), ("", "holds none of the files")])
def test_fashion_mnist_explains_a_missing_folder(tmp_path, folder, problem):
    with pytest.raises(DataError, match=problem) as caught:
        data.load("fashion_mnist", dir=str(tmp_path / folder))
    for text in (str(tmp_path), "train-images-idx3-ubyte", "apt-get install dataset-fashion-mnist", "download: true"):
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fashion_mnist_reads_debians_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr("mbcl.data.datasets.fashion_mnist.DEBIAN_DIR", tmp_path / "package")
    with pytest.raises(DataError, match=r"package does not exist \(data.dir is not given\)"):
        data.load("fashion_mnist")
    write(tmp_path / "package", gz=True)
    assert len(data.load("fashion_mnist").test) == 5


def test_fashion_mnist_downloads_only_missing_files(tmp_path, monkeypatch):
    def fetch(self, root, download):
        assert download
        write(Path(root) / "FashionMNIST" / "raw")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST.__init__", fetch)
    assert len(data.load("fashion_mnist", dir=str(tmp_path), download=True).train) == 12
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.__init__", None)
    assert len(data.load("fashion_mnist", dir=str(tmp_path), download=True).train) == 12


def test_fashion_mnist_reports_a_failed_download(tmp_path, monkeypatch):
    def fail(self, root, download):
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST.__init__", fail)
    with pytest.raises(DataError, match=r"the download into .* failed \(no network\); expected train-images"):
        data.load("fashion_mnist", dir=str(tmp_path), download=True)
    with pytest.raises(ConfigError, match="download needs data.dir"):
        data.load("fashion_mnist", download=True)


# -- checksums -----------------------------------------------------------------------------------------------------


def test_fashion_mnist_warns_about_unofficial_files(tmp_path):
    write(tmp_path)
    with pytest.warns(UserWarning, match="not the official checksum") as caught:
        data.load("fashion_mnist", dir=str(tmp_path))
    assert [str(warning.message).rpartition(": ")[2] for warning in caught] == [
        "train-images-idx3-ubyte, train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte",
    ]
    with pytest.raises(DataError, match=r"fashion_mnist: .*not the official checksum .* data.verify: strict"):
        data.load("fashion_mnist", dir=str(tmp_path), verify="strict")
    with pytest.raises(ConfigError, match="verify: found 'always', allowed: warn, strict"):
        data.load("fashion_mnist", dir=str(tmp_path), verify="always")


@pytest.mark.parametrize("gz", [False, True])
def test_fashion_mnist_accepts_official_contents_or_archives(tmp_path, monkeypatch, gz):
    import hashlib

    arrays = write(tmp_path, gz=gz)
    if gz:
        resources = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in tmp_path.iterdir()]
        monkeypatch.setattr("torchvision.datasets.FashionMNIST.resources", resources)
    else:
        sums = {name: hashlib.md5(idx(array)).hexdigest() for name, array in arrays.items()}
        monkeypatch.setattr("mbcl.data.datasets.fashion_mnist.CONTENT_MD5", sums)
    assert len(data.load("fashion_mnist", dir=str(tmp_path), verify="strict").train) == 12
