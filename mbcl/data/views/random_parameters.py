"""The random parameters of views: what is done to each sample, before any pixel is touched.

Letters: B samples. All parameters are drawn for all samples, whether the recipe uses them or not, so that a slot's
meaning never depends on the recipe and changing one strength leaves the other draws as they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mbcl.data.views.counter_rng import uniforms
from mbcl.data.views.recipe import ViewRecipe
from mbcl.seeding import derive

_ATTEMPTS = 10  # torchvision's RandomResizedCrop gives up after ten and crops the centre
_FLIP, _ROTATION, _JITTER, _GREY, _BLUR, _SIGMA = range(6)
_FACTORS = 6  # four slots: brightness, contrast, saturation, hue
_ORDER = 10  # four slots, whose ranks are the order of the jitter's four steps
_LEFT, _TOP = 14, 15
_AREA = 16  # then ATTEMPTS areas and ATTEMPTS ratios
_NUM = _AREA + 2 * _ATTEMPTS

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class ViewParameters:
    """What is done to each of B samples, on the device of the positions that they were drawn for.

    Args:
        theta: (B, 2, 3) float32, from output to input, both in [-1, 1] (``affine_grid``, ``align_corners=False``).
        factors: (B, 4) float32: brightness, contrast, saturation (1 changes nothing), hue (turns, 0 changes nothing).
        order: (B, 4) int64: which of the four is the first, second, … step.
        grey: (B,) bool.
        sigma: (B,) float32, standard deviation of the blur in pixels of the output; 0 for no blur.
    """

    theta: Tensor
    factors: Tensor
    order: Tensor
    grey: Tensor
    sigma: Tensor


def draw(
    positions: Tensor, *, recipe: ViewRecipe, seed: int, epoch: int, view: int, height: int, width: int
) -> ViewParameters:
    """Draw the parameters of one view of some samples.

    Args:
        positions: (B,) int64 data-set positions; the parameters live on their device.
        recipe: the strengths.
        seed: what the draw depends on besides position, epoch and view.
        epoch: of the view.
        view: 0, 1, …
        height: of the images that are cropped, pixels.
        width: likewise.
    """
    u = uniforms(derive(seed, "views", epoch, view), positions, _NUM)
    sigma = recipe.blur_sigma[0] + (recipe.blur_sigma[1] - recipe.blur_sigma[0]) * u[:, _SIGMA]
    return ViewParameters(
        theta=_theta(u, recipe, height, width).float(),
        factors=_factors(u, recipe).float(),
        order=u[:, _ORDER : _ORDER + 4].argsort(dim=1),
        grey=u[:, _GREY] < recipe.grey_probability,
        sigma=torch.where(u[:, _BLUR] < recipe.blur_probability, sigma, 0.0).float(),
    )


def _crop_sizes(u: Tensor, recipe: ViewRecipe, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Widths and heights of the crops, (B,) float64 pixels, and which of them are at a random place, (B,) bool.

    Distributed as torchvision's RandomResizedCrop up to rounding: its crops have whole pixels, which on an 8 x 8 image
    leaves a handful of sizes; these do not, because the crop is resampled anyway. The first of ten (area, ratio)
    pairs that fits into the image is taken; if none fits, the largest crop whose ratio is allowed, at the centre.
    """
    low, high = recipe.crop_scale
    area = height * width * (low + (high - low) * u[:, _AREA : _AREA + _ATTEMPTS])
    log_low, log_high = (math.log(ratio) for ratio in recipe.crop_ratio)
    ratio = torch.exp(log_low + (log_high - log_low) * u[:, _AREA + _ATTEMPTS : _NUM])
    widths, heights = (area * ratio).sqrt(), (area / ratio).sqrt()
    # A crop of the whole image must not fail to fit because a square root was rounded up.
    fits = (widths <= width * (1 + 1e-9)) & (heights <= height * (1 + 1e-9))
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    whole_ratio = min(max(width / height, recipe.crop_ratio[0]), recipe.crop_ratio[1])
    some = fits.any(dim=1)
    crop_width = torch.where(some, widths.gather(1, first)[:, 0], min(width, height * whole_ratio))
    crop_height = torch.where(some, heights.gather(1, first)[:, 0], min(height, width / whole_ratio))
    return crop_width.clamp(max=width), crop_height.clamp(max=height), some


def _theta(u: Tensor, recipe: ViewRecipe, height: int, width: int) -> Tensor:
    """Crop, rotation about the crop's centre and flip in one map, (B, 2, 3) float64."""
    crop_width, crop_height, free = _crop_sizes(u, recipe, height, width)
    across, down = crop_width / width, crop_height / height
    centre_x = torch.where(free, 2 * u[:, _LEFT] - 1, 0.0) * (1 - across)
    centre_y = torch.where(free, 2 * u[:, _TOP] - 1, 0.0) * (1 - down)
    mirror = torch.where(u[:, _FLIP] < recipe.flip_probability, -1.0, 1.0).to(torch.float64)
    angle = (2 * u[:, _ROTATION] - 1) * math.radians(recipe.rotation)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    # The rotation is one of pixels: a crop that is not square must not be sheared.
    rows = [
        torch.stack((mirror * across * cosine, -(crop_height / width) * sine, centre_x), dim=1),
        torch.stack((mirror * (crop_width / height) * sine, down * cosine, centre_y), dim=1),
    ]
    return torch.stack(rows, dim=1)


def _factors(u: Tensor, recipe: ViewRecipe) -> Tensor:
    """Jitter factors, (B, 4) float64; those that change nothing where the sample is not jittered."""
    low = torch.tensor([*(max(0.0, 1 - s) for s in recipe.jitter[:3]), -recipe.jitter[3]], dtype=torch.float64)
    high = torch.tensor([*(1 + s for s in recipe.jitter[:3]), recipe.jitter[3]], dtype=torch.float64)
    low, high = low.to(u.device), high.to(u.device)
    drawn = low + (high - low) * u[:, _FACTORS : _FACTORS + 4]
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64, device=u.device)
    return torch.where(u[:, _JITTER : _JITTER + 1] < recipe.jitter_probability, drawn, neutral)
