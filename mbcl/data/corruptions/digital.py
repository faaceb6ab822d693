"""Digital corruptions: low contrast, elastic transform, pixelation, JPEG compression.

All functions take (N, C, H, W) float64 in [0, 1] and return the same shape and dtype, not clipped.
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
_MIN_INTEGER_SIDE = 16
_FIRST_STEP = 0.4


def contrast(x: Array, draws: Draws, *, keep: float) -> Array:
    """Scale the deviation from the mean of each channel by ``keep``; deterministic."""
    mean = x.mean(axis=(2, 3), keepdims=True)
    return np.asarray(mean + keep * (x - mean))


def elastic_transform(x: Array, draws: Draws, *, corners: float, wobble: float, smooth: float) -> Array:
    """Warp by a random affine map, which moves three points by up to ``corners`` pixels, and a smooth displacement.

    Along each axis, the displacement has a root mean square of ``wobble`` pixels. A Gaussian with a standard deviation
    of ``smooth`` pixels smooths it.
    """
    height, width = x.shape[2:]
    # Three points in homogeneous coordinates (right, down, 1) from the centre, in pixels: a third of the smaller side.
    third = min(height, width) / 3
    points = np.array([[third, third, 1.0], [third, -third, 1.0], [-third, -third, 1.0]])
    moved = points[:, :2] + corners * draws.uniform(-1.0, 1.0, 3, 2)
    affine = np.swapaxes(np.linalg.solve(np.broadcast_to(points, (len(x), 3, 3)), moved), 1, 2)
    down, right = np.mgrid[:height, :width] + 0.5
    coordinates = np.stack([right - width / 2, down - height / 2, np.ones((height, width))], axis=-1)
    sources = np.einsum("nij,hwj->nhwi", affine, coordinates)
    field = gaussian(draws.uniform(-1.0, 1.0, 2, height, width), smooth)
    field *= wobble / np.sqrt((field**2).mean(axis=(1, 2, 3), keepdims=True))
    sources += np.moveaxis(field, 1, -1)
    return sample(x, torch.from_numpy(sources * np.array([2 / width, 2 / height])))


def pixelate(x: Array, draws: Draws, *, share: float, severity: int) -> Array:
    """Downsample to ``share`` of the side, then upsample with nearest neighbours, with Pillow; deterministic.

    Images below 16 pixels have too few integer sizes for five severities. For them the number of cells per side may be
    fractional: severity 1 removes 0.4 of a pixel, and severity s > 1 at least s - 1 pixels. A pixel that overlaps two
    cells gets their average, weighted by the overlap.
    """
    sides = x.shape[2:]
    if min(sides) >= _MIN_INTEGER_SIDE:
        height, width = (min(round(share * side), side - severity) for side in sides)
        return _map_bytes(lambda pixels: _downsample(pixels, height, width), x)
    max_nums = (side - max(severity - 1, _FIRST_STEP) for side in sides)
    nums = (num if severity == 1 else min(round(share * side), num) for side, num in zip(sides, max_nums, strict=True))
    down, right = (_cell_means(side, max(1.0, num)) for side, num in zip(sides, nums, strict=True))
    return np.asarray(down @ x @ right.T)


def _cell_means(side: int, num: float) -> Array:
    """Return the (side, side) averaging matrix of one axis for ``num`` cells, of which the last may be partial."""
    edges = np.minimum(np.arange(math.ceil(num) + 1) * side / num, side)
    pixels = np.arange(side)[:, None]
    shares = (np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)).clip(0)  # (side, cells)
    return np.asarray(shares @ (shares / shares.sum(axis=0)).T)


def _downsample(pixels: Bytes, height: int, width: int) -> Bytes:
    from PIL import Image

    picture = Image.fromarray(pixels)
    small = picture.resize((width, height), Image.Resampling.BOX)
    return np.asarray(small.resize(picture.size, Image.Resampling.NEAREST))


def jpeg_compression(x: Array, draws: Draws, *, quality: float) -> Array:
    """Encode as JPEG and decode with Pillow, three channels as colour, others separately; deterministic."""
    return _map_bytes(lambda pixels: _jpeg_round_trip(pixels, round(quality)), x)


def _jpeg_round_trip(pixels: Bytes, quality: int) -> Bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream, formats=("JPEG",)))


def _map_bytes(function: Callable[[Bytes], Bytes], x: Array) -> Array:
    """Apply a function of uint8 to every image, (H, W, 3), or to every channel, (H, W), if C is not 3."""
    pixels = np.rint(x * 255).clip(0, 255).astype(np.uint8)
    if x.shape[1] == 3:
        return np.stack([function(picture) for picture in pixels.transpose(0, 2, 3, 1)]).transpose(0, 3, 1, 2) / 255
    return np.stack([function(plane) for plane in pixels.reshape(-1, *x.shape[2:])]).reshape(x.shape) / 255
