"""The affinity of spectral planning: how much two samples raise each other's loss if they share a batch.

Letters: N samples of a pool, D dimensions, B samples a batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mbcl.errors import ConfigError
from mbcl.functional._checks import check_temperature
from mbcl.functional._similarity import normalize


def affinity(z1: Tensor, z2: Tensor, *, temperature: float, batch_size: int) -> Tensor:
    r"""Logarithm of the affinity, from the scaled similarities :math:`Z_{ij} = \hat u_i \cdot \hat v_j / \tau`.

    .. math:: \log W_{ij} = \phi(Z_{ij}-Z_{ii}) + \phi(Z_{ji}-Z_{ii}) + \phi(Z_{ji}-Z_{jj}) + \phi(Z_{ij}-Z_{jj}),
        \qquad \phi(x) = \log(1 + (B-1) e^x)

    Args:
        z1: (N, D) float, un-normalised embeddings of view 1.
        z2: (N, D), view 2, same dtype.
        temperature: :math:`\tau`, dimensionless, above 0.
        batch_size: B, at least 1.

    Returns:
        (N, N) float64, symmetric to the last bit; the diagonal is :math:`4 \log B`. Rows are normalised in the
        precision of the inputs, the rest is float64.

    Stability:
        Kept in the log domain and in float64: at a temperature of 0.1 :math:`W` itself overflows float32, at 0.01
        also float64.

    Raises:
        ValueError: if the shapes are not both (N, D).
        ConfigError: if ``temperature`` is not above 0 or ``batch_size`` < 1.

    Reference:
        Cho et al., Mini-Batch Optimization of Contrastive Loss, arXiv 2307.05906, section 5 (spectral clustering).

    Example:
        >>> affinity(torch.eye(2), torch.eye(2), temperature=1.0, batch_size=2).exp()[0, 0]  # (1 + 1)^4
        tensor(16.0000, dtype=torch.float64)
    """
    check_temperature(temperature)
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"affinity: views must be (N, D) of one shape, found {tuple(z1.shape)}, {tuple(z2.shape)}")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be >= 1, found {batch_size}")
    z_NN = normalize(z1).double() @ normalize(z2).double().T / temperature
    own_N = z_NN.diagonal()
    # Half of the four terms; the other two terms of (i, j) are those of (j, i) in this half.
    half_NN = _phi(z_NN - own_N[:, None], batch_size) + _phi(z_NN - own_N[None, :], batch_size)
    return half_NN + half_NN.T


def _phi(x_NN: Tensor, batch_size: int) -> Tensor:
    """log(1 + (B-1) e^x), without overflow for large x or loss of precision for small e^x."""
    if batch_size == 1:
        return torch.zeros_like(x_NN)
    shifted_NN = x_NN + math.log(batch_size - 1)
    return torch.logaddexp(shifted_NN, torch.zeros_like(shifted_NN))
