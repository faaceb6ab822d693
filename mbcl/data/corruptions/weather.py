"""Weather corruptions: snow, frost, fog, brightness.

All functions take (N, C, H, W) float64 in [0, 1] and return the same shape and dtype, not clipped. C = 3 means colour;
any other C means images without colour.
"""

from __future__ import annotations

import numpy as np

from mbcl.data.corruptions.draws import Array, Draws
from mbcl.data.corruptions.filters import clouds, magnify, streak

_ICE = (0.82, 0.92, 1.0)  # RGB colour of the ice


def snow(
    x: Array,
    draws: Draws,
    *,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    keep: float,
) -> Array:
    """Add falling flakes (thresholded, magnified noise with downward motion blur) to a whitened image."""
    layer = magnify(mean + deviation * draws.normal(1, *x.shape[2:]), max(zoom, 1.0))
    layer = np.where(layer < threshold, 0.0, layer).clip(0, 1)
    layer = streak(layer, radius, sigma, draws.uniform(-135.0, -45.0)).clip(0, 1)
    white = np.maximum(x, 1.5 * _grey(x) + 0.5)
    return keep * x + (1 - keep) * white + layer + layer[:, :, ::-1, ::-1]


def frost(x: Array, draws: Draws, *, ice: float) -> Array:
    """Blend the image with ice: veins and patches from fractal fields, with an opacity of up to ``ice``.

    The published corruption blends crops of six photographs, which would have to be downloaded.
    """
    height, width = x.shape[2:]
    veins = np.zeros((len(x), height, width))
    for decay in (1.9, 1.5):
        # Veins are the zero set of a centred fractal field, which consists of winding lines.
        veins += 0.5 * (1 - np.abs(2 * clouds(draws.normal(height, width), decay) - 1)) ** 4
    patches = clouds(draws.normal(height, width), 2.2)
    cover = ice * (0.2 + 0.5 * patches + 0.6 * veins).clip(0, 1)[:, None]
    colour = np.array(_ICE if x.shape[1] == 3 else (1.0,))[:, None, None]
    return np.asarray((1 - cover) * x + cover * colour)


def fog(x: Array, draws: Draws, *, density: float, decay: float) -> Array:
    """Add a fractal haze, then rescale to the value range of the image."""
    haze = clouds(draws.normal(*x.shape[2:]), decay)[:, None]
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    return np.asarray((x + density * haze) * (brightest / (brightest + density)))


def brightness(x: Array, draws: Draws, *, shift: float) -> Array:
    """Raise the value V of HSV by ``shift``, up to 1; deterministic."""
    value = x.max(axis=1, keepdims=True)
    raised = np.minimum(value + shift, 1.0)
    return np.asarray(np.where(value > 0, x * (raised / np.where(value > 0, value, 1.0)), raised))


def _grey(x: Array) -> Array:
    """Return the luma (ITU-R BT.601) as (N, 1, H, W); the channel mean unless C = 3."""
    weights = np.array((0.299, 0.587, 0.114)) if x.shape[1] == 3 else np.full(x.shape[1], 1 / x.shape[1])
    return np.asarray((x * weights[:, None, None]).sum(axis=1, keepdims=True))
