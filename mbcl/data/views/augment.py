"""Views of images: whole batches augmented at once, each sample with its own parameters, on any device.

A view is a pure function of (seed, epoch, data-set position, view): the same for any batch, rank and number of
workers. The chain is the published one: resized crop, colour jitter, grey, blur, flip, normalise. The flip is part of
the crop's resampling, which changes nothing, as no later step looks at left and right.

Letters: B samples, C channels, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mbcl.data.images import ImageSet
from mbcl.data.views.random_parameters import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewParameters, draw
from mbcl.data.views.recipe import ViewRecipe

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL and torchvision


def make_views(pixels: Tensor, positions: Tensor, *, images: ImageSet, seed: int, epoch: int, view: int) -> Tensor:
    """One augmented, normalised view of each sample, with the strengths and the size of its data set.

    Args:
        pixels: (B, C, H, W) uint8, ``images.pixels(positions)``.
        positions: (B,) int64, their data-set positions.
        images: the data set: recipe, normalisation, size.
        seed: what the view depends on besides position, epoch and view.
        epoch: of the view.
        view: 0 or 1 in training.

    Returns:
        (B, C, S, S) float32 on the device of ``pixels``, with S = ``images.image_size``.
    """
    return augment(
        pixels,
        positions,
        recipe=images.recipe,
        seed=seed,
        epoch=epoch,
        view=view,
        mean=images.mean,
        std=images.std,
        out_size=images.image_size,
    )


def clean_views(pixels: Tensor, *, images: ImageSet) -> Tensor:
    """The samples as they are, (B, C, H, W) uint8 to (B, C, S, S) float32: resized and normalised."""
    return clean(pixels, mean=images.mean, std=images.std, out_size=images.image_size)


@torch.no_grad()
def augment(
    images: Tensor,
    positions: Tensor,
    *,
    recipe: ViewRecipe,
    seed: int,
    epoch: int,
    view: int,
    mean: Sequence[float],
    std: Sequence[float],
    out_size: int,
) -> Tensor:
    """One augmented, normalised view of each image.

    Args:
        images: (B, C, H, W) uint8.
        positions: (B,) int64, the data-set position of each image. On the CPU they cost no synchronisation with the
            images' device; the parameters are drawn where the positions are, and are the same everywhere.
        recipe: the strengths.
        seed: what the view depends on besides position, epoch and view.
        epoch: of the view.
        view: 0 or 1 in training.
        mean: one number a channel, of pixels in [0, 1].
        std: likewise.
        out_size: side of the result, pixels. A crop that is larger is sampled without a low-pass filter.

    Returns:
        (B, C, out_size, out_size) float32 on the images' device.
    """
    assert images.ndim == 4, f"{tuple(images.shape)}"
    assert images.dtype == torch.uint8, f"{images.dtype}"
    assert positions.shape == (len(images),), f"{tuple(positions.shape)} positions of {len(images)} images"
    if len(images) == 0:
        return torch.zeros((0, images.shape[1], out_size, out_size), device=images.device)
    height, width = images.shape[-2:]
    parameters = draw(positions, recipe=recipe, seed=seed, epoch=epoch, view=view, height=height, width=width)
    with torch.autocast(images.device.type, enabled=False):
        x = _unit(images)
        if recipe.moves_pixels or (height, width) != (out_size, out_size):
            theta = parameters.theta.to(images.device, non_blocking=True)
            grid = F.affine_grid(theta, [len(x), x.shape[1], out_size, out_size], align_corners=False)
            x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if recipe.jitter_probability > 0:
            x = jitter(x, parameters)
        if recipe.grey_probability > 0 and x.shape[1] == 3:
            grey = parameters.grey.to(x.device, non_blocking=True)
            x = torch.where(grey[:, None, None, None], _luma(x), x)
        if recipe.blur_probability > 0:
            x = blur(x, parameters.sigma, recipe.blur_sigma[1])
        return _normalise(x, mean, std)


@torch.no_grad()
def clean(images: Tensor, *, mean: Sequence[float], std: Sequence[float], out_size: int) -> Tensor:
    """The images as they are: resized (antialiased bilinear, where needed) and normalised.

    Args:
        images: (B, C, H, W) uint8.
        mean: one number a channel, of pixels in [0, 1].
        std: likewise.
        out_size: side of the result, pixels.

    Returns:
        (B, C, out_size, out_size) float32 on the images' device.
    """
    with torch.autocast(images.device.type, enabled=False):
        x = _unit(images)
        if len(x) and x.shape[-2:] != (out_size, out_size):
            x = F.interpolate(x, size=(out_size, out_size), mode="bilinear", align_corners=False, antialias=True)
        return _normalise(x, mean, std)


def jitter(x: Tensor, parameters: ViewParameters) -> Tensor:
    """Brightness, contrast, saturation and hue, in each sample's own random order, as torchvision's ColorJitter.

    At every step the samples that do the same are changed together, and no others are touched.

    Args:
        x: (B, C, H, W) float32 in [0, 1]; C = 3, or anything else without saturation and hue.
        parameters: their ``factors`` and ``order`` are used.
    """
    kinds = (BRIGHTNESS, CONTRAST, SATURATION, HUE) if x.shape[1] == 3 else (BRIGHTNESS, CONTRAST)
    x = x.clone()
    for step in range(parameters.order.shape[1]):
        for kind in kinds:
            factors = parameters.factors[:, kind]
            chosen = (parameters.order[:, step] == kind) & (factors != (0 if kind == HUE else 1))
            rows = chosen.nonzero()[:, 0]
            if len(rows):
                here = rows.to(x.device, non_blocking=True)
                factor = factors[rows].to(x.device, non_blocking=True)[:, None, None, None]
                x.index_copy_(0, here, _CHANGES[kind](x.index_select(0, here), factor))
    return x


def _change_brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (factor * x).clamp_(0, 1)


def _change_contrast(x: Tensor, factor: Tensor) -> Tensor:
    grey = _luma(x) if x.shape[1] == 3 else x
    # float64, so that the mean does not depend on how a batch of this size is summed
    level = grey.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).float()
    return (factor * x).add_((1 - factor) * level).clamp_(0, 1)


def _change_saturation(x: Tensor, factor: Tensor) -> Tensor:
    return (factor * x).add_((1 - factor) * _luma(x)).clamp_(0, 1)


def _turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    r"""Turn the hue of HSV; its value V and chroma C stay.

    Back in RGB a channel is :math:`V - C\,\mathrm{clip}(2 - 6d, 0, 1)` with d the distance on the circle, in turns,
    between the hue and that of the channel's complement (1/2 for red, 5/6 for green, 1/6 for blue): one formula
    instead of six cases.

    Args:
        x: (B, 3, H, W).
        turns: (B, 1, 1, 1).
    """
    red, green, blue = x.unbind(1)
    value, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    scale = (6 * chroma).clamp_(min=1e-12).reciprocal_()  # grey pixels, whose hue says nothing, have no chroma
    hue = torch.where(
        value == red,
        (green - blue).mul_(scale),
        torch.where(value == green, (blue - red).mul_(scale).add_(1 / 3), (red - green).mul_(scale).add_(2 / 3)),
    )
    complements = torch.tensor([1 / 2, 5 / 6, 1 / 6], device=x.device)[:, None, None]
    distance = hue.add_(turns[:, 0])[:, None] - complements
    distance.sub_(distance.round()).abs_()
    return torch.addcmul(value[:, None], distance.mul_(-6).add_(2).clamp_(0, 1), chroma[:, None], value=-1)


_CHANGES = {
    BRIGHTNESS: _change_brightness,
    CONTRAST: _change_contrast,
    SATURATION: _change_saturation,
    HUE: _turn_hue,
}


def blur(x: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Gaussian blur with a standard deviation for each sample; the border is mirrored.

    Args:
        x: (B, C, H, W) float32.
        sigma: (B,) float32 pixels; 0 for no blur.
        largest: the largest sigma that can occur, which sets the size of the kernel: three of them to each side.
    """
    from kornia.filters import filter2d_separable  # here: importing it takes a quarter of a second

    reach = min(math.ceil(3 * largest), min(x.shape[-2:]) - 1)
    if reach < 1:
        return x
    kernels = _gaussian_kernels(sigma, reach).to(x.device, non_blocking=True)
    num = len(x)
    if num * x.shape[1] == 1:
        # Several maps are convolved in groups, a single one by another kernel, which rounds differently.
        x, kernels = x.expand(2, -1, -1, -1), kernels.expand(2, -1)
    blurred: Tensor = filter2d_separable(x, kernels, kernels, border_type="reflect")
    return blurred[:num]


def _gaussian_kernels(sigma: Tensor, reach: int) -> Tensor:
    """(B, 2·reach + 1) float32 weights that sum to 1; exactly (…, 0, 1, 0, …) where sigma is 0.

    Kornia's own makes the processor wait for the device, to check that every sigma is positive.
    """
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma.double().clamp(min=1e-3)[:, None]).square())
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _luma(x: Tensor) -> Tensor:
    """(B, 3, H, W) to grey, (B, 1, H, W)."""
    return _LUMA[0] * x[:, 0:1] + _LUMA[1] * x[:, 1:2] + _LUMA[2] * x[:, 2:3]


def _unit(images: Tensor) -> Tensor:
    return images.to(torch.float32) / 255


def _normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    assert len(mean) == len(std) == x.shape[1], f"{len(mean)} means and {len(std)} deviations for {x.shape[1]} channels"
    shift = torch.tensor(mean, dtype=torch.float32, device=x.device)[:, None, None]
    scale = torch.tensor(std, dtype=torch.float32, device=x.device)[:, None, None]
    return (x - shift) / scale
