"""Views: pure functions of (seed, epoch, position, view), with the distribution of torchvision's transforms."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from mbcl import data
from mbcl.data import IDENTITY, ImageSet, ViewRecipe
from mbcl.data.views.augment import _grid, blur, jitter, resample
from mbcl.data.views.random_parameters import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewParameters, draw
from mbcl.errors import ConfigError

COLOUR = ViewRecipe(rotation=20.0, blur_sigma=(0.1, 1.0), blur_probability=0.5)


def pictures(num: int, channels: int, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, channels, size, size), dtype=torch.uint8, generator=generator)


def image_set(
    channels: int, size: int, recipe: ViewRecipe = IDENTITY, mean: float = 0.5, std: float = 0.25
) -> ImageSet:
    means, stds = (mean,) * channels, (std,) * channels
    return ImageSet(pictures(1, channels), torch.tensor([0]), "pictures", recipe, means, stds, image_size=size)


def view_of(
    pixels: Tensor, positions: Tensor, recipe: ViewRecipe, *, out_size: int = 0, seed=0, epoch=0, view=0, **normal
) -> Tensor:
    images = image_set(pixels.shape[1], out_size or pixels.shape[-1], recipe, **normal)
    return data.make_views(pixels, positions, images=images, seed=seed, epoch=epoch, view=view)


def parameters(num: int, recipe: ViewRecipe, height: int = 224, width: int = 224, **changes) -> ViewParameters:
    keys = {"seed": 0, "epoch": 0, "view": 0} | changes
    return draw(torch.arange(num), recipe=recipe, height=height, width=width, **keys)


# -- purity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels, recipe", [(1, data.load("digits").train.recipe), (3, COLOUR), (3, ViewRecipe())])
@pytest.mark.parametrize("out_size", [5, 8, 13])
def test_augment_is_independent_of_the_batch(channels, recipe, out_size):
    images = pictures(64, channels)
    whole = view_of(images, torch.arange(64), recipe, out_size=out_size)
    assert whole.shape == (64, channels, out_size, out_size)
    assert whole.dtype == torch.float32
    assert torch.isfinite(whole).all()
    for size in (1, 2, 5, 32, 63):
        rows = torch.randperm(64, generator=torch.Generator().manual_seed(size))
        parts = [view_of(images[part], part, recipe, out_size=out_size) for part in rows.split(size)]
        # Bit-equal on our machines; other processors may choose other kernels for other shapes.
        assert (torch.cat(parts) - whole[rows]).abs().max() < 2e-6


@pytest.mark.parametrize("channels, recipe", [(1, COLOUR), (3, COLOUR), (3, ViewRecipe())])
@pytest.mark.parametrize("num", [1, 20])
def test_views_of_one_call_are_those_of_a_call_each(channels, recipe, num):
    images, positions = pictures(num, channels), torch.arange(num)
    both = view_of(images, positions, recipe, view=(1, 0))
    each = torch.cat([view_of(images, positions, recipe, view=view) for view in (1, 0)])
    # Bit-equal on our machines; other processors may choose other kernels for other shapes.
    assert (both - each).abs().max() < 2e-6


def test_augment_depends_on_every_key():
    images, positions = pictures(8, 1), torch.arange(8)
    first = view_of(images, positions, COLOUR)
    assert torch.equal(first, view_of(images, positions, COLOUR))
    for change in ({"seed": 1}, {"epoch": 1}, {"view": 1}):
        other = view_of(images, positions, COLOUR, **change)
        assert (other != first).flatten(1).any(dim=1).all(), change


def test_augment_leaves_global_generators_alone():
    state = torch.get_rng_state()
    view_of(pictures(4, 3), torch.arange(4), COLOUR)
    assert torch.equal(state, torch.get_rng_state())


def test_draw_of_one_strength_changes_no_other_parameters():
    weak, strong = parameters(100, ViewRecipe(jitter=(0.1, 0.1, 0.1, 0.0))), parameters(100, ViewRecipe(rotation=0))
    assert torch.equal(weak.theta, strong.theta)
    assert torch.equal(weak.sigma, strong.sigma)
    assert torch.equal(weak.order, strong.order)


def test_augment_ignores_autocast():
    images, positions = pictures(8, 3), torch.arange(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        view = view_of(images, positions, COLOUR)
    assert torch.equal(view, view_of(images, positions, COLOUR))


# -- identity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_augment_with_identity_is_the_normalised_image(channels):
    images = pictures(5, channels)
    expected = (images.float() / 255 - 0.5) / 0.25
    assert torch.equal(view_of(images, torch.arange(5), IDENTITY), expected)
    assert torch.equal(data.clean_views(images, images=image_set(channels, 8)), expected)


def test_augment_resamples_a_whole_crop_exactly():
    images = pictures(5, 1)
    mirrored = view_of(images, torch.arange(5), dataclasses.replace(IDENTITY, flip_probability=1.0))
    expected = (images.float() / 255 - 0.5).flip(3) / 0.25
    torch.testing.assert_close(mirrored, expected, atol=1e-5, rtol=0)


def test_clean_resizes_with_a_low_pass_filter():
    flat = torch.full((2, 1, 32, 32), 100, dtype=torch.uint8)
    flat[:, :, ::2] = 200
    small = data.clean_views(flat, images=image_set(1, 8, mean=0.0, std=1.0))
    assert small.shape == (2, 1, 8, 8)
    torch.testing.assert_close(small, torch.full_like(small, 150 / 255), atol=0.03, rtol=0)


def test_augment_and_clean_take_empty_batches():
    images, positions = pictures(0, 1), torch.arange(0)
    assert view_of(images, positions, COLOUR, out_size=9).shape == (0, 1, 9, 9)
    assert data.clean_views(images, images=image_set(1, 9)).shape[0] == 0


def test_make_views_uses_the_image_set():
    part = data.load("digits", image_size=12).test
    rows = torch.tensor([3, 1])
    view = data.make_views(part.images[rows], rows, images=part, seed=4, epoch=2, view=1)
    assert view.shape == data.clean_views(part.images[rows], images=part).shape == (2, 1, 12, 12)
    whole = torch.arange(len(part))
    everything = data.make_views(part.images, whole, images=part, seed=4, epoch=2, view=1)
    assert (everything[rows] - view).abs().max() < 2e-6


# -- distributions against torchvision -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "height, width, scale, ratio",
    [
        (224, 224, (0.08, 1.0), (3 / 4, 4 / 3)),
        (100, 300, (0.5, 1.0), (3 / 4, 4 / 3)),  # often no crop fits: the fallback is used
        (300, 100, (0.9, 1.0), (1.0, 2.0)),
    ],
)
def test_draw_crops_like_torchvision(height, width, scale, ratio):
    from torchvision.transforms import RandomResizedCrop

    num = 2000
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.zeros(1, height, width)
        boxes = torch.tensor([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(num)]).double()
    top, left, tall, wide = boxes.T
    drawn = parameters(num, ViewRecipe(crop_scale=scale, crop_ratio=ratio, flip_probability=0.0), height, width)
    our_wide, our_tall = drawn.theta[:, 0, 0].double() * width, drawn.theta[:, 1, 1].double() * height
    our_left = (drawn.theta[:, 0, 2].double() + 1) / 2 * width - our_wide / 2
    our_top = (drawn.theta[:, 1, 2].double() + 1) / 2 * height - our_tall / 2
    # torchvision's crops have whole pixels; ours are rounded for the comparison only.
    pairs = {"wide": (our_wide, wide), "tall": (our_tall, tall), "left": (our_left, left), "top": (our_top, top)}
    for name, (ours, theirs) in pairs.items():
        distance = stats.ks_2samp(ours.round().numpy(), theirs.numpy()).statistic
        assert distance < 0.06, (name, distance)
    area, their_area = our_wide.round() * our_tall.round(), wide * tall
    assert stats.ks_2samp(area.numpy(), their_area.numpy()).statistic < 0.06
    assert stats.ks_2samp((our_wide / our_tall).numpy(), (wide / tall).numpy()).statistic < 0.06 or height != width
    for ours, theirs in ((our_wide, wide), (our_tall, tall)):
        assert float(ours.mean()) == pytest.approx(float(theirs.mean()), rel=0.03)
    assert our_left.min() > -1e-4
    assert our_top.min() > -1e-4
    assert (our_left + our_wide).max() < width + 1e-3
    assert (our_top + our_tall).max() < height + 1e-3


@pytest.mark.parametrize("size", [1, 8, 33])
def test_grid_without_rotation_is_the_affine_grid(size):
    theta = parameters(50, ViewRecipe(), 100, 150).theta
    expected = torch.nn.functional.affine_grid(theta.double(), [50, 1, size, size], align_corners=False)
    # Coordinates are at most 1: the base grid rounds five times, product and sum twice, each by at most 2**-24.
    assert (_grid(theta, size, turned=False).double() - expected).abs().max() <= 7 * 2.0**-24


def test_draw_has_the_recipes_distribution():
    drawn = parameters(5000, ViewRecipe(blur_probability=0.5))
    tolerance = 4 * math.sqrt(0.25 / 5000)
    jittered = (drawn.factors[:, :3] != 1).any(dim=1)
    assert float(jittered.float().mean()) == pytest.approx(0.8, abs=tolerance)
    assert float(drawn.grey.float().mean()) == pytest.approx(0.2, abs=tolerance)
    assert float((drawn.sigma > 0).float().mean()) == pytest.approx(0.5, abs=tolerance)
    assert float((drawn.theta[:, 0, 0] < 0).float().mean()) == pytest.approx(0.5, abs=tolerance)
    limits = [(0.6, 0.8), (0.6, 0.8), (0.8, 0.4), (-0.1, 0.2)]
    for kind, (low, width) in enumerate(limits):
        values = drawn.factors[jittered, kind].numpy()
        assert stats.kstest(values, "uniform", args=(low, width)).pvalue > 1e-4
    assert stats.kstest(drawn.sigma[drawn.sigma > 0].numpy(), "uniform", args=(0.1, 1.9)).pvalue > 1e-4
    orders, counts = drawn.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_draw_of_two_views_is_independent():
    first, second = (parameters(5000, COLOUR, view=view) for view in (0, 1))
    for a, b in ((first.theta[:, 0, 0], second.theta[:, 0, 0]), (first.factors[:, 0], second.factors[:, 0])):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / math.sqrt(5000)


def test_draw_rotates_in_pixel_space():
    recipe = dataclasses.replace(IDENTITY, rotation=30.0, crop_scale=(0.3, 0.8), crop_ratio=(0.5, 2.0))
    theta = parameters(500, recipe, 100, 200).theta.double()
    # Unit steps of the output, in pixels of the input: they stay at right angles.
    across = theta[:, :, 0] * torch.tensor([200.0, 100.0])
    down = theta[:, :, 1] * torch.tensor([200.0, 100.0])
    assert (across * down).sum(1).abs().max() < 1e-2
    angles = torch.rad2deg(torch.atan2(across[:, 1], across[:, 0]))
    assert stats.kstest(angles.numpy(), "uniform", args=(-30, 60)).pvalue > 1e-4


# -- pixels against torchvision ------------------------------------------------------------------------------------


def fixed(factors: list[float], order: list[int], num: int) -> ViewParameters:
    drawn = parameters(num, IDENTITY)
    return dataclasses.replace(
        drawn, factors=torch.tensor([factors] * num), order=torch.tensor([order] * num), grey=drawn.grey
    )


@pytest.mark.parametrize(
    "order", [[BRIGHTNESS, CONTRAST, SATURATION, HUE], [HUE, SATURATION, CONTRAST, BRIGHTNESS], [2, 0, 3, 1]]
)
@pytest.mark.parametrize("factors", [[1.4, 0.6, 1.2, 0.1], [0.7, 1.3, 0.8, -0.1], [1.0, 1.0, 1.0, 0.0]])
def test_jitter_equals_torchvision(order, factors):
    import torchvision.transforms.functional as TF

    functions = {
        BRIGHTNESS: TF.adjust_brightness,
        CONTRAST: TF.adjust_contrast,
        SATURATION: TF.adjust_saturation,
        HUE: TF.adjust_hue,
    }
    x = pictures(6, 3).float() / 255
    expected = x
    for kind in order:
        expected = functions[kind](expected, factors[kind])
    # torchvision's weight of red is 0.2989
    torch.testing.assert_close(jitter(x, fixed(factors, order, 6)), expected, atol=1e-4, rtol=0)


def test_jitter_uses_each_samples_parameters_and_order():
    import torchvision.transforms.functional as TF

    functions = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    x, drawn = pictures(200, 3).float() / 255, parameters(200, ViewRecipe())
    before = x.clone()
    jittered = jitter(x, drawn)
    assert torch.equal(x, before)
    for row in range(200):
        expected = x[row]
        for kind in drawn.order[row].tolist():
            expected = functions[kind](expected, float(drawn.factors[row, kind]))
        torch.testing.assert_close(jittered[row], expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("turns", [-0.5, -0.31, 0.05, 0.25, 0.5])
def test_jitter_of_hue_equals_torchvision_for_all_colours(turns):
    import torchvision.transforms.functional as TF

    levels = torch.linspace(0, 1, 12)
    x = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 36, 48).contiguous()  # edges, grey, black, white
    jittered = jitter(x, fixed([1.0, 1.0, 1.0, turns], [HUE, 0, 1, 2], 1))
    torch.testing.assert_close(jittered, TF.adjust_hue(x, turns), atol=1e-5, rtol=0)
    grey = (x.amax(1) == x.amin(1)).expand(3, -1, -1)
    assert torch.equal(jittered[0][grey], x[0][grey])


def test_jitter_of_grey_images_is_brightness_and_contrast():
    import torchvision.transforms.functional as TF

    x = pictures(6, 1).float() / 255
    expected = TF.adjust_contrast(TF.adjust_brightness(x, 1.3), 0.7)
    jittered = jitter(x, fixed([1.3, 0.7, 1.2, 0.1], [BRIGHTNESS, SATURATION, HUE, CONTRAST], 6))
    torch.testing.assert_close(jittered, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_equals_torchvision(sigma):
    import torchvision.transforms.functional as TF

    x = pictures(4, 3, size=24).float() / 255
    sigmas = torch.tensor([sigma, 0.0, sigma, 0.0])
    blurred = blur(x, sigmas, 2.0)
    expected = TF.gaussian_blur(x, [13, 13], [sigma, sigma])
    torch.testing.assert_close(blurred[::2], expected[::2], atol=1e-5, rtol=0)
    torch.testing.assert_close(blurred[1::2], x[1::2], atol=1e-7, rtol=0)


def test_blur_leaves_samples_without_blur_alone():
    x = pictures(4, 3, size=24).float() / 255
    sigma = torch.tensor([0.0, 1.0, 0.0, 0.5])
    blurred = blur(x, sigma, 2.0)
    assert torch.equal(blurred[::2], x[::2])
    assert (blurred[1::2] != x[1::2]).flatten(1).any(dim=1).all()
    assert torch.equal(blur(x, torch.zeros(4), 2.0), x)


def test_blur_takes_images_smaller_than_its_kernel():
    assert torch.isfinite(blur(torch.rand(2, 1, 3, 3), torch.tensor([2.0, 0.1]), 2.0)).all()
    one = torch.rand(2, 1, 1, 1)
    assert torch.equal(blur(one, torch.tensor([2.0, 0.1]), 2.0), one)


def with_parameters(images: Tensor, recipe: ViewRecipe, monkeypatch, out_size: int, **changes) -> Tensor:
    """Views of images with some given parameters."""
    drawn = dataclasses.replace(parameters(len(images), IDENTITY, *images.shape[2:]), **changes)
    monkeypatch.setattr("mbcl.data.views.augment.draw", lambda *_, **__: drawn)
    return view_of(images, torch.arange(len(images)), recipe, mean=0.0, std=1.0, out_size=out_size)


@pytest.mark.parametrize("out_size", [24, 32])  # images of 20 x 30 pixels: some crops shrink, or none
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("top, left, tall, wide", [(0, 0, 20, 30), (3, 5, 9, 11), (10, 2, 6, 6)])
def test_augment_crops_and_flips_like_torchvision(top, left, tall, wide, flip, out_size, monkeypatch):
    import torchvision.transforms.functional as TF

    images = pictures(2, 3, size=30)[:, :, :20]
    across, down = wide / 30 * (-1 if flip else 1), tall / 20
    centre = [2 * (left + wide / 2) / 30 - 1, 2 * (top + tall / 2) / 20 - 1]
    theta = torch.tensor([[[across, 0, centre[0]], [0, down, centre[1]]]] * 2)
    recipe = dataclasses.replace(IDENTITY, flip_probability=0.5)
    view = with_parameters(images, recipe, monkeypatch, out_size, theta=theta)
    size = [out_size, out_size]
    expected = TF.resized_crop(images.float() / 255, top, left, tall, wide, size, antialias=True)
    expected = TF.hflip(expected) if flip else expected
    # At a crop's border torchvision repeats the crop's last pixel; ours reads the image beyond it if none shrinks.
    edge = math.ceil(out_size / min(tall, wide) / 2) if out_size > 30 else 0
    inner = slice(edge, out_size - edge)
    torch.testing.assert_close(view[..., inner, inner], expected[..., inner, inner], atol=1e-4, rtol=0)


def affine(top: float, left: float, tall: float, wide: float, image: Tensor, degrees: float = 0.0) -> list[list[float]]:
    """Map a crop of an image, (C, H, W), turned about its centre, to rows of ``theta``."""
    height, width = image.shape[1:]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across = [wide / width * cosine, -tall / width * sine, 2 * (left + wide / 2) / width - 1]
    return [across, [wide / height * sine, tall / height * cosine, 2 * (top + tall / 2) / height - 1]]


def test_resample_shrinks_each_crop_like_torchvision():
    from torchvision.transforms.v2.functional import resized_crop

    boxes = [(0, 0, 36, 50), (3, 5, 30, 11), (10, 2, 6, 6), (0, 20, 17, 30), (7, 7, 16, 16), (35, 49, 1, 1)]
    images = pictures(len(boxes), 3, size=50)[:, :, :36].double() / 255
    theta = torch.tensor([affine(*box, image) for box, image in zip(boxes, images, strict=True)], dtype=torch.float64)
    expected = torch.stack(
        [resized_crop(image, *box, [16, 16], antialias=True) for box, image in zip(boxes, images, strict=True)]
    )
    assert (resample(images, theta, 16, turned=False) - expected).abs().max() < 1e-9
    mirrored = theta * torch.tensor([-1.0, 1.0, 1.0])
    mirrored[:, 1, 0] = 0
    assert (resample(images, mirrored, 16, turned=False) - expected.flip(3)).abs().max() < 1e-9


def test_resample_of_turned_crops_filters_along_the_axes_of_the_image():
    from torchvision.transforms.v2.functional import resized_crop

    images, inner = pictures(4, 3, size=64).double() / 255, slice(1, -1)
    # An output pixel is 3 x 5 input pixels, so its centre is that of an input pixel and no interpolation takes place.
    theta = torch.tensor([affine(12, 20, 40, 24, image, degrees=90) for image in images], dtype=torch.float64)
    turned = resample(images, theta, 8, turned=True).rot90(-1, (2, 3))
    expected = resized_crop(images, 20, 12, 24, 40, [8, 8], antialias=True)
    assert (turned - expected)[..., inner, inner].abs().max() < 1e-9
    small = torch.tensor([affine(20, 20, 7, 6, image, degrees=30) for image in images], dtype=torch.float64)
    grid = torch.nn.functional.affine_grid(small, [4, 3, 8, 8], align_corners=False)
    expected = torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    assert (resample(images, small, 8, turned=True) - expected).abs().max() < 1e-9


@pytest.mark.parametrize("rotation", [0.0, 20.0])
def test_views_of_stripes_finer_than_their_pixels_are_flat(rotation):
    stripes = torch.zeros(64, 1, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    recipe = dataclasses.replace(IDENTITY, crop_scale=(0.5, 1.0), crop_ratio=(3 / 4, 4 / 3), rotation=rotation)
    view = view_of(stripes, torch.arange(64), recipe, out_size=16, mean=0.0, std=1.0)
    # A triangle of half-width s >= 2 pixels passes at most 1/s² of the stripes' amplitude, and more at a cut edge.
    assert view.std(dim=(1, 2, 3)).max() < 0.5 / 4
    assert (view.mean(dim=(1, 2, 3)) - 0.5).abs().max() < 0.5 / 4


def test_augment_converts_to_grey_like_torchvision(monkeypatch):
    import torchvision.transforms.functional as TF

    images, grey = pictures(4, 3), torch.tensor([True, False, True, False])
    recipe = dataclasses.replace(IDENTITY, grey_probability=0.5)
    view = with_parameters(images, recipe, monkeypatch, 8, grey=grey)
    x = images.float() / 255
    expected = torch.where(grey[:, None, None, None], TF.rgb_to_grayscale(x, 3), x)
    torch.testing.assert_close(view, expected, atol=1e-3, rtol=0)


def test_augment_has_the_distribution_of_torchvisions_chain():
    """All steps of the published chain on many views of one picture, compared by statistics of the pixels."""
    from torchvision.transforms import v2

    recipe, num = ViewRecipe(), 1500
    small = torch.randint(0, 256, (1, 3, 5, 5), generator=torch.Generator().manual_seed(3)).float()
    image = torch.nn.functional.interpolate(small, size=(32, 32), mode="bicubic").clamp(0, 255).to(torch.uint8)
    ours = view_of(image.expand(num, -1, -1, -1), torch.arange(num), recipe, mean=0.0, std=1.0)
    chain = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=recipe.crop_scale, ratio=recipe.crop_ratio),
            v2.RandomApply([v2.ColorJitter(*recipe.jitter)], p=recipe.jitter_probability),
            v2.RandomGrayscale(recipe.grey_probability),
            v2.GaussianBlur(13, sigma=recipe.blur_sigma),
            v2.RandomHorizontalFlip(recipe.flip_probability),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torch.stack([chain(image[0].float() / 255) for _ in range(num)])
    statistics = {
        "level": lambda views: views.mean(dim=(1, 2, 3)),
        "spread": lambda views: views.std(dim=(1, 2, 3)),
        "colour": lambda views: (views[:, 0] - views[:, 2]).mean(dim=(1, 2)),
        "corner": lambda views: views[:, 1, 0, 0],
        "centre": lambda views: views[:, 1, 16, 16],
        "sharpness": lambda views: views.diff(dim=3).abs().mean(dim=(1, 2, 3)),
    }
    for name, statistic in statistics.items():
        distance = stats.ks_2samp(statistic(ours).numpy(), statistic(theirs).numpy()).statistic
        assert distance < 0.07, (name, distance)  # 0.0594 is the 99 % point of equal distributions


def test_augment_makes_grey_images_of_equal_channels():
    recipe = dataclasses.replace(IDENTITY, grey_probability=1.0)
    view = view_of(pictures(4, 3), torch.arange(4), recipe)
    assert (view - view[:, :1]).abs().max() == 0


# -- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale .* found \(0.0, 1.0\)"),
        ({"crop_scale": (0.5, 1.1)}, r"<= 1, found \(0.5, 1.1\)"),
        ({"crop_scale": (0.9, 0.5)}, r"found \(0.9, 0.5\)"),
        ({"crop_ratio": (-1.0, 1.0)}, r"crop_ratio .* found \(-1.0, 1.0\)"),
        ({"blur_sigma": (0.1, math.inf)}, "blur_sigma"),
        ({"flip_probability": 1.5}, r"flip_probability must be in \[0, 1\], found 1.5"),
        ({"rotation": -1.0}, "found -1.0"),
        ({"jitter": (0.4, 0.4, 0.4)}, "four strengths"),
        ({"jitter": (0.4, -0.4, 0.4, 0.1)}, "at least 0"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "hue jitter must be at most 0.5 turns, found 0.6"),
    ],
)
def test_view_recipe_refuses_values_out_of_range(changes, text):
    with pytest.raises(ConfigError, match=text):
        ViewRecipe(**changes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_augment_on_the_gpu_equals_the_cpu():
    for channels in (1, 3):
        images, positions = pictures(32, channels), torch.arange(32)
        expected = view_of(images, positions, COLOUR)
        for device in ("cpu", "cuda"):
            view = view_of(images.cuda(), positions.to(device), COLOUR).cpu()
            torch.testing.assert_close(view, expected, atol=1e-4, rtol=0)
