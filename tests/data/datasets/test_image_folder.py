"""Any folder of classes: sizes, layout, damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data.official import write_image
from PIL import Image

from mbcl import data
from mbcl.data.images import stratified_rows
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


def test_image_folder_refuses_nested_images(tmp_path):
    write(tmp_path)
    deep = tmp_path / "train" / "cat" / "old" / "9.png"
    write_image(deep, 0)
    with pytest.raises(DataError, match=f"{deep}: not where images are expected, .*/cat/IMAGE"):
        load(tmp_path, image_size=16)
    deep.parent.rename(deep.parent.with_name("images"))
    with pytest.raises(DataError, match="cat/0.png: not where images are expected, .*/cat/images/IMAGE"):
        load(tmp_path, image_size=16)


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
    with pytest.raises(DataError, match=f"holds no folder train; {layout}"):
        load(tmp_path)
    write(tmp_path, test="elsewhere")
    with pytest.raises(DataError, match=f"has a folder train, but neither test nor val; {layout}"):
        load(tmp_path, image_size=16)
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
