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
    """(..., N, D): both views' unit rows as one, see :func:`joined`."""
    return joined(unit(z1_ND), unit(z2_ND))


def joined(u_ND: Tensor, v_ND: Tensor) -> Tensor:
    """Both views of each sample as one row, whose products are similarities of samples.

    A product of two sums is the sum of the four similarities of the views. Sides of two widths cannot be compared with
    each other: rows are then both sides one after the other, and a product is the sum of the two within the sides.

    Args:
        u_ND: (..., N, D1) unit rows of view 1.
        v_ND: (..., N, D2) unit rows of view 2.

    Returns:
        (..., N, D1) for D1 = D2, otherwise (..., N, D1 + D2).
    """
    return u_ND + v_ND if u_ND.shape[-1] == v_ND.shape[-1] else torch.cat([u_ND, v_ND], dim=-1)
