"""Any folder of classes: sizes, layout, damage."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from data.official import write_image
from PIL import Image, ImageOps

from mbcl import data
from mbcl.cli import main
from mbcl.config.data import Data
from mbcl.config.evaluation import Evaluation
from mbcl.data.datasets.image_folder import FILES
from mbcl.data.datasets.request import DatasetRequest
from mbcl.data.images import stratified_rows
from mbcl.engine.evaluation_checks import check_evaluation
from mbcl.engine.setup import load_data
from mbcl.errors import ConfigError, DataError

SIZES = ((40, 40), (64, 48), (31, 77), (20, 20), (200, 133))


def load(root: Path, **options) -> data.Splits:
    return data.load("image_folder", dir=str(root), **options)


def write(root: Path, sizes=SIZES, test: str = "test") -> None:
    for part in ("train", test):
        for name in ("cat", "dog"):
            for number, (width, height) in enumerate(sizes):
                path = root / part / name / f"{number}.png"
                write_image(path, number, size=max(width, height))
                Image.open(path).crop((0, 0, width, height)).save(path)


@pytest.mark.parametrize("test", ["test", "val"])
@pytest.mark.parametrize("size", [24, 40])
def test_image_folder_resizes_like_torchvision(tmp_path, test, size):
    from torchvision.transforms import CenterCrop, Compose, Resize

    write(tmp_path, test=test)
    splits = load(tmp_path, image_size=size)
    usual = Compose([Resize(size), CenterCrop(size)])
    for part, folder in ((splits.train, "train"), (splits.test, test)):
        assert part.labels.tolist() == [0] * 5 + [1] * 5
        assert part.classes == ("cat", "dog")
        assert part.image_size == size
        for row, image in enumerate(part.images):
            path = tmp_path / folder / part.classes[row // 5] / f"{row % 5}.png"
            expected = np.asarray(usual(Image.open(path).convert("RGB")))
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected), path


def test_image_folder_without_image_size_needs_equal_squares(tmp_path):
    write(tmp_path, [(28, 28)] * 3)
    splits = load(tmp_path)
    assert splits.train.images.shape == (6, 3, 28, 28)
    assert splits.train.image_size == 28
    write_image(tmp_path / "test" / "dog" / "1.png", 0, size=29)
    with pytest.raises(DataError, match="1.png: expected 28 x 28 pixels, found 29 x 29; .* with data.image_size"):
        load(tmp_path)
    write(tmp_path, [(28, 20)])
    with pytest.raises(DataError, match="0.png: found 28 x 20 pixels, not a square; data.image_size says the side"):
        load(tmp_path)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_image_folder_converts_every_mode_to_rgb(tmp_path, mode):
    write(tmp_path, [(28, 28)])
    path = tmp_path / "train" / "cat" / "0.png"
    picture = Image.open(path).convert(mode)
    path.unlink()
    picture.save(path.with_suffix(".tif"))
    image = load(tmp_path).train.images[0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture.convert("RGB")))


def test_image_folder_converts_16_bits_to_8(tmp_path):
    """Pillow itself would clip values above 255."""
    write(tmp_path, [(28, 28)])
    path = tmp_path / "train" / "cat" / "0.png"
    values = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28) * 83
    Image.fromarray(values).save(path)
    assert np.array_equal(load(tmp_path).train.images[0, 0].numpy(), values >> 8)
    path.unlink()
    for mode, dtype in (("F", np.float32), ("I", np.int32)):
        Image.fromarray(values.astype(dtype)).save(path.with_suffix(".tif"))
        with pytest.raises(DataError, match=f"0.tif: pixels of mode {mode}, whose range is not known"):
            load(tmp_path)


def test_image_folder_says_which_images_it_does_not_read(tmp_path):
    write(tmp_path)
    train = tmp_path / "train"
    for number in range(2):
        for path in ("a.png", "cat/old/x.png", "dog/2024/05/y.jpg"):
            write_image(train / f"{path[:-4]}{number}{path[-4:]}", number)
    for name in ("x.gif", "y.GIF", "z.heic", "v.avif", "notes.txt", ".hidden.png"):
        (train / "cat" / name).write_bytes(b"?")
    Image.new("RGB", (9, 9)).save(tmp_path / "test" / "dog" / "photograph", format="png")
    Image.new("RGB", (9, 9)).save(tmp_path / "test" / "dog" / "photo.bak", format="jpeg")
    kinds = (
        "12 of 32 images are not read: 1 .avif files .*, 2 .gif files .*, 1 .heic files .*, "
        f"6 elsewhere than in a folder of a class .first {train}/a0.png., 1 files that end in .bak .*, "
        "1 files without an extension .first .*test/dog/photograph.; read are .jpg, "
    )
    with pytest.warns(UserWarning, match=kinds) as caught:
        assert len(load(tmp_path, image_size=16).train) == 10
    assert len(caught) == 1
    with pytest.raises(DataError, match=f"{kinds}.* data.verify: strict"):
        load(tmp_path, image_size=16, verify="strict")
    assert main(["data", "check", "--data", "image_folder", "--data-dir", str(tmp_path), "--verify", "strict"]) == 2


def test_image_folder_follows_links_of_classes_and_no_circle(tmp_path):
    write(tmp_path / "data")
    folder = tmp_path / "data" / "train" / "dog"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "elsewhere")
    assert len(load(tmp_path / "data", image_size=16, verify="strict").train) == 10
    write_image(tmp_path / "elsewhere" / "deep" / "0.png", 0)
    with pytest.warns(UserWarning, match=f"1 of 21 images are not read: 1 elsewhere .*first {folder}/deep/0.png"):
        load(tmp_path / "data", image_size=16)


def test_image_folder_reads_every_extension_of_jpeg(tmp_path):
    write(tmp_path, [(28, 28)] * 4)
    for number, suffix in enumerate((".jpe", ".JFIF", ".jpeg", ".JPG")):
        path = tmp_path / "train" / "cat" / f"{number}.png"
        Image.open(path).save(path.with_suffix(suffix), format="jpeg")
        path.unlink()
    assert len(load(tmp_path, verify="strict").train) == 8


@pytest.mark.parametrize("layout", ["flat", "train", "classes", "train/classes"])
def test_image_folder_draws_a_test_part_where_there_is_none(tmp_path, layout):
    """The test part is the same for the same names; without folders of classes there are no labels."""
    folder = tmp_path / "train" if layout.startswith("train") else tmp_path
    for number in range(20):
        name = "" if "classes" not in layout else ("cat", "dog")[number % 2]
        write_image(folder / name / f"{number:02d}.png", number, size=28)
    (tmp_path / "mbcl-pack").mkdir()
    (tmp_path / "notes").mkdir()
    with pytest.warns(UserWarning, match="no folder test or val; its test part is 4 of the 20 images, drawn by"):
        splits = load(tmp_path)
    with pytest.warns(UserWarning, match="4 of the 20 images"):
        again = load(tmp_path, verify="strict")
    assert torch.equal(splits.test.images, again.test.images)
    names = [int(name) for name in (*splits.train.files, *splits.test.files)]
    assert sorted(names) == list(range(20))
    assert len(splits.test) == 4
    assert splits.train.labelled == ("classes" in layout)
    if splits.train.labelled:
        assert splits.train.classes == ("cat", "dog")
        assert splits.test.labels.tolist() == [0, 0, 1, 1]
    else:
        assert set(splits.train.labels.tolist()) == {0}


def test_image_folder_without_labels_refuses_what_needs_them(tmp_path):
    for number in range(20):
        write_image(tmp_path / f"{number:02d}.png", number, size=28)
    block = {"name": "image_folder", "dir": str(tmp_path)}
    with pytest.warns(UserWarning, match="no folder test"):
        parts = load_data(Data(**block), seed=0)
    for metric in ("knn", "probe"):
        with pytest.raises(ConfigError, match=f"evaluation.metrics: {metric} needs labels"):
            check_evaluation(Evaluation(metrics=[metric], knn={"k": 2}), parts, name="image_folder")
    with (
        pytest.warns(UserWarning, match="no folder test"),
        pytest.raises(ConfigError, match="data.apart: found labels"),
    ):
        load_data(Data(**block, apart="labels"), seed=0)


def test_image_folder_packs_images_without_labels(tmp_path, capsys):
    for number in range(10):
        write_image(tmp_path / f"{number:02d}.png", number, size=28)
    options = ["--data", "image_folder", "--data-dir", str(tmp_path)]
    with pytest.warns(UserWarning, match="no folder test"):
        splits = load(tmp_path)
    with pytest.warns(UserWarning, match="no folder test"):
        assert main(["data", "pack", *options]) == 0
    with pytest.warns(UserWarning, match="no folder test"):
        packed = load(tmp_path)
    with pytest.warns(UserWarning, match="no folder test"):
        assert main(["data", "check", *options]) == 0
    assert capsys.readouterr().out.count("without labels") == 2
    assert packed.train.mapped
    assert not packed.train.labelled
    assert torch.equal(splits.train.images, packed.train.images)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_image_folder_turns_images_by_their_exif_orientation(tmp_path, orientation, suffix):
    """As ``ImageOps.exif_transpose``; without, as Pillow and torchvision's ImageFolder open the file."""
    write(tmp_path, [(28, 28)])
    path = tmp_path / "train" / "cat" / "0.png"
    image = Image.open(path)
    image.load()
    exif = image.getexif()
    exif[0x0112] = orientation
    path.unlink()
    path = path.with_suffix(suffix)
    image.save(path, exif=exif, quality=100)
    for value, expected in ((True, ImageOps.exif_transpose(Image.open(path))), (False, Image.open(path))):
        found = load(tmp_path, exif=value).train.images[0].permute(1, 2, 0)
        assert np.array_equal(found.numpy(), np.asarray(expected.convert("RGB")))


def test_a_pack_keeps_how_its_images_were_read(tmp_path):
    write(tmp_path, [(28, 28)])
    path = tmp_path / "train" / "cat" / "0.png"
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    turned = load(tmp_path).train.images
    assert main(["data", "pack", "--data", "image_folder", "--data-dir", str(tmp_path), "--no-exif"]) == 0
    stored = load(tmp_path, exif=False).train
    assert stored.mapped
    assert not torch.equal(stored.images[0], turned[0])
    with pytest.warns(
        UserWarning, match="were packed with data.exif: false and data.bits: null, now it is data.exif: true"
    ):
        assert torch.equal(load(tmp_path).train.images, turned)
    alone = tmp_path / "alone"
    (tmp_path / "mbcl-pack").rename(alone)
    for part in ("train", "test"):
        shutil.rmtree(tmp_path / part)
    assert torch.equal(load(alone, exif=False).train.images[0], stored.images[0])
    with pytest.raises(DataError, match="packed with data.exif: false .*, expected data.exif: true"):
        load(alone)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_image_folder_keeps_the_levels_of_12_bits_or_refuses_them(tmp_path, suffix):
    write(tmp_path, [(28, 28)])
    path = tmp_path / "train" / "cat" / f"0{suffix}"
    path.with_suffix(".png").unlink()
    values = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28) * 5
    Image.fromarray(values).save(path)
    with pytest.raises(DataError, match=r"16-bit values of at most 3,915, which would keep a few .*; data.bits says"):
        load(tmp_path)
    assert np.array_equal(load(tmp_path, bits=12).train.images[0, 0].numpy(), values >> 4)
    assert np.array_equal(load(tmp_path, bits=16).train.images[0, 0].numpy(), values >> 8)
    with pytest.raises(DataError, match="found the value 3,915, which has more than 11 bits"):
        load(tmp_path, bits=11)
    Image.fromarray(np.zeros_like(values)).save(path)
    assert int(load(tmp_path).train.images[0].max()) == 0


def test_image_folder_reads_grey_maps_of_16_bits(tmp_path):
    """The header of a PGM says its largest value, to which the levels are relative."""
    write(tmp_path, [(28, 28)])
    path = tmp_path / "train" / "cat" / "0.png"
    path.unlink()
    values = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28)
    for largest, factor in ((65535, 83), (4095, 5)):
        content = f"P5\n28 28\n{largest}\n".encode() + (values * factor).astype(">u2").tobytes()
        path.with_suffix(".pgm").write_bytes(content)
        found = load(tmp_path).train.images[0, 0].numpy()
        exact = values.astype(np.float64) * factor / largest * 65535 / 256
        assert np.abs(found - exact).max() <= 1.0, "rounded to 16 bits, then cut to 8"
        assert len(np.unique(found)) > 200


def test_image_folder_refuses_colours_of_12_bits(tmp_path):
    """Pillow gives the upper 8 of 16 bits alone."""
    write(tmp_path, [(28, 28)])
    path = tmp_path / "train" / "cat" / "0.png"
    for shift, refused in ((0, False), (4, True)):
        colours = np.full((28, 28, 3), 40_000 >> shift, dtype=np.uint16)
        path.write_bytes(png_of_16_bits(colours))
        if refused:
            with pytest.raises(DataError, match="16-bit colour with values below 4,096"):
                load(tmp_path)
            with pytest.raises(
                DataError, match="16-bit colour, of which the upper 8 bits are read, but data.bits is 12"
            ):
                load(tmp_path, bits=12)
        else:
            assert load(tmp_path).train.images[0].unique().tolist() == [40_000 >> 8]


def png_of_16_bits(colours: np.ndarray) -> bytes:
    """A PNG with 16 bits a channel, which Pillow cannot write; (H, W, 3) uint16."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = colours.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_image_folder_takes_max_samples(tmp_path):
    write(tmp_path)
    whole, few = load(tmp_path, image_size=16), load(tmp_path, image_size=16, max_samples=3)
    assert len(few.train) == 3
    rows = stratified_rows(whole.train.labels, 3)
    assert torch.equal(few.train.images, whole.train.images[rows])
    assert len(set(few.train.labels.tolist())) == min(3, len(whole.train.classes))
    assert len(few.test) == 10


def test_image_folder_explains_what_is_missing(tmp_path):
    layout = "expected folders train/CLASS/IMAGE and test/CLASS/IMAGE"
    with pytest.raises(DataError, match=f"nowhere does not exist; {layout}"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"holds no images; {layout}"):
        load(tmp_path)
    write(tmp_path, test="elsewhere")
    with pytest.raises(DataError, match=f"is a file; expected the folder that it is in, {tmp_path}/train/cat"):
        load(tmp_path / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match=f"data.dir is not given; {layout}"):
        data.load("image_folder")
    with pytest.raises(ConfigError, match="nothing to fetch"):
        load(tmp_path, download=True)
    (tmp_path / "elsewhere").rename(tmp_path / "val")
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "bird")
    with pytest.raises(DataError, match="bird: not one of the 2 classes of the training part"):
        load(tmp_path, image_size=16)


def test_image_folder_names_an_unreadable_image(tmp_path):
    write(tmp_path)
    path = tmp_path / "test" / "dog" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=f"{path}: not a readable image"):
        load(tmp_path, image_size=16)
    other = tmp_path / "train" / "cat" / "4.png"
    other.write_bytes(b"no image")
    both = f"2 of 20 images cannot be read: {other}: not a readable image: .*; {path}: not a readable image"
    with pytest.raises(DataError, match=both):
        load(tmp_path, image_size=16)
    with pytest.raises(DataError, match=both):
        FILES.pack(DatasetRequest(dir=str(tmp_path), image_size=16), out=None, force=False, on_progress=lambda *_: None)
