"""Noise corruptions: Gaussian, shot and impulse noise.

All functions take (N, C, H, W) float64 in [0, 1] and return the same shape and dtype, not clipped.
"""

from __future__ import annotations

import numpy as np

from mbcl.data.corruptions.draws import Array, Draws


def gaussian_noise(x: Array, draws: Draws, *, deviation: float) -> Array:
    """Add independent normal noise with standard deviation ``deviation`` to every value."""
    return x + deviation * draws.normal(*x.shape[1:])


def shot_noise(x: Array, draws: Draws, *, photons: float) -> Array:
    """Replace values by Poisson photon counts, where white has a mean of ``photons``."""
    return draws.poisson(x * photons) / photons


def impulse_noise(x: Array, draws: Draws, *, share: float) -> Array:
    """Set a share of the values to black or white (pepper and salt), half each."""
    u = draws.uniform(0.0, 1.0, *x.shape[1:])
    # Nested: pepper is the low end of u, salt the high end, so a higher severity keeps the hits of a lower one.
    return np.where(u < share / 2, 0.0, np.where(u >= 1 - share / 2, 1.0, x))
