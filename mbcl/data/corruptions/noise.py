"""Noise: Gaussian, of few photons, salt and pepper.

All take (N, C, H, W) float64 in [0, 1] and return the like, not clipped.
"""

from __future__ import annotations

import numpy as np

from mbcl.data.corruptions.draws import Array, Draws


def gaussian_noise(x: Array, draws: Draws, *, deviation: float) -> Array:
    """Independent normal noise on every value."""
    return x + deviation * draws.normal(*x.shape[1:])


def shot_noise(x: Array, draws: Draws, *, photons: float) -> Array:
    """As if white were so many photons: Poisson counts."""
    return draws.poisson(x * photons) / photons


def impulse_noise(x: Array, draws: Draws, *, share: float) -> Array:
    """A share of the values is black or white, half each."""
    where = draws.uniform(0.0, 1.0, *x.shape[1:])
    # What is hit at a low severity is hit alike at a higher one: pepper from below, salt from above.
    return np.where(where < share / 2, 0.0, np.where(where >= 1 - share / 2, 1.0, x))
