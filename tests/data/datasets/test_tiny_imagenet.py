"""Tiny ImageNet in its official layout and as plain folders of classes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from data.official import WNIDS, write_image, write_tiny_imagenet
from PIL import Image

from mbcl import data
from mbcl.data.images import stratified_rows
from mbcl.data.packs import folders
from mbcl.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:tiny_imagenet:UserWarning")


def load(root: Path, **options) -> data.Splits:
    return data.load("tiny_imagenet", dir=str(root), **options)


def assert_refused(root: Path, text: str) -> str:
    with pytest.raises(DataError, match=text) as caught:
        load(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_tiny_imagenet(tmp_path)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def test_tiny_imagenet_reads_the_official_layout(folder):
    splits = load(folder)
    wnids = sorted(WNIDS)
    assert splits.train.images.shape == (12, 3, 64, 64)
    assert splits.train.images.dtype == torch.uint8
    assert splits.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for row, image in enumerate(splits.train.images.numpy()):
        wnid = wnids[row // 4]
        assert np.array_equal(image, pixels(folder / "train" / wnid / "images" / f"{wnid}_{row % 4}.JPEG"))
    assert splits.test.labels.tolist() == [wnids.index(WNIDS[number % 3]) for number in range(5)]
    for number, image in enumerate(splits.test.images.numpy()):
        assert np.array_equal(image, pixels(folder / "val" / "images" / f"val_{number}.JPEG"))
    assert splits.train.mean == (0.485, 0.456, 0.406)
    assert splits.train.std == (0.229, 0.224, 0.225)
    assert splits.train.recipe == data.ViewRecipe()
    assert splits.train.image_size == 64


def test_tiny_imagenet_converts_grey_images_to_rgb(folder):
    grey = load(folder).train.images[1]
    assert Image.open(folder / "train" / min(WNIDS) / "images" / f"{min(WNIDS)}_1.JPEG").mode == "L"
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])


def test_tiny_imagenet_finds_its_folder_in_several_places(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    for place in (folder, folder.parent, Path("~/tiny-imagenet-200")):
        assert len(load(place).test) == 5


def test_tiny_imagenet_training_part_equals_torchvision(folder):
    from torchvision.datasets import ImageFolder

    expected = ImageFolder(str(folder / "train"))
    train = load(folder).train
    assert expected.targets == train.labels.tolist()
    for (image, _), pixels_CHW in zip(expected, train.images, strict=True):
        assert np.array_equal(np.asarray(image), pixels_CHW.permute(1, 2, 0).numpy())


def test_tiny_imagenet_warns_about_other_counts(folder):
    with pytest.warns(UserWarning, match=r"12 training and 5 test images, the official set has 100,000 and 10,000"):
        load(folder)


def test_tiny_imagenet_decodes_max_samples_only(folder):
    whole = load(folder)
    few = load(folder, max_samples=3)
    rows = stratified_rows(whole.train.labels, 3)
    assert torch.equal(few.train.images, whole.train.images[rows])
    assert few.train.labels.tolist() == [0, 1, 2], "one of each class"
    for file in (folder / "train").glob("*/images/*"):
        if file.stem not in few.train.files:
            file.write_bytes(b"never opened")
    assert torch.equal(load(folder, max_samples=3).train.images, few.train.images)
    assert torch.equal(few.test.images, whole.test.images)


def test_tiny_imagenet_keeps_the_order_and_logs_progress(folder, monkeypatch, caplog):
    whole = load(folder)
    monkeypatch.setattr(folders, "_CHUNK", 5)
    monkeypatch.setattr(folders, "_LOG_EVERY", 0.0)
    with caplog.at_level(logging.INFO, "mbcl.data.packs.folders"):
        assert torch.equal(load(folder).train.images, whole.train.images)
    assert "tiny_imagenet: 10 of 17 images decoded" in caplog.messages


# -- class folders -------------------------------------------------------------------------------------------------


def as_class_folders(folder: Path, test: str, inner: str = "") -> None:
    """Sort the validation part into classes, like the usual scripts, which leave the annotations."""
    for line in (folder / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        target = folder / test / wnid / inner
        target.mkdir(parents=True, exist_ok=True)
        (folder / "val" / "images" / name).rename(target / name)


@pytest.mark.parametrize("inner", ["", "images"])
@pytest.mark.parametrize("test", ["val", "test"])
def test_tiny_imagenet_reads_plain_folders_of_classes(folder, test, inner):
    expected = load(folder)
    (folder / "test" / "images" / "test_0.JPEG").unlink()
    if test == "test":
        (folder / "test" / "images").rmdir()
    as_class_folders(folder, test, inner)
    for wnid in WNIDS:
        for file in (folder / "train" / wnid / "images").iterdir():
            file.rename(folder / "train" / wnid / file.name)
        (folder / "train" / wnid / "images").rmdir()
    if test == "val":
        (folder / "val" / "images").rmdir()
    loaded = load(folder)
    assert torch.equal(loaded.train.images, expected.train.images)
    order = expected.test.labels.argsort(stable=True)
    assert torch.equal(loaded.test.images, expected.test.images[order])
    assert torch.equal(loaded.test.labels, expected.test.labels[order])


def test_tiny_imagenet_ignores_an_empty_validation_folder(folder):
    as_class_folders(folder, "val")
    assert len(load(folder).test) == 5


def test_tiny_imagenet_ignores_files_that_are_no_images(folder):
    images = folder / "train" / WNIDS[0] / "images"
    (images / ".DS_Store").write_bytes(b"")
    (images / "._hidden.JPEG").write_bytes(b"")
    (images / "notes.txt").write_text("")
    assert len(load(folder).train) == 12


# -- damage --------------------------------------------------------------------------------------------------------


def image(wnid: str = WNIDS[0]) -> str:
    return f"train/{wnid}/images/{wnid}_2.JPEG"


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", "not a readable image: cannot identify image file$"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "not a readable image: cannot identify image file$"),
        (None, "not a readable image: .*truncated"),
    ],
)
def test_tiny_imagenet_names_an_unreadable_image(folder, content, text):
    path = folder / image()
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    assert assert_refused(folder, text).startswith(f"{path}: ")


def test_tiny_imagenet_names_the_first_of_several_unreadable_images(folder, monkeypatch):
    monkeypatch.setattr(folders, "_CHUNK", 1)
    for wnid in WNIDS:
        (folder / image(wnid)).write_bytes(b"")
    assert_refused(folder, image(min(WNIDS)))


def test_tiny_imagenet_refuses_images_of_another_size(folder):
    write_image(folder / image(), 0, size=32)
    assert_refused(folder, f"{image()}: expected 64 x 64 pixels, found 32 x 32")


ANNOTATIONS = {
    "a class that is unknown": ("val_1.JPEG\tn99999999\t0\t0\t1\t1", "line 2: n99999999 is not one of the 3 classes"),
    "a file that is missing": ("val_9.JPEG\tn02124075\t0\t0\t1\t1", "line 2: val_9.JPEG is given twice or is not in"),
    "a file twice": ("val_0.JPEG\tn02124075\t0\t0\t1\t1", "line 2: val_0.JPEG is given twice or is not in"),
    "a path": ("../images/val_1.JPEG\tn02124075", r"line 2: \.\./images/val_1.JPEG is given twice or is not in"),
    "no class": ("val_1.JPEG n02124075", "line 2: expected FILE, tab, WNID, found 'val_1.JPEG n02124075'"),
    "a line less": ("", r"it lacks 1 of the files in .*val/images, first val_1.JPEG"),
}


@pytest.mark.parametrize("damage", ANNOTATIONS)
def test_tiny_imagenet_refuses_damaged_annotations(folder, damage):
    line, text = ANNOTATIONS[damage]
    path = folder / "val" / "val_annotations.txt"
    lines = path.read_text().splitlines()
    lines[1] = line
    path.write_text("\n".join(lines))
    assert assert_refused(folder, text).startswith(f"{path}: ")


def test_tiny_imagenet_refuses_annotations_that_are_no_text(folder):
    (folder / "val" / "val_annotations.txt").write_bytes(b"\xff\xfe\x00")
    assert_refused(folder, "val_annotations.txt: cannot be read: not a text file")
    (folder / "val" / "val_annotations.txt").unlink()
    assert_refused(folder, "val lacks val_annotations.txt; expected the extracted tiny-imagenet-200.zip")


def test_tiny_imagenet_refuses_classes_that_disagree(folder):
    wnids = folder / "wnids.txt"
    wnids.write_text("\n".join([*WNIDS, "n00000001"]))
    assert_refused(folder, "wnids.txt: it names n00000001, which train lacks")
    wnids.write_text("\n".join(WNIDS[1:]))
    assert_refused(folder, f"wnids.txt: it lacks {WNIDS[0]}, which train holds")
    wnids.unlink()
    (folder / "train" / "n00000002").mkdir()
    assert_refused(folder, "train/n00000002: it holds no images; expected .jpg, .jpeg")


def test_tiny_imagenet_names_a_file_of_another_class(folder):
    path = folder / image(WNIDS[0])
    moved = folder / "train" / WNIDS[1] / "images" / path.name
    path.rename(moved)
    assert_refused(folder, f"{moved}: an image of {WNIDS[0]} in the folder of {WNIDS[1]}")


def test_tiny_imagenet_refuses_a_test_part_with_other_classes(folder):
    as_class_folders(folder, "val")
    (folder / "val" / WNIDS[0]).rename(folder / "val" / "n00000003")
    assert_refused(folder, "val/n00000003: not one of the 3 classes of the training part")


def test_tiny_imagenet_requires_a_labelled_test_part(folder):
    (folder / "val").rename(folder / "elsewhere")
    assert_refused(folder, "has no test part with labels; expected the extracted")


def test_tiny_imagenet_needs_no_wnids_file(folder):
    (folder / "wnids.txt").unlink()
    assert len(load(folder).train) == len(WNIDS) * 4, "the folders of train define the classes"
    assert "wnids.txt" not in data.describe("tiny_imagenet")


def test_tiny_imagenet_requires_classes(folder):
    (folder / "train").rename(folder / "elsewhere")
    assert_refused(folder, "holds no folder train; expected the extracted")
    (folder / "train").mkdir()
    (folder / "wnids.txt").unlink()
    assert_refused(folder, "train: it holds no folders of classes with images")


def test_tiny_imagenet_has_no_download(tmp_path):
    assert_refused(tmp_path / "nowhere", r"nowhere does not exist; expected the extracted .*there is no download")
    with pytest.raises(ConfigError, match="download: found true, but it cannot be fetched; expected"):
        load(tmp_path, download=True)
    with pytest.raises(DataError, match=r"data.dir is not given; expected the extracted"):
        data.load("tiny_imagenet")
