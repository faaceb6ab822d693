"""The fifteen corruptions made on the fly: pure, increasing with severity, for every size, grey and colour."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from mbcl import data
from mbcl.data.corruptions.strengths import STRENGTHS, Strength
from mbcl.errors import ConfigError

STANDARD = (
    "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog brightness "
    "contrast elastic_transform pixelate jpeg_compression"
).split()
RANDOM = set(STANDARD) - {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}


def photographs(size: int, channels: int, num: int) -> Tensor:
    """Parts of scikit-learn's two photographs, resized."""
    resized = []
    for row in range(num):
        whole = load_sample_image(("china.jpg", "flower.jpg")[row % 2])
        part = Image.fromarray(whole[20 * row : 20 * row + 224, 40 * row : 40 * row + 224])
        resized.append(np.asarray(part.resize((size, size), Image.Resampling.BOX)))
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)[:, :channels].contiguous()


def corrupted(images: Tensor, corruption: str, severity: int = 3, seed: int = 0, positions: Tensor | None = None):
    indices = torch.arange(len(images)) if positions is None else positions
    return data.corrupt(images, corruption=corruption, severity=severity, seed=seed, positions=indices)


def test_corruptions_have_the_standard_names():
    assert list(data.CORRUPTIONS) == STANDARD == list(STRENGTHS)


@pytest.mark.parametrize("corruption", STANDARD)
def test_corrupt_is_independent_of_the_batch(corruption, monkeypatch):
    images, positions = photographs(16, 3, 6), torch.tensor([4, 11, 3, 900_000_000_000, 0, 7])
    whole = corrupted(images, corruption, positions=positions)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    for part in torch.randperm(6, generator=torch.Generator().manual_seed(0)).split(4):
        assert torch.equal(corrupted(images[part], corruption, positions=positions[part]), whole[part])
    monkeypatch.setattr("mbcl.data.corruptions._CHUNK_ELEMENTS", 2 * 16 * 16 * 3)
    assert torch.equal(corrupted(images, corruption, positions=positions), whole)


@pytest.mark.parametrize("corruption", STANDARD)
def test_corrupt_draws_by_seed_and_position(corruption):
    images = photographs(24, 3, 1).expand(2, -1, -1, -1)
    first, second = corrupted(images, corruption)
    other = corrupted(images, corruption, seed=1)[0]
    differs = corruption in RANDOM
    assert torch.equal(first, second) != differs
    assert torch.equal(first, other) != differs


def test_corrupt_leaves_global_generators_alone():
    images = photographs(12, 3, 2)
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        outputs.append(torch.cat([corrupted(images, name) for name in STANDARD]))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(*outputs)


@pytest.mark.parametrize("size, channels, num", [(8, 1, 64), (28, 1, 8), (32, 3, 8), (64, 3, 6), (224, 3, 2)])
def test_corrupt_increases_with_severity(size, channels, num):
    images = data.load("digits").test.images[:num] if size == 8 else photographs(size, channels, num)
    for corruption in STANDARD:
        distances = []
        for severity in (1, 2, 3, 4, 5):
            corrupted_images = corrupted(images, corruption, severity)
            distances.append(float((corrupted_images.float() - images.float()).abs().mean()))
        assert distances[0] > 0.8, (corruption, distances)
        assert distances == sorted(set(distances)), (corruption, distances)


@pytest.mark.parametrize("shape", [(3, 8, 12), (1, 9, 8), (2, 8, 8), (4, 10, 10), (3, 1, 1)])
def test_corrupt_takes_images_of_any_shape(shape):
    images = torch.arange(2 * np.prod(shape)).reshape(2, *shape).remainder(256).to(torch.uint8)
    for corruption in STANDARD:
        for severity in (1, 5):
            assert corrupted(images, corruption, severity).shape == images.shape
    assert corrupted(images[:0], "snow").shape == (0, *shape)


# -- each corruption against its formula or a library --------------------------------------------------------------


def flat(value: int, size: int = 32, num: int = 8) -> Tensor:
    return torch.full((num, 3, size, size), value, dtype=torch.uint8)


def test_corrupt_noise_has_the_published_distribution():
    noisy = corrupted(flat(128), "gaussian_noise", 3).double() / 255 - 128 / 255
    assert float(noisy.mean()) == pytest.approx(0, abs=0.002)
    assert float(noisy.std()) == pytest.approx(0.08, rel=0.02)
    shot = corrupted(flat(128), "shot_noise", 5).double() / 255
    assert float(shot.mean()) == pytest.approx(128 / 255, abs=0.003)
    assert float(shot.std()) == pytest.approx((128 / 255 / 50) ** 0.5, rel=0.03)
    impulse = corrupted(flat(128), "impulse_noise", 5)
    for value in (0, 255):
        assert float((impulse == value).double().mean()) == pytest.approx(0.035, rel=0.15)
    assert set(impulse.unique().tolist()) == {0, 128, 255}


@pytest.mark.parametrize("corruption", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform"])
def test_corrupt_leaves_flat_images_where_it_only_moves_pixels(corruption):
    for size in (8, 32):
        assert torch.equal(corrupted(flat(77, size), corruption, 5), flat(77, size))


def test_corrupt_contrast_and_brightness_equal_their_formulas():
    import colorsys

    images = photographs(32, 3, 2)
    x = images.double() / 255
    mean = x.mean(dim=(2, 3), keepdim=True)
    expected = ((mean + 0.4 * (x - mean)) * 255).round().to(torch.uint8)
    assert torch.equal(corrupted(images, "contrast", 3), expected)
    brightened = corrupted(images, "brightness", 3)[0].permute(1, 2, 0).reshape(-1, 3)
    pixels = x[0].permute(1, 2, 0).reshape(-1, 3).tolist()
    hsv = (colorsys.rgb_to_hsv(*pixel) for pixel in pixels)
    expected_brightened = (
        torch.tensor([colorsys.hsv_to_rgb(hue, depth, min(value + 0.15, 1.0)) for hue, depth, value in hsv]) * 255
    )
    assert (brightened.float() - expected_brightened).abs().max() <= 0.51


def test_corrupt_jpeg_and_pixelate_equal_pillow():
    import io

    image = photographs(64, 3, 1)
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    quality, share = (
        round(STRENGTHS["jpeg_compression"]["quality"].at(4, 64)),
        STRENGTHS["pixelate"]["share"].at(4, 64),
    )
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    corrupted_image = corrupted(image, "jpeg_compression", 4)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(corrupted_image, np.asarray(Image.open(stream)))
    small = picture.resize((round(64 * share),) * 2, Image.Resampling.BOX)
    corrupted_image = corrupted(image, "pixelate", 4)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(corrupted_image, np.asarray(small.resize((64, 64), Image.Resampling.NEAREST)))


def test_corrupt_defocus_spreads_a_point_over_a_disc():
    point = torch.zeros(1, 1, 224, 224, dtype=torch.uint8)
    point[..., 108:117, 108:117] = 255
    blurred = corrupted(point, "defocus_blur", 5)[0, 0].double()
    assert float(blurred.sum()) == pytest.approx(float(point.sum()), rel=0.01)
    rows = torch.arange(224, dtype=torch.float64)
    spread = float((blurred.sum(1) * (rows - 112) ** 2).sum() / blurred.sum())
    assert spread == pytest.approx(
        10**2 / 4 + (9**2 - 1) / 12, rel=0.03
    )  # the variance of a disc plus that of the square


def test_corrupt_motion_blurs_along_one_line():
    point = torch.zeros(8, 1, 65, 65, dtype=torch.uint8)
    point[..., 32, 32] = 255
    for image in corrupted(point, "motion_blur", 5)[:, 0].double():
        rows, columns = image.nonzero().T.double() - 32
        assert columns.min() >= -1
        assert columns.max() > 2
        slope = float((rows * columns).sum() / (columns**2).sum())
        assert abs(slope) < 1.05
        assert (rows - slope * columns).abs().max() < 1.6


# -- strengths -----------------------------------------------------------------------------------------------------


def test_strengths_equal_the_published_ones_at_32_and_224_pixels():
    assert [STRENGTHS["gaussian_noise"]["deviation"].at(s, 32) for s in (1, 5)] == [0.04, 0.10]
    assert [STRENGTHS["contrast"]["keep"].at(s, 224) for s in (1, 5)] == pytest.approx([0.4, 0.05])
    between = Strength((1, 1, 1, 1, 1), (9, 9, 9, 9, 9))
    assert between.at(1, round((32 * 224) ** 0.5)) == pytest.approx(3, rel=0.01)
    assert between.at(1, 8) == 1
    length = Strength((2, 2, 2, 2, 2), (6, 6, 6, 6, 6), pixels=True)
    assert [length.at(1, side) for side in (8, 16, 32, 448)] == pytest.approx([0.5, 1, 2, 12])


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"corruption": "gausian_noise"}, "unknown corruption 'gausian_noise'; did you mean 'gaussian_noise'"),
        ({"severity": 0}, r"severity must be a whole number in 1..5, found 0"),
        ({"severity": True}, "found True"),
        ({"images": torch.zeros(2, 3, 8, 8)}, r"uint8, found \(2, 3, 8, 8\) torch.float32"),
        ({"positions": torch.arange(3)}, r"2 images need as many int64 positions, found \(3,\)"),
    ],
)
def test_corrupt_refuses_bad_input(changes, text):
    arguments = {"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "corruption": "fog", "severity": 1, "seed": 0}
    arguments |= {"positions": torch.arange(2)} | changes
    with pytest.raises(ConfigError, match=text):
        data.corrupt(arguments.pop("images"), **arguments)
