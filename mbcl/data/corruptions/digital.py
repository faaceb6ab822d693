"""Digital faults: low contrast, elastic distortion, large pixels, JPEG.

All take (N, C, H, W) float64 in [0, 1] and return the like, not clipped.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from mbcl.data.corruptions.draws import Array, Draws
from mbcl.data.corruptions.filters import gaussian, sample

Bytes = npt.NDArray[np.uint8]
_SMALL = 16
_FIRST = 0.4


def contrast(x: Array, draws: Draws, *, keep: float) -> Array:
    """Values come nearer to the mean of their channel; nothing is random."""
    mean = x.mean(axis=(2, 3), keepdims=True)
    return np.asarray(mean + keep * (x - mean))


def elastic_transform(x: Array, draws: Draws, *, corners: float, wobble: float, smooth: float) -> Array:
    """A random affine map, three of whose points move by up to ``corners`` pixels, and a smooth random displacement.

    Args:
        x: images.
        draws: their random numbers.
        corners: largest move of the three points along each axis, pixels.
        wobble: root mean square of the displacement along each axis, pixels.
        smooth: standard deviation of the Gaussian that smooths it, pixels.
    """
    height, width = x.shape[2:]
    # Three points a third of the smaller side from the centre, in pixels from it: (right, down, 1).
    third = min(height, width) / 3
    points = np.array([[third, third, 1.0], [third, -third, 1.0], [-third, -third, 1.0]])
    moved = points[:, :2] + corners * draws.uniform(-1.0, 1.0, 3, 2)
    affine = np.swapaxes(np.linalg.solve(np.broadcast_to(points, (len(x), 3, 3)), moved), 1, 2)
    down, right = np.mgrid[:height, :width] + 0.5
    here = np.stack([right - width / 2, down - height / 2, np.ones((height, width))], axis=-1)
    there = np.einsum("nij,hwj->nhwi", affine, here)
    field = gaussian(draws.uniform(-1.0, 1.0, 2, height, width), smooth)
    field *= wobble / np.sqrt((field**2).mean(axis=(1, 2, 3), keepdims=True))
    there += np.moveaxis(field, 1, -1)
    return sample(x, torch.from_numpy(there * np.array([2 / width, 2 / height])))


def pixelate(x: Array, draws: Draws, *, share: float, severity: int) -> Array:
    """Made smaller, to ``share`` of the side, and large again without interpolation, by Pillow; nothing is random.

    Images below 16 pixels have too few sizes for that: there a severity takes at least one pixel more away than the one
    before, the first a part of one, and a pixel on the border of two cells takes its parts of both.
    """
    sides = x.shape[2:]
    if min(sides) >= _SMALL:
        height, width = (min(round(share * side), side - severity) for side in sides)
        return _through(lambda pixels: _coarse(pixels, height, width), x)
    most = (side - max(severity - 1, _FIRST) for side in sides)
    nums = (num if severity == 1 else min(round(share * side), num) for side, num in zip(sides, most, strict=True))
    down, right = (_cells(side, max(1.0, num)) for side, num in zip(sides, nums, strict=True))
    return np.asarray(down @ x @ right.T)


def _cells(side: int, num: float) -> Array:
    """(side, side): what each pixel takes of each other along one axis, for so many cells, the last one a part."""
    edges = np.minimum(np.arange(math.ceil(num) + 1) * side / num, side)
    pixels = np.arange(side)[:, None]
    shares = (np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)).clip(0)  # (side, cells)
    return np.asarray(shares @ (shares / shares.sum(axis=0)).T)


def _coarse(pixels: Bytes, height: int, width: int) -> Bytes:
    from PIL import Image

    picture = Image.fromarray(pixels)
    small = picture.resize((width, height), Image.Resampling.BOX)
    return np.asarray(small.resize(picture.size, Image.Resampling.NEAREST))


def jpeg_compression(x: Array, draws: Draws, *, quality: float) -> Array:
    """Written as JPEG and read again by Pillow, in colour or each channel by itself; nothing is random."""
    return _through(lambda pixels: _through_jpeg(pixels, round(quality)), x)


def _through_jpeg(pixels: Bytes, quality: int) -> Bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream, formats=("JPEG",)))


def _through(change: Callable[[Bytes], Bytes], x: Array) -> Array:
    """Every image through a function of bytes, (H, W, 3); without colour each channel by itself, (H, W)."""
    pixels = np.rint(x * 255).clip(0, 255).astype(np.uint8)
    if x.shape[1] == 3:
        return np.stack([change(picture) for picture in pixels.transpose(0, 2, 3, 1)]).transpose(0, 3, 1, 2) / 255
    return np.stack([change(plane) for plane in pixels.reshape(-1, *x.shape[2:])]).reshape(x.shape) / 255
