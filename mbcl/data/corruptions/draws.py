"""Random numbers of a corruption: one stream per image, so that no draw depends on the batch.

Letters: N images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mbcl.seeding import numpy_generator

Array = npt.NDArray[np.float64]


class Draws:
    """Random streams of N images.

    Args:
        seed: seed of the corruption.
        corruption: name of the corruption, part of the key. The severity is not: all severities share their draws.
        positions: data-set positions of the images.
    """

    def __init__(self, seed: int, corruption: str, positions: Sequence[int]) -> None:
        self._streams = [numpy_generator(seed, f"corruption {corruption}", position) for position in positions]

    def normal(self, *shape: int) -> Array:
        """Draw standard normal numbers, (N, …)."""
        return np.stack([stream.standard_normal(shape) for stream in self._streams])

    def uniform(self, low: float, high: float, *shape: int) -> Array:
        """Draw uniform numbers in [low, high), (N, …)."""
        return np.stack([stream.uniform(low, high, shape) for stream in self._streams])

    def poisson(self, rates: Array) -> Array:
        """Draw Poisson numbers as float64, one for each of the rates (N, …)."""
        return np.stack([stream.poisson(rate) for stream, rate in zip(self._streams, rates, strict=True)]).astype(float)
