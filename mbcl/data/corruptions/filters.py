"""Batched filters and random fields shared by several corruptions.

All computations are in float64: the batch size may change the last bit of a result, which never changes a byte then.

Letters: N images, C channels, H and W pixels, P kernel points.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from mbcl.data.corruptions.draws import Array


def gaussian(x: Array, sigma: float) -> Array:
    """Blur the last two axes with SciPy's Gaussian filter; ``sigma`` in pixels."""
    from scipy.ndimage import gaussian_filter  # lazy import: it takes a quarter of a second

    return np.asarray(gaussian_filter(x, (0.0,) * (x.ndim - 2) + (sigma, sigma), mode="nearest"))


def smear(x_NCHW: Array, points_NP2: Array, weights_P: Array) -> Array:
    """Convolve each image with a sparse kernel: the weighted mean of its copies, shifted to P points.

    Each point is splatted bilinearly onto the pixel grid, so that shifts below one pixel also blur.

    Args:
        x_NCHW: images; the border is extended by its nearest pixel.
        points_NP2: shifts (down, right), in pixels.
        weights_P: weights, not negative and not all 0.
    """
    reach = math.ceil(np.abs(points_NP2).max()) + 1
    kernels = np.zeros((len(x_NCHW), 2 * reach + 1, 2 * reach + 1))
    floor = np.floor(points_NP2)
    fraction = points_NP2 - floor
    rows, weights = np.arange(len(x_NCHW))[:, None], weights_P / weights_P.sum()
    for down in (0, 1):
        for right in (0, 1):
            share = np.abs(1 - down - fraction[..., 0]) * np.abs(1 - right - fraction[..., 1])
            cells = floor.astype(np.int64) + reach
            np.add.at(kernels, (rows, cells[..., 0] + down, cells[..., 1] + right), share * weights)
    padded = np.pad(x_NCHW, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    from scipy.signal import fftconvolve  # lazy import: it takes most of a second

    return np.asarray(fftconvolve(padded, kernels[:, None], mode="valid", axes=(-2, -1)))


def streak(x_NCHW: Array, radius: float, sigma: float, degrees_N: Array) -> Array:
    """Blur along a one-sided line of ``radius`` pixels, with Gaussian weights of deviation ``sigma`` pixels."""
    distances = np.linspace(0.0, radius, 2 * math.ceil(radius) + 3)
    angles = np.radians(degrees_N)[:, None]
    points = np.stack([-np.sin(angles) * distances, np.cos(angles) * distances], axis=-1)
    return smear(x_NCHW, points, np.exp(-0.5 * (distances / sigma) ** 2))


def sample(x_NCHW: Array, grid_NHW2: torch.Tensor) -> Array:
    """Resample the images on a grid (``grid_sample``, ``align_corners=False``), bilinear, reflected at the border."""
    sampled = F.grid_sample(
        torch.from_numpy(np.ascontiguousarray(x_NCHW)),
        grid_NHW2,
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    )
    return sampled.numpy()


def magnify(x_NCHW: Array, factor: float) -> Array:
    """Magnify the images about their centre; ``factor`` is at least 1."""
    theta = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]], dtype=torch.float64).expand(len(x_NCHW), 2, 3)
    return sample(x_NCHW, F.affine_grid(theta, list(x_NCHW.shape), align_corners=False))


def clouds(white_NHW: Array, decay: float) -> Array:
    """Filter white noise (N, H, W) into a fractal field in [0, 1] whose amplitude falls by ``decay`` per octave."""
    height, width = white_NHW.shape[-2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0
    # In 2-d an octave has four times as many modes as the one below, so the amplitude per mode falls by 2 * decay.
    spectrum = np.fft.rfft2(white_NHW) * frequency ** -(1 + math.log2(decay))
    spectrum[:, 0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(height, width))
    low, high = field.min(axis=(1, 2), keepdims=True), field.max(axis=(1, 2), keepdims=True)
    return np.asarray((field - low) / np.maximum(high - low, 1e-12))
