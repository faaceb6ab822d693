"""The principal direction of rows: that of their largest variance.

Letters: n rows, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def principal_direction(x_nD: Tensor, start_D: Tensor, power: int) -> Tensor:
    """The approximate direction of largest variance, by the power method.

    Args:
        x_nD: (n, D) float, on any device.
        start_D: (D,) float, random.
        power: number of steps.

    Returns:
        (D,) of length one; zero if no two rows differ.
    """
    x_nD = x_nD - x_nD.mean(dim=0)
    direction_D = start_D.to(x_nD)
    for _ in range(power):
        direction_D = (x_nD @ direction_D) @ x_nD
        # Rows are at most 2 long, so nothing overflows; a safer norm would cost more than the products of small parts.
        length = torch.linalg.vector_norm(direction_D)
        direction_D /= torch.where(length > 0, length, 1)
    return direction_D
