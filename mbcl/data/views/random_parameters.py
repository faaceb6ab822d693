"""Random augmentation parameters, drawn per sample before any pixel is processed.

All parameters are drawn for all samples, even those that the recipe does not use. So a slot of the random stream has
the same meaning under every recipe, and changing one strength leaves the other draws unchanged.

Letters: B samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbcl.data.views.counter_rng import uniforms
from mbcl.data.views.recipe import ViewRecipe
from mbcl.seeding import derive

_ATTEMPTS = 10  # as torchvision's RandomResizedCrop, which falls back to a centre crop after ten
_FLIP, _ROTATION, _JITTER, _GREY, _BLUR, _SIGMA = range(6)
_FACTORS = 6  # four slots: brightness, contrast, saturation, hue
_ORDER = 10  # four slots; their argsort is the order of the four jitter steps
_LEFT, _TOP = 14, 15
_AREA = 16  # first of _ATTEMPTS areas, followed by _ATTEMPTS ratios
_NUM = _AREA + 2 * _ATTEMPTS

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class ViewParameters:
    """Augmentation parameters of B samples, on the device of their positions.

    Args:
        theta: (B, 2, 3) float32, affine map from output to input coordinates, both in [-1, 1] (``affine_grid``,
            ``align_corners=False``).
        factors: (B, 4) float32: brightness, contrast, saturation (neutral value 1), hue (in turns, neutral value 0).
        order: (B, 4) int64: the factor that is applied in the first, second, … step.
        grey: (B,) bool, whether the sample is converted to greyscale.
        sigma: (B,) float32, standard deviation of the blur in output pixels; 0 for no blur.
    """

    theta: Tensor
    factors: Tensor
    order: Tensor
    grey: Tensor
    sigma: Tensor


def draw(
    positions: Tensor, *, recipe: ViewRecipe, seed: int, epoch: int, view: int | Sequence[int], height: int, width: int
) -> ViewParameters:
    """Draw the parameters of one view of the samples at ``positions``, (B,) int64, on the same device.

    Several views give their samples one view after the other.
    ``height`` and ``width`` are those of the images before the crop, in pixels.
    """
    views = (view,) if isinstance(view, int) else view
    u = torch.cat([uniforms(derive(seed, "views", epoch, index), positions, _NUM) for index in views])
    sigma = recipe.blur_sigma[0] + (recipe.blur_sigma[1] - recipe.blur_sigma[0]) * u[:, _SIGMA]
    return ViewParameters(
        theta=_theta(u, recipe, height, width).float(),
        factors=_factors(u, recipe).float(),
        order=u[:, _ORDER : _ORDER + 4].argsort(dim=1),
        grey=u[:, _GREY] < recipe.grey_probability,
        sigma=torch.where(u[:, _BLUR] < recipe.blur_probability, sigma, 0.0).float(),
    )


def _crop_sizes(u: Tensor, recipe: ViewRecipe, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return widths and heights of the crops, (B,) float64 pixels, and which have a random position, (B,) bool.

    The distribution is that of torchvision's RandomResizedCrop, without its rounding to whole pixels: rounding would
    leave only a handful of sizes on an 8 x 8 image, and the crop is resampled anyway. Rejection sampling takes the
    first of ten (area, ratio) pairs that fits into the image. If none fits, the crop is the largest one with an allowed
    ratio, at the centre.
    """
    low, high = recipe.crop_scale
    area = height * width * (low + (high - low) * u[:, _AREA : _AREA + _ATTEMPTS])
    log_low, log_high = (math.log(ratio) for ratio in recipe.crop_ratio)
    ratio = torch.exp(log_low + (log_high - log_low) * u[:, _AREA + _ATTEMPTS : _NUM])
    widths, heights = (area * ratio).sqrt(), (area / ratio).sqrt()
    # The tolerance accepts a crop of the whole image whose square root was rounded up.
    fits = (widths <= width * (1 + 1e-9)) & (heights <= height * (1 + 1e-9))
    first_fit = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    whole_ratio = min(max(width / height, recipe.crop_ratio[0]), recipe.crop_ratio[1])
    any_fits = fits.any(dim=1)
    crop_width = torch.where(any_fits, widths.gather(1, first_fit)[:, 0], min(width, height * whole_ratio))
    crop_height = torch.where(any_fits, heights.gather(1, first_fit)[:, 0], min(height, width / whole_ratio))
    return crop_width.clamp(max=width), crop_height.clamp(max=height), any_fits


def _theta(u: Tensor, recipe: ViewRecipe, height: int, width: int) -> Tensor:
    """Compose crop, rotation about the centre of the crop and flip into one affine map, (B, 2, 3) float64."""
    crop_width, crop_height, is_random = _crop_sizes(u, recipe, height, width)
    width_share, height_share = crop_width / width, crop_height / height
    centre_x = torch.where(is_random, 2 * u[:, _LEFT] - 1, 0.0) * (1 - width_share)
    centre_y = torch.where(is_random, 2 * u[:, _TOP] - 1, 0.0) * (1 - height_share)
    mirror = torch.where(u[:, _FLIP] < recipe.flip_probability, -1.0, 1.0).to(torch.float64)
    angle = (2 * u[:, _ROTATION] - 1) * math.radians(recipe.rotation)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    # Rotate in pixel coordinates, not in normalised ones, which would shear a crop that is not square.
    rows = [
        torch.stack((mirror * width_share * cosine, -(crop_height / width) * sine, centre_x), dim=1),
        torch.stack((mirror * (crop_width / height) * sine, height_share * cosine, centre_y), dim=1),
    ]
    return torch.stack(rows, dim=1)


def _factors(u: Tensor, recipe: ViewRecipe) -> Tensor:
    """Return jitter factors, (B, 4) float64; the neutral ones for samples without jitter."""
    low = torch.tensor([*(max(0.0, 1 - s) for s in recipe.jitter[:3]), -recipe.jitter[3]], dtype=torch.float64)
    high = torch.tensor([*(1 + s for s in recipe.jitter[:3]), recipe.jitter[3]], dtype=torch.float64)
    low, high = low.to(u.device), high.to(u.device)
    drawn = low + (high - low) * u[:, _FACTORS : _FACTORS + 4]
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64, device=u.device)
    return torch.where(u[:, _JITTER : _JITTER + 1] < recipe.jitter_probability, drawn, neutral)
