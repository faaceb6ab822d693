"""Blur corruptions: defocus, glass, motion and zoom blur.

All functions take (N, C, H, W) float64 in [0, 1] and return the same shape and dtype, not clipped.
"""

from __future__ import annotations

import numpy as np

from mbcl.data.corruptions.draws import Array, Draws
from mbcl.data.corruptions.filters import gaussian, magnify, smear, streak

_RINGS = 12
_COPIES = 12


def defocus_blur(x: Array, draws: Draws, *, radius: float) -> Array:
    """Average each pixel over a disc of ``radius`` pixels; deterministic."""
    # Quadrature of the disc: rings of equal area with equally many points, so that all points have equal weights.
    radii = radius * np.sqrt((np.arange(_RINGS) + 0.5) / _RINGS)
    angles = 2 * np.pi * np.arange(8 * _RINGS) / (8 * _RINGS)
    points = np.stack([radii[:, None] * np.sin(angles), radii[:, None] * np.cos(angles)], axis=-1).reshape(1, -1, 2)
    return smear(x, np.repeat(points, len(x), axis=0), np.ones(points.shape[1]))


def glass_blur(x: Array, draws: Draws, *, sigma: float, reach: float) -> Array:
    """Replace every pixel by a random one within ``reach`` pixels, between two Gaussian blurs.

    All channels use the same source pixel. The published corruption swaps neighbours sequentially, in up to three
    passes; here all pixels are gathered at once.
    """
    x = gaussian(x, sigma)
    height, width = x.shape[2:]
    # Stochastic rounding: the fraction of a pixel is the probability of one more pixel.
    moves = np.floor(reach * draws.uniform(-1.0, 1.0, 2, height, width) + draws.uniform(0.0, 1.0, 2, height, width))
    down = (np.arange(height)[:, None] + moves[:, 0]).clip(0, height - 1).astype(np.int64)
    right = (np.arange(width)[None, :] + moves[:, 1]).clip(0, width - 1).astype(np.int64)
    sources = (down * width + right).reshape(len(x), 1, -1)
    shuffled = np.take_along_axis(x.reshape(*x.shape[:2], -1), sources, axis=2)
    return gaussian(shuffled.reshape(x.shape), sigma)


def motion_blur(x: Array, draws: Draws, *, radius: float, sigma: float) -> Array:
    """Blur along a one-sided line, at a random angle within 45 degrees of the horizontal."""
    return streak(x, radius, sigma, draws.uniform(-45.0, 45.0))


def zoom_blur(x: Array, draws: Draws, *, zoom: float) -> Array:
    """Average the image with copies magnified by up to 1 + ``zoom``; deterministic."""
    total = x.copy()
    for step in range(1, _COPIES + 1):
        total += magnify(x, 1 + zoom * step / _COPIES)
    return total / (_COPIES + 1)
