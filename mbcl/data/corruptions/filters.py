"""Filters and fields that several corruptions need, over whole batches in float64.

float64, so that what a batch's size may change in the last bit is never seen in a byte.

Letters: N images, C channels, H and W pixels, P points of a kernel.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

from mbcl.data.corruptions.draws import Array


def gaussian(x: Array, sigma: float) -> Array:
    """Gaussian blur of the last two axes by SciPy; ``sigma`` in pixels."""
    return np.asarray(gaussian_filter(x, (0.0,) * (x.ndim - 2) + (sigma, sigma), mode="nearest"))


def smear(x_NCHW: Array, points_NP2: Array, weights_P: Array) -> Array:
    """The weighted mean of an image's copies, each moved by one point.

    Moves of a part of a pixel are bilinear, so a blur of less than a pixel is one, too.

    Args:
        x_NCHW: images; beyond the border the nearest pixel goes on.
        points_NP2: moves (down, right), pixels.
        weights_P: not negative, not all 0.
    """
    reach = math.ceil(np.abs(points_NP2).max()) + 1
    kernels = np.zeros((len(x_NCHW), 2 * reach + 1, 2 * reach + 1))
    whole = np.floor(points_NP2)
    rest = points_NP2 - whole
    rows, weights = np.arange(len(x_NCHW))[:, None], weights_P / weights_P.sum()
    for down in (0, 1):
        for right in (0, 1):
            share = np.abs(1 - down - rest[..., 0]) * np.abs(1 - right - rest[..., 1])
            place = whole.astype(np.int64) + reach
            np.add.at(kernels, (rows, place[..., 0] + down, place[..., 1] + right), share * weights)
    padded = np.pad(x_NCHW, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    return np.asarray(fftconvolve(padded, kernels[:, None], mode="valid", axes=(-2, -1)))


def streak(x_NCHW: Array, radius: float, sigma: float, degrees_N: Array) -> Array:
    """Motion blur: the copies lie on a line to one side, with weights that fall like a Gaussian of ``sigma`` pixels."""
    along = np.linspace(0.0, radius, 2 * math.ceil(radius) + 3)
    angles = np.radians(degrees_N)[:, None]
    points = np.stack([-np.sin(angles) * along, np.cos(angles) * along], axis=-1)
    return smear(x_NCHW, points, np.exp(-0.5 * (along / sigma) ** 2))


def sample(x_NCHW: Array, grid_NHW2: torch.Tensor) -> Array:
    """The images at other places (``grid_sample``, ``align_corners=False``), bilinear, mirrored at the border."""
    found = F.grid_sample(
        torch.from_numpy(np.ascontiguousarray(x_NCHW)),
        grid_NHW2,
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    )
    return found.numpy()


def magnify(x_NCHW: Array, factor: float) -> Array:
    """The centre of the images, magnified; ``factor`` at least 1."""
    theta = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]], dtype=torch.float64).expand(len(x_NCHW), 2, 3)
    return sample(x_NCHW, F.affine_grid(theta, list(x_NCHW.shape), align_corners=False))


def clouds(white_NHW: Array, decay: float) -> Array:
    """A fractal field in [0, 1] whose amplitude falls by ``decay`` an octave, from white noise (N, H, W)."""
    height, width = white_NHW.shape[-2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0
    # An octave of a plane holds four times the modes of the one below, so amplitudes fall by twice the decay.
    spectrum = np.fft.rfft2(white_NHW) * frequency ** -(1 + math.log2(decay))
    spectrum[:, 0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(height, width))
    low, high = field.min(axis=(1, 2), keepdims=True), field.max(axis=(1, 2), keepdims=True)
    return np.asarray((field - low) / np.maximum(high - low, 1e-12))
