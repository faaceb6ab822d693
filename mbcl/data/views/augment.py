"""Batched augmentation: every sample of a batch has its own random parameters, on any device.

A view is a pure function of (seed, epoch, data-set position, view). It does not depend on the batch, the rank or the
number of workers. The transforms are the published ones: resized crop, colour jitter, greyscale, blur, flip, normalise.
The flip is folded into the resampling of the crop. The result is the same, because all later steps commute with a flip.

Letters: B samples, C channels, H and W pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mbcl.data.images import ImageSet
from mbcl.data.views.random_parameters import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewParameters, draw

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL and torchvision


@torch.no_grad()
def make_views(pixels: Tensor, positions: Tensor, *, images: ImageSet, seed: int, epoch: int, view: int) -> Tensor:
    """Return one augmented, normalised view of each image.

    Args:
        pixels: (B, C, H, W) uint8, as ``images.pixels(positions)``.
        positions: (B,) int64, the data-set position of each image. Parameters are drawn on the device of the positions
            and are equal on every device. Positions on the CPU need no synchronisation with the pixels' device.
        images: the data set, for its recipe, normalisation and image size S. Crops larger than S pixels are
            downsampled without a low-pass filter.
        seed: experiment seed of the views.
        epoch: epoch of the view.
        view: index of the view; 0 or 1 in training.

    Returns:
        (B, C, S, S) float32 on the pixels' device.
    """
    recipe, size = images.recipe, images.image_size
    assert pixels.ndim == 4, f"{tuple(pixels.shape)}"
    assert pixels.dtype == torch.uint8, f"{pixels.dtype}"
    assert positions.shape == (len(pixels),), f"{tuple(positions.shape)} positions of {len(pixels)} images"
    if len(pixels) == 0:
        return torch.zeros((0, pixels.shape[1], size, size), device=pixels.device)
    height, width = pixels.shape[-2:]
    parameters = draw(positions, recipe=recipe, seed=seed, epoch=epoch, view=view, height=height, width=width)
    with torch.autocast(pixels.device.type, enabled=False):
        x = pixels.to(torch.float32) / 255
        if recipe.moves_pixels or (height, width) != (size, size):
            theta = parameters.theta.to(x.device, non_blocking=True)
            grid = F.affine_grid(theta, [len(x), x.shape[1], size, size], align_corners=False)
            x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if recipe.jitter_probability > 0:
            x = jitter(x, parameters)
        if recipe.grey_probability > 0 and x.shape[1] == 3:
            grey = parameters.grey.to(x.device, non_blocking=True)
            x = torch.where(grey[:, None, None, None], _luma(x), x)
        if recipe.blur_probability > 0:
            x = blur(x, parameters.sigma, recipe.blur_sigma[1])
        return _normalise(x, images)


@torch.no_grad()
def clean_views(pixels: Tensor, *, images: ImageSet) -> Tensor:
    """Return the samples without augmentation: resized (antialiased bilinear, if needed) and normalised.

    (B, C, H, W) uint8 to (B, C, S, S) float32 on the same device, with S and normalisation of ``images``.
    """
    size = images.image_size
    with torch.autocast(pixels.device.type, enabled=False):
        x = pixels.to(torch.float32) / 255
        if len(x) and x.shape[-2:] != (size, size):
            x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
        return _normalise(x, images)


def jitter(x: Tensor, parameters: ViewParameters) -> Tensor:
    """Apply brightness, contrast, saturation and hue in each sample's own random order, as torchvision's ColorJitter.

    ``x`` is (B, C, H, W) float32 in [0, 1]. At each of the four steps, samples are grouped by their operation, and
    every group is processed as one batch. Samples with a neutral factor are skipped; saturation and hue unless C = 3.
    """
    kinds = (BRIGHTNESS, CONTRAST, SATURATION, HUE) if x.shape[1] == 3 else (BRIGHTNESS, CONTRAST)
    x = x.clone()
    for step in range(parameters.order.shape[1]):
        for kind in kinds:
            factors = parameters.factors[:, kind]
            changed = (parameters.order[:, step] == kind) & (factors != (0 if kind == HUE else 1))
            rows = changed.nonzero()[:, 0]
            if len(rows):
                device_rows = rows.to(x.device, non_blocking=True)
                factor = factors[rows].to(x.device, non_blocking=True)[:, None, None, None]
                x.index_copy_(0, device_rows, _CHANGES[kind](x.index_select(0, device_rows), factor))
    return x


def _change_brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (factor * x).clamp_(0, 1)


def _change_contrast(x: Tensor, factor: Tensor) -> Tensor:
    grey = _luma(x) if x.shape[1] == 3 else x
    # float64: the summation order depends on the batch size, and float32 rounding would expose it
    level = grey.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).float()
    return (factor * x).add_((1 - factor) * level).clamp_(0, 1)


def _change_saturation(x: Tensor, factor: Tensor) -> Tensor:
    return (factor * x).add_((1 - factor) * _luma(x)).clamp_(0, 1)


def _turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    r"""Rotate the hue in HSV space; value V and chroma C stay the same.

    Back in RGB, a channel is :math:`V - C\,\mathrm{clip}(2 - 6d, 0, 1)` with d the distance on the circle, in turns,
    between the hue and that of the channel's complement (1/2 for red, 5/6 for green, 1/6 for blue): one formula
    instead of six cases. ``x`` is (B, 3, H, W), ``turns`` is (B, 1, 1, 1).
    """
    red, green, blue = x.unbind(1)
    value, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    scale = (6 * chroma).clamp_(min=1e-12).reciprocal_()  # grey pixels have zero chroma and no defined hue
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
    """Blur each sample, (B, C, H, W) float32, with a Gaussian of its own standard deviation; borders are reflected.

    ``sigma`` is (B,) float32, in pixels; 0 for no blur. The kernel extends three times ``largest`` to each side.
    """
    from kornia.filters import filter2d_separable  # lazy import: it takes a quarter of a second

    reach = min(math.ceil(3 * largest), min(x.shape[-2:]) - 1)
    if reach < 1:
        return x
    kernels = _gaussian_kernels(sigma, reach).to(x.device, non_blocking=True)
    num = len(x)
    if num * x.shape[1] == 1:
        # PyTorch uses a different convolution kernel for a single map, which rounds differently: expand to two maps.
        x, kernels = x.expand(2, -1, -1, -1), kernels.expand(2, -1)
    blurred: Tensor = filter2d_separable(x, kernels, kernels, border_type="reflect")
    return blurred[:num]


def _gaussian_kernels(sigma: Tensor, reach: int) -> Tensor:
    """Return (B, 2·reach + 1) float32 weights that sum to 1; exactly (…, 0, 1, 0, …) where sigma is 0.

    Kornia's own function synchronises with the device to check that every sigma is positive.
    """
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma.double().clamp(min=1e-3)[:, None]).square())
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _luma(x: Tensor) -> Tensor:
    """Return the luma, (B, 3, H, W) to (B, 1, H, W)."""
    return _LUMA[0] * x[:, 0:1] + _LUMA[1] * x[:, 1:2] + _LUMA[2] * x[:, 2:3]


def _normalise(x: Tensor, images: ImageSet) -> Tensor:
    assert images.channels == x.shape[1], f"{images.channels} channels of the data set, {x.shape[1]} of the pixels"
    shift = torch.tensor(images.mean, dtype=torch.float32, device=x.device)[:, None, None]
    scale = torch.tensor(images.std, dtype=torch.float32, device=x.device)[:, None, None]
    return (x - shift) / scale
