"""Normalisation and similarity.

Letters: M, N rows; D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def raise_half(x: Tensor) -> Tensor:
    """Raise float16 and bfloat16 to float32; return float32 and float64 unchanged.

    Example:
        >>> raise_half(torch.ones(2, dtype=torch.bfloat16)).dtype, raise_half(torch.ones(2).double()).dtype
        (torch.float32, torch.float64)
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def normalize(x_ND: Tensor) -> Tensor:
    r"""Rows of length one: :math:`x / \max(\|x\|_2, 10^{-12})`.

    A zero row stays zero. The gradient of a row scales with the inverse of its length.

    Args:
        x_ND: (..., N, D) float; float16 and bfloat16 are raised to float32, float64 stays.

    Returns:
        (..., N, D), dimensionless.

    Stability:
        The squared length must be representable: in float32, rows longer than about 1e19 are not.

    Reference:
        The normalisation of the published method, arXiv 2307.05906, section 2.

    Example:
        >>> normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    return torch.nn.functional.normalize(raise_half(x_ND), dim=-1, eps=1e-12)


def cosine_similarity(u_MD: Tensor, v_ND: Tensor) -> Tensor:
    r"""All pairs' cosines: :math:`S_{ij} = \hat u_i \cdot \hat v_j` with rows normalised by :func:`normalize`.

    Args:
        u_MD: (..., M, D) float.
        v_ND: (..., N, D) float, same dtype.

    Returns:
        (..., M, N) in [-1, 1] up to rounding; float32, or float64 if the inputs are. Autocast is off for the product:
        in half precision a cosine has three digits, too few to be divided by a temperature of 0.1.

    Example:
        >>> cosine_similarity(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])).tolist()
        [[1.0, 0.0]]
    """
    with torch.autocast(device_type=u_MD.device.type, enabled=False):
        return normalize(u_MD) @ normalize(v_ND).mT
