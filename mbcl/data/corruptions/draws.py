"""Random numbers of a corruption: every image has a stream of its own, so none depends on its batch.

Letters: N images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mbcl.seeding import numpy_generator

Array = npt.NDArray[np.float64]


class Draws:
    """Streams of N images.

    Args:
        seed: of the corruption.
        corruption: its name. The severity is no part of the key: a severer corruption is the same one, stronger.
        positions: data-set positions of the images.
    """

    def __init__(self, seed: int, corruption: str, positions: Sequence[int]) -> None:
        self._streams = [numpy_generator(seed, f"corruption {corruption}", position) for position in positions]

    def normal(self, *shape: int) -> Array:
        """(N, …) standard normal numbers."""
        return np.stack([stream.standard_normal(shape) for stream in self._streams])

    def uniform(self, low: float, high: float, *shape: int) -> Array:
        """(N, …) uniform numbers in [low, high)."""
        return np.stack([stream.uniform(low, high, shape) for stream in self._streams])

    def poisson(self, rates: Array) -> Array:
        """(N, …) Poisson numbers for as many rates."""
        return np.stack([stream.poisson(rate) for stream, rate in zip(self._streams, rates, strict=True)]).astype(float)
