"""Packs: the same images without decoding; changes of the source and damage are reported."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data.official import WNIDS, write_image, write_tiny_imagenet

from mbcl import data
from mbcl.cli import main
from mbcl.data.images import stratified_rows
from mbcl.data.packs import folders, pack_file
from mbcl.errors import DataError

OFFICIAL = "the official set has"
pytestmark = pytest.mark.filterwarnings(f"ignore:.*{OFFICIAL}:UserWarning")


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_tiny_imagenet(tmp_path, num_train=12, num_val=9)


def load(root: Path, **options) -> data.Splits:
    return data.load(options.pop("name", "tiny_imagenet"), dir=str(root), **options)


def pack(root: Path, *more: str, name: str = "tiny_imagenet") -> int:
    return main(["data", "pack", "--data", name, "--data-dir", str(root), *more])


def assert_same(first: data.Splits, second: data.Splits) -> None:
    for a, b in ((first.train, second.train), (first.test, second.test)):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert (a.files, a.classes, a.mean, a.recipe, a.image_size) == (
            b.files,
            b.classes,
            b.mean,
            b.recipe,
            b.image_size,
        )


@pytest.fixture
def no_decoding(monkeypatch):
    def refuse(*_):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(folders, "read_image", refuse)


@pytest.fixture
def packed(folder) -> tuple[Path, data.Splits]:
    expected = load(folder)
    assert pack(folder) == 0
    return folder, expected


# -- content -------------------------------------------------------------------------------------------------------


def test_load_uses_a_pack_with_the_same_images(packed, no_decoding):
    folder, expected = packed
    for place in (folder, folder.parent, folder / "mbcl-pack"):
        assert_same(load(place), expected)
    few = load(folder, max_samples=5)
    assert torch.equal(few.train.images, expected.train.images[stratified_rows(expected.train.labels, 5)])
    assert len(few.test) == 9
    assert load(folder, image_size=32).train.image_size == 32


def test_pack_is_hardly_larger_than_its_pixels(packed):
    files = list((packed[0] / "mbcl-pack").iterdir())
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) <= 1.1 * (36 + 9) * 3 * 64 * 64
    pixels = next(file for file in files if file.suffix == ".npy")
    assert np.load(pixels, mmap_mode="r", allow_pickle=False).shape == (45, 3, 64, 64)


def test_load_maps_the_pack_copy_on_write(packed, no_decoding):
    folder, expected = packed
    loaded = load(folder)
    loaded.train.images[:] = 0
    assert_same(load(folder), expected)


def test_load_warns_about_counts_of_a_pack(packed):
    with pytest.warns(UserWarning, match=f"36 training and 9 test images, {OFFICIAL} 100,000"):
        load(packed[0])


def test_load_needs_no_source_beside_the_pack(packed, no_decoding, tmp_path):
    folder, expected = packed
    shutil.move(folder / "mbcl-pack", tmp_path / "elsewhere" / "mbcl-pack")
    shutil.rmtree(folder)
    assert_same(load(tmp_path / "elsewhere"), expected)
    assert_same(load(tmp_path / "elsewhere" / "mbcl-pack"), expected)


def test_data_pack_out_is_a_data_dir(folder, tmp_path, capsys):
    expected = load(folder)
    assert pack(folder, "--out", str(tmp_path / "out")) == 0
    assert_same(load(tmp_path / "out"), expected)
    assert not (folder / "mbcl-pack").exists()
    path = folder / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_0.JPEG"
    write_image(path, 77)
    with pytest.warns(UserWarning, match="have changed since they were packed: 1 file"):
        assert_same(load(tmp_path / "out"), load(folder))


def test_data_pack_prints_counts_and_existing_packs(folder, capsys):
    assert pack(folder) == 0
    out, err = capsys.readouterr()
    assert "36 training and 9 test images of 64 x 64;" in out
    assert "45 of 45 images" in err
    assert pack(folder) == 0
    out = capsys.readouterr().out
    assert "is there already; --force packs them again" in out
    assert Path(out.partition(": a whole pack")[0]).is_file()
    assert pack(folder, "--out", str(folder)) == 0
    assert Path(capsys.readouterr().out.partition(": a whole pack")[0]).is_file()
    assert pack(folder, "--force") == 0
    assert "36 training" in capsys.readouterr().out
    assert len(list((folder / "mbcl-pack").iterdir())) == 2


def test_data_pack_refuses_sets_without_image_files(tmp_path, capsys):
    assert pack(tmp_path, name="digits") == 2
    allowed = "cifar10, cifar100, tiny_imagenet, image_folder, cifar10_c, cifar100_c, tiny_imagenet_c"
    assert f"digits has no image files to pack; allowed: {allowed}" in capsys.readouterr().err
    assert pack(tmp_path, name="cifar10") == 2
    assert "holds no folders of images to pack" in capsys.readouterr().err
    assert main(["data", "pack", "--data", "cifar10"]) == 2
    assert "--data-dir is not given" in capsys.readouterr().err


def test_data_pack_packs_cifar_as_folders(tmp_path, monkeypatch):
    for part in ("train", "test"):
        for number in range(6):
            write_image(tmp_path / part / f"class{number % 2}" / f"{number}.png", number, size=32)
    expected = load(tmp_path, name="cifar10")
    assert pack(tmp_path, name="cifar10") == 0
    monkeypatch.setattr(folders, "read_image", None)
    assert_same(load(tmp_path, name="cifar10"), expected)


def test_data_pack_makes_a_pack_for_each_image_size(tmp_path, monkeypatch):
    for part in ("train", "val"):
        for number in range(6):
            write_image(tmp_path / part / f"class{number % 2}" / f"{number}.png", number, size=20 + number)
    expected = {size: load(tmp_path, name="image_folder", image_size=size) for size in (16, 24)}
    for size in expected:
        assert pack(tmp_path, "--image-size", str(size), name="image_folder") == 0
    monkeypatch.setattr(folders, "read_image", None)
    for size, splits in expected.items():
        assert_same(load(tmp_path, name="image_folder", image_size=size), splits)


# -- a source that changes -----------------------------------------------------------------------------------------


def _touch(folder: Path) -> None:
    path = folder / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_3.JPEG"
    os.utime(path, ns=(1, 1))


def _replace(folder: Path) -> None:
    write_image(folder / "val" / "images" / "val_3.JPEG", 5)


def _add(folder: Path) -> None:
    write_image(folder / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_99.JPEG", 5)


def _remove(folder: Path) -> None:
    (folder / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_3.JPEG").unlink()


def _relabel(folder: Path) -> None:
    path = folder / "val" / "val_annotations.txt"
    first, *rest = path.read_text().splitlines()
    name, wnid, *box = first.split("\t")
    path.write_text("\n".join(["\t".join([name, WNIDS[1], *box]), *rest]))


def _reorder(folder: Path) -> None:
    path = folder / "val" / "val_annotations.txt"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))


@pytest.mark.parametrize(
    "change, text",
    [
        (_touch, "1 file, first train/.*_3.JPEG"),
        (_replace, "1 file, first val/images/val_3.JPEG"),
        (_add, "1 file, first train/.*_99.JPEG"),
        (_remove, "1 file, first train/.*_3.JPEG"),
        (_relabel, "1 file, first val/images/val_0.JPEG"),
        (_reorder, "in another order"),
    ],
)
def test_load_warns_about_a_changed_source(packed, change, text, monkeypatch):
    folder, _ = packed
    change(folder)
    monkeypatch.setattr("mbcl.data.datasets.tiny_imagenet.OFFICIAL_COUNTS", None)
    with pytest.warns(UserWarning, match=f"have changed since they were packed: .*{text}") as caught:
        loaded = load(folder)
    assert "\n" not in str(caught[0].message)
    with pytest.raises(DataError, match=f"{text}.* data.verify: strict"):
        load(folder, verify="strict")
    shutil.move(folder / "mbcl-pack", folder / "no-pack")
    assert_same(loaded, load(folder))
    shutil.move(folder / "no-pack", folder / "mbcl-pack")
    assert pack(folder) == 0
    monkeypatch.setattr(folders, "read_image", None)
    assert_same(load(folder), loaded)


# -- damage --------------------------------------------------------------------------------------------------------


def files(folder: Path) -> tuple[Path, Path]:
    """The manifest and the pixels."""
    return folder / "mbcl-pack" / "tiny_imagenet.json", next((folder / "mbcl-pack").glob("*.npy"))


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [_flip, lambda c: c[:-1], lambda c: c + b"0", lambda c: b"", None])
@pytest.mark.parametrize("which", [0, 1])
def test_load_refuses_a_damaged_pack_and_data_pack_replaces_it(packed, damage, which):
    folder, expected = packed
    path = files(folder)[which]
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    elif which == 1:
        path.unlink()
    else:
        path.write_text(json.dumps({"format": "mbcl pack 0"}))
    with pytest.raises(DataError, match="damaged pack.*delete it, or make it again with `mbcl data pack`") as caught:
        load(folder)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert pack(folder) == 0
    assert_same(load(folder), expected)


def test_data_pack_keeps_the_old_pack_on_an_unreadable_image(packed, capsys):
    folder, _ = packed
    before = {path.name: path.read_bytes() for path in (folder / "mbcl-pack").iterdir()}
    path = folder / "train" / WNIDS[2] / "images" / f"{WNIDS[2]}_11.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    assert pack(folder) == 2
    assert f"error: {path}: not a readable image" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (folder / "mbcl-pack").iterdir()} == before


@pytest.mark.parametrize("moment", ["pixels", "manifest"])
def test_data_pack_leaves_no_pack_when_interrupted(folder, monkeypatch, moment):
    real = pack_file._digest

    def stop(*_, **__):
        raise KeyboardInterrupt

    if moment == "manifest":
        monkeypatch.setattr(pack_file, "_digest", stop)
    else:
        monkeypatch.setattr(pack_file, "decoded", stop)
    assert pack(folder) == 130
    monkeypatch.setattr(pack_file, "_digest", real)
    left = [path.name for path in (folder / "mbcl-pack").iterdir()]
    assert not [name for name in left if name.endswith((".tmp", ".json"))]
    assert len(load(folder).train) == 36  # from the folder


# -- check ---------------------------------------------------------------------------------------------------------


def test_data_check_prints_counts_and_duplicates(folder, capsys):
    images = folder / "train"
    shutil.copy(folder / "val" / "images" / "val_2.JPEG", images / WNIDS[1] / "images" / "copy.JPEG")
    assert main(["data", "check", "--data", "tiny_imagenet", "--data-dir", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "training part  37 images of 3 x 64 x 64, 3 classes of 12 to 13" in out
    assert "in both parts  1 image, first training 0 (copy) of class 0 and test 2 (val_2) of class 2" in out
    assert "in two classes 1 image, first" in out
    assert main(["data", "check", "--data", "tiny_imagenet", "--data-dir", str(folder), "--verify", "strict"]) == 2
    assert "data.verify: strict" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:tiny_imagenet_c.*(standard corruptions|fog lacks severity):UserWarning")
def test_data_check_measures_a_corrupted_set(folder, capsys, tmp_path):
    clean = load(folder).test
    for path, label in zip(sorted((folder / "val" / "images").iterdir()), clean.labels.tolist(), strict=True):
        target = tmp_path / "C" / "fog" / "2" / clean.classes[label] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    line = ["data", "check", "--data", "tiny_imagenet_c", "--data-dir", str(tmp_path / "C")]
    assert main([*line, "--clean-dir", str(folder)]) == 0
    assert "fog                2  9 images, 0.0 of 255 from the clean ones" in capsys.readouterr().out
    assert main(line) == 2
    assert "--clean-dir is not given" in capsys.readouterr().err
