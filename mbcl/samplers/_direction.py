"""The direction in which rows differ most.

Letters: n rows, D dimensions.
"""

from __future__ import annotations

from torch import Tensor

from mbcl.samplers._unit import unit


def principal_direction(x_nD: Tensor, start_D: Tensor, power: int) -> Tensor:
    """The approximate direction of largest variance, by the power method.

    Args:
        x_nD: (n, D) float, on any device.
        start_D: (D,) float, random.
        power: steps.

    Returns:
        (D,) of length one; zero if no two rows differ.
    """
    x_nD = x_nD - x_nD.mean(dim=0)
    direction_D = start_D.to(x_nD)
    for _ in range(power):
        direction_D = unit((x_nD @ direction_D) @ x_nD)
    return direction_D
