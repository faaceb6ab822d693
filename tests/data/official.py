"""Writers of small data sets in the official formats, for tests."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CIFAR = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-python.tar.gz", b"labels", 10),
    "cifar100": ("cifar-100-python", "cifar-100-python.tar.gz", b"fine_labels", 100),
}
WNIDS = ("n02124075", "n01443537", "n04067472")  # as in wnids.txt: not sorted


class Python2Pickler(pickle._Pickler):
    """Writes pickles of Python 2, like the official files: byte strings and NumPy's old module names."""

    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)

    def save_bytes(self, value: bytes) -> None:
        short = len(value) < 256
        self.write(pickle.SHORT_BINSTRING if short else pickle.BINSTRING)
        self.write(struct.pack("<B" if short else "<i", len(value)) + value)
        self.memoize(value)

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{value.__name__}\n".encode())
        self.memoize(value)

    dispatch[bytes] = save_bytes
    dispatch[type] = save_global


def pickled(value: Any, by: str = "python 2") -> bytes:
    """``python 2``, or ``protocol N``."""
    if by != "python 2":
        return pickle.dumps(value, protocol=int(by.split()[1]))
    stream = io.BytesIO()
    Python2Pickler(stream).dump(value)
    return stream.getvalue()


def cifar_batch(name: str, num: int, seed: int) -> dict[bytes, Any]:
    """The content of one official file, with random pixels."""
    _, _, label_key, num_classes = CIFAR[name]
    rng = np.random.default_rng(seed)
    batch = {
        b"batch_label": b"training batch 1 of 1",
        label_key: [int(label) for label in rng.integers(0, num_classes, num)],
        b"data": rng.integers(0, 256, (num, 3072), dtype=np.uint8),
        b"filenames": [b"image_%06d.png" % row for row in range(num)],
    }
    if name == "cifar100":
        batch[b"coarse_labels"] = [label // 5 for label in batch[label_key]]
    return batch


def cifar_batches(name: str, num_train: int = 20, num_test: int = 8) -> dict[str, dict[bytes, Any]]:
    """The content of all files of images; CIFAR-10 has ``num_train`` in each of its five."""
    train = ["train"] if name == "cifar100" else [f"data_batch_{number}" for number in range(1, 6)]
    test = "test" if name == "cifar100" else "test_batch"
    batches = {file: cifar_batch(name, num_train, seed) for seed, file in enumerate(train)}
    return batches | {test: cifar_batch(name, num_test, 99)}


def write_cifar(
    root: Path, name: str = "cifar100", *, by: str = "python 2", num_train: int = 20, num_test: int = 8
) -> dict[str, dict[bytes, Any]]:
    """The extracted official archive in ``root``."""
    folder = root / CIFAR[name][0]
    folder.mkdir(parents=True, exist_ok=True)
    batches = cifar_batches(name, num_train, num_test)
    for file, batch in batches.items():
        (folder / file).write_bytes(pickled(batch, by))
    meta, key = ("meta", b"fine_label_names") if name == "cifar100" else ("batches.meta", b"label_names")
    names = [b"class %d" % label for label in range(CIFAR[name][3])]
    (folder / meta).write_bytes(pickled({key: names}, by))
    return batches


def pack_cifar(root: Path, name: str = "cifar100") -> Path:
    """Pack the folder that :func:`write_cifar` wrote in ``root`` into the official archive, and delete the folder."""
    folder, archive, _, _ = CIFAR[name]
    with tarfile.open(root / archive, "w:gz") as stream:
        stream.add(root / folder, folder)
    for file in (root / folder).iterdir():
        file.unlink()
    (root / folder).rmdir()
    return root / archive


def write_image(path: Path, seed: int, size: int = 64, mode: str = "RGB") -> None:
    """A smooth random picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (4, 4) if mode == "L" else (4, 4, 3)
    small = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(path)


def write_tiny_imagenet(root: Path, *, num_train: int = 4, num_val: int = 5) -> Path:
    """The official layout with three classes: ``num_train`` images in each, ``num_val`` in all, some of them grey."""
    folder = root / "tiny-imagenet-200"
    seed = 0
    for wnid in WNIDS:
        for number in range(num_train):
            seed += 1
            mode = "L" if number == 1 else "RGB"
            write_image(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", seed, mode=mode)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    lines = []
    for number in range(num_val):
        write_image(folder / "val" / "images" / f"val_{number}.JPEG", 1000 + number)
        lines.append(f"val_{number}.JPEG\t{WNIDS[number % len(WNIDS)]}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    write_image(folder / "test" / "images" / "test_0.JPEG", 2000)
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\n")
    return folder


def write_corrupted_archive(
    root: Path, images: np.ndarray, labels: np.ndarray, corruptions: tuple[str, ...] = ("fog", "snow")
) -> None:
    """CIFAR's corrupted set as published: (5N, 32, 32, 3) bytes for each corruption, labels five times.

    Severity s of a corruption is ``images`` plus 10 s plus the corruption's index, modulo 256.
    """
    root.mkdir(parents=True, exist_ok=True)
    for number, corruption in enumerate(corruptions):
        severities = [(images.astype(int) + 10 * s + number) % 256 for s in range(1, 6)]
        np.save(root / f"{corruption}.npy", np.concatenate(severities).astype(np.uint8).transpose(0, 2, 3, 1))
    np.save(root / "labels.npy", np.tile(labels, 5).astype(np.int64))


def write_fashion_mnist(root: Path, num_train: int, num_test: int = 10) -> None:
    """Official idx files of black images, all of one class."""
    for part, num in (("train", num_train), ("t10k", num_test)):
        images = struct.pack(">BBBB3I", 0, 0, 8, 3, num, 28, 28) + bytes(num * 28 * 28)
        labels = struct.pack(">BBBBI", 0, 0, 8, 1, num) + bytes(num)
        (root / f"{part}-images-idx3-ubyte").write_bytes(images)
        (root / f"{part}-labels-idx1-ubyte").write_bytes(labels)
