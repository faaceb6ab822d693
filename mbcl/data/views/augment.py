"""Batched augmentation: every sample of a batch has its own random parameters, on any device.

A view is a pure function of (seed, epoch, data-set position, view). It does not depend on the batch, the rank or the
number of workers. The transforms are the published ones: resized crop, colour jitter, greyscale, blur, flip, normalise.
The flip is folded into the resampling of the crop. The result is the same, because all later steps commute with a flip.

Letters: B samples, C channels, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mbcl.data.views.random_parameters import CONTRAST, HUE, ViewParameters, draw
from mbcl.data.views.recipe import ViewRecipe

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL and torchvision


class ViewedImages(Protocol):
    """What views depend on besides pixels, as of :class:`mbcl.data.ImageSet`: recipe, size and normalisation."""

    @property
    def recipe(self) -> ViewRecipe:
        """Strengths of the augmentation."""

    @property
    def image_size(self) -> int:
        """Side of the views in pixels."""

    @property
    def channels(self) -> int:
        """Channels of the images."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the pixels of each channel."""

    @property
    def std(self) -> tuple[float, ...]:
        """Their standard deviation."""


@torch.no_grad()
def make_views(
    pixels: Tensor, positions: Tensor, *, images: ViewedImages, seed: int, epoch: int, view: int | Sequence[int]
) -> Tensor:
    """Return one augmented, normalised view of each image, or several.

    Args:
        pixels: (B, C, H, W) uint8, as ``images.pixels(positions)``.
        positions: (B,) int64, the data-set position of each image. Parameters are drawn on the device of the positions
            and are equal on every device. Positions on the CPU need no synchronisation with the pixels' device.
        images: the data set, for its recipe, normalisation and image size S. Crops larger than S pixels are low-passed.
        seed: experiment seed of the views.
        epoch: epoch of the view.
        view: index of the view; 0 or 1 in training. Several indices give the views one after the other, for fewer
            operations than by a call each.

    Returns:
        (B, C, S, S) float32 on the pixels' device, or (V·B, C, S, S) for V views.
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
        x = pixels.repeat(len(parameters.theta) // len(pixels), 1, 1, 1).to(torch.float32).div_(255)
        if recipe.moves_pixels or (height, width) != (size, size):
            x = resample(x, parameters.theta.to(x.device, non_blocking=True), size, turned=recipe.rotation > 0)
        if recipe.jitter_probability > 0:
            x = jitter(x, parameters)
        if recipe.grey_probability > 0 and x.shape[1] == 3:
            rows = parameters.grey.nonzero()[:, 0].to(x.device, non_blocking=True)
            x.index_copy_(0, rows, _luma(x.index_select(0, rows)).expand(-1, 3, -1, -1))
        if recipe.blur_probability > 0:
            x = blur(x, parameters.sigma, recipe.blur_sigma[1])
        return _normalise(x, images)


@torch.no_grad()
def clean_views(pixels: Tensor, *, images: ViewedImages) -> Tensor:
    """Return the samples without augmentation: resized (antialiased bilinear, if needed) and normalised.

    (B, C, H, W) uint8 to (B, C, S, S) float32 on the same device, with S and normalisation of ``images``.
    """
    size = images.image_size
    with torch.autocast(pixels.device.type, enabled=False):
        x = pixels.to(torch.float32) / 255
        if len(x) and x.shape[-2:] != (size, size):
            x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
        return _normalise(x, images)


def resample(x: Tensor, theta: Tensor, size: int, *, turned: bool) -> Tensor:
    """Resample the crop ``theta``, (B, 2, 3), of each image of ``x``, (B, C, H, W), to S x S pixels.

    Images of at most S pixels a side are interpolated bilinearly. Crops of larger ones may shrink, which would alias.
    They get the triangle filter of Pillow and of torchvision's ``resized_crop(antialias=True)``, whose half-width is an
    output pixel but at least an input pixel. Where the crop is turned, the filter acts along the axes of the image and
    before the bilinear interpolation. Its width is then that of the turned output pixel projected onto the axis.
    """
    if max(x.shape[-2:]) > size:
        down, across = (_triangles(theta, axis, x.shape[3 - axis], size, turned=turned) for axis in (1, 0))
        x = down[:, None] @ x @ across.mT[:, None]
        if not turned:
            return x
    return F.grid_sample(
        x, _grid(theta, size, turned=turned), mode="bilinear", padding_mode="border", align_corners=False
    )


def _triangles(theta: Tensor, axis: int, num: int, size: int, *, turned: bool) -> Tensor:
    """Return the weights of ``num`` input pixels along an axis (0 is x, 1 is y), (B, outputs, num), each sum 1.

    The outputs are the S pixels of the crop. A pixel that the crop covers in part counts by the part. For turned crops
    they are the input pixels themselves.
    """
    pixels = torch.arange(num, device=theta.device, dtype=theta.dtype)
    reach = torch.linalg.vector_norm(theta[:, axis, :2], dim=1).mul(num / size).clamp(min=1)
    if turned:
        centres, covered = (pixels + 0.5).expand(len(theta), -1), pixels.new_ones(1)
    else:
        middle, half = (theta[:, axis, 2, None] + 1) * (num / 2), theta[:, axis, axis, None] * (num / 2)
        centres = middle + half * _base(size, theta)
        covered = torch.minimum(pixels + 1, middle + half.abs()) - torch.maximum(pixels, middle - half.abs())
    distance = (pixels + 0.5 - centres[:, :, None]).abs_()
    weights: Tensor = (1 - distance / reach[:, None, None]).clamp_(min=0).mul_(covered.clamp_(0, 1)[:, None])
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _base(size: int, like: Tensor) -> Tensor:
    """Return the coordinates of S output pixels in [-1, 1], (S,)."""
    return torch.linspace(-1, 1, size, device=like.device, dtype=like.dtype) * (size - 1) / size


def _grid(theta: Tensor, size: int, *, turned: bool) -> Tensor:
    """Return the input coordinates of S x S output pixels, (B, S, S, 2) in [-1, 1]; ``theta`` is (B, 2, 3)."""
    shape = [len(theta), 1, size, size]
    if turned:
        return F.affine_grid(theta, shape, align_corners=False)
    # Without rotation a coordinate depends on its own axis only: no products of matrices, as in ``affine_grid``.
    base = _base(size, theta)
    grid = theta.new_empty((len(theta), size, size, 2))
    grid[..., 0] = (theta[:, 0, 0, None] * base).add_(theta[:, 0, 2, None])[:, None, :]
    grid[..., 1] = (theta[:, 1, 1, None] * base).add_(theta[:, 1, 2, None])[:, :, None]
    return grid


def jitter(x: Tensor, parameters: ViewParameters) -> Tensor:
    """Apply brightness, contrast, saturation and hue in each sample's own random order, as torchvision's ColorJitter.

    ``x`` is (B, C, H, W) float32 in [0, 1]. For each of the four steps, the samples are sorted by their operation, and
    every group is processed as one batch. Samples with a neutral factor are skipped; saturation and hue unless C = 3.
    """
    num_kinds = len(_CHANGES) if x.shape[1] == 3 else CONTRAST + 1
    order, factors = parameters.order, parameters.factors.gather(1, parameters.order)
    changed = (factors != (order != HUE)) & (order < num_kinds)
    rows = torch.where(changed, order, num_kinds).argsort(dim=0, stable=True)  # (B, steps): the row at each place
    places = rows.argsort(dim=0)  # (B, steps): the place of each row
    moves = torch.stack([rows[:, 0], *(places[rows[:, i + 1], i] for i in range(rows.shape[1] - 1)), places[:, -1]])
    counts = [((order == kind) & changed).sum(dim=0) for kind in range(num_kinds)]
    moves, factors = (t.to(x.device, non_blocking=True) for t in (moves, factors.gather(0, rows)))
    for step, sizes in enumerate(torch.stack(counts, dim=1).tolist()):
        x = x.index_select(0, moves[step])
        part = slice(0, 0)
        for change, size in zip(_CHANGES[:num_kinds], sizes, strict=True):
            part = slice(part.stop, part.stop + size)
            if size:
                change(x[part], factors[part, step, None, None, None])
    return x.index_select(0, moves[-1])


def _change_brightness(x: Tensor, factor: Tensor) -> None:
    x.mul_(factor).clamp_(0, 1)


def _change_contrast(x: Tensor, factor: Tensor) -> None:
    grey = _luma(x) if x.shape[1] == 3 else x
    # float64: the summation order depends on the batch size, and float32 rounding would expose it
    level = grey.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).float()
    x.mul_(factor).add_((1 - factor) * level).clamp_(0, 1)


def _change_saturation(x: Tensor, factor: Tensor) -> None:
    grey = _luma(x)
    x.mul_(factor).add_(grey.mul_(1 - factor)).clamp_(0, 1)


def _turn_hue(x: Tensor, turns: Tensor) -> None:
    r"""Rotate the hue in HSV space; value V and chroma C stay the same.

    Back in RGB, a channel is :math:`V - C\,\mathrm{clip}(2 - 6d, 0, 1)` with d the distance on the circle, in turns,
    between the hue and that of the channel's complement (1/2 for red, 5/6 for green, 1/6 for blue): one formula
    instead of six cases. ``x`` is (B, 3, H, W), ``turns`` is (B, 1, 1, 1).
    """
    red, green, blue = x.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = (6 * chroma).clamp_(min=1e-12).reciprocal_()  # grey pixels have zero chroma and no defined hue
    hue = (red - green).mul_(scale).add_(2 / 3)
    # Weights of exactly 0 and 1 select; comparisons in place and ``lerp`` are vectorised on a CPU, ``where`` is not.
    hue.lerp_((blue - red).mul_(scale).add_(1 / 3), green.clone().eq_(value))
    hue.lerp_((green - blue).mul_(scale), red.clone().eq_(value))
    hue.add_(turns[:, 0])
    for channel, complement in ((red, 1 / 2), (green, 5 / 6), (blue, 1 / 6)):
        distance = hue - complement
        distance.sub_(distance.round()).abs_()
        torch.addcmul(value, distance.mul_(-6).add_(2).clamp_(0, 1), chroma, value=-1, out=channel)


_CHANGES = (_change_brightness, _change_contrast, _change_saturation, _turn_hue)
"""In the order of BRIGHTNESS, CONTRAST, SATURATION, HUE."""


def blur(x: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur each sample, (B, C, H, W) float32, with a Gaussian of its own standard deviation; borders are reflected.

    ``sigma`` is (B,) float32, in pixels; 0 for no blur. The kernel extends three times ``largest`` to each side.
    """
    reach = min(math.ceil(3 * largest), min(x.shape[-2:]) - 1)
    if reach < 1:
        return x
    rows = sigma.nonzero()[:, 0]
    if len(rows) == 0:
        return x
    if len(rows) < len(x):
        device_rows = rows.to(x.device, non_blocking=True)
        return x.index_copy(0, device_rows, blur(x.index_select(0, device_rows), sigma[rows], largest))
    from kornia.filters import filter2d_separable  # lazy import: it takes a quarter of a second

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
    return (_LUMA[0] * x[:, 0:1]).add_(_LUMA[1] * x[:, 1:2]).add_(_LUMA[2] * x[:, 2:3])


def _normalise(x: Tensor, images: ViewedImages) -> Tensor:
    assert images.channels == x.shape[1], f"{images.channels} channels of the data set, {x.shape[1]} of the pixels"
    return x.sub_(_column(images.mean, x.device)).div_(_column(images.std, x.device))


@lru_cache(maxsize=64)
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a value a channel, (C, 1, 1) float32: made once, because a copy to a GPU waits for it."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
