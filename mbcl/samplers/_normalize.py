"""Normalisation of rows for planning, safe for lengths whose square is not representable."""

from __future__ import annotations

import torch
from torch import Tensor

from mbcl.functional import normalize

CHUNK_ELEMENTS = 2**22
"""Entries of one matrix of similarities in memory: 16 MiB in float32, of which about six copies may exist at once."""
CHUNK_ROWS = 8192
"""Rows of a chunk. Several copies of a chunk are in memory at once, which should be small relative to the inputs."""


def unit(z_ND: Tensor) -> Tensor:
    """Rows of length one, as :func:`mbcl.functional.normalize` gives, also where a squared length is not representable.

    Args:
        z_ND: (..., N, D) float.

    Returns:
        (..., N, D); zero rows stay zero.

    Example:
        >>> unit(torch.tensor([[4e30, 0.0], [0.0, 4e-30], [0.0, 0.0]])).tolist()
        [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    largest = z_ND.abs().amax(dim=-1, keepdim=True)
    return normalize(z_ND / torch.where(largest > 0, largest, 1))


def pair_sum(z1_ND: Tensor, z2_ND: Tensor) -> Tensor:
    """(..., N, D): the sum of both views' unit rows. A product of two sums is the sum of the four view similarities."""
    return unit(z1_ND) + unit(z2_ND)
