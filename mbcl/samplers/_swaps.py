r"""Local search by swaps between the batches of a pool, each of which raises the NT-Xent: compiled loops.

The mean NT-Xent of a partition is, except for terms that no partition changes, the mean of :math:`\log s_a` over the
2M anchors a, where :math:`s_a` sums :math:`e^{\mathrm{sim}/\tau}` over a's positive and the other samples of its batch.
A sample adds two terms to an anchor, one per view:

.. math:: s_i = e^{u_i v_i/\tau} + \sum_{j \in S(i), j \ne i} A_{ij}, \qquad
    A_{ij} = e^{u_i u_j/\tau} + e^{u_i v_j/\tau}

for the anchor :math:`u_i`, and likewise :math:`t_i`, with :math:`C_{ij} = e^{v_i v_j/\tau} + e^{v_i u_j/\tau}`, for
:math:`v_i`. A table of what each sample would add to each batch proposes swaps. A swap is made only if the exact change
of the sum of logarithms is positive, so the loss never falls.

Letters: M samples of the pool, K batches, B samples a batch, D dimensions.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.samplers._base import Ints

MIN_GAIN = 1e-3
"""The least gain of a swap in nats, summed over a pool's anchors; float32 sums are too inexact for smaller ones."""
TARGETS = 3
"""Batches that a sample tries to move to: those with the largest entries in its column of the table."""
PARTNERS = 4
"""Samples of a target batch with which a swap is evaluated exactly."""
SINGLE_RANGE = 20.0
"""Up to this 1/temperature the product of two anchors' changes, each up to twice e^40, fits float32."""
DOUBLE_RANGE = 170.0
"""Above this 1/temperature the product of two anchors' changes, each up to twice e^340, exceeds float64, too. Plans for
lower temperatures are made at 1/170."""
LARGEST_LOG = 700.0
"""e^700 is below the largest float64."""


class _Workspace(threading.local):
    """A buffer of four (M, M) matrices for each thread, reused for the next pool of the same size.

    Allocating 26 MiB anew for every pool of 1,280 samples costs half as much time as the matrix products.
    """

    MAX_ROWS = 2048
    """Buffers for pools of at most this many samples are reused: 64 MiB in float32, 128 MiB in float64."""

    buffer: Tensor | None = None

    def get(self, num_rows: int, dtype: torch.dtype) -> Tensor:
        """Return a (4, M, M) tensor, uninitialised."""
        if self.buffer is not None and self.buffer.shape[1] == num_rows and self.buffer.dtype == dtype:
            return self.buffer
        self.buffer = None
        space_4MM = torch.empty(4, num_rows, num_rows, dtype=dtype)
        if num_rows <= self.MAX_ROWS:
            self.buffer = space_4MM
        return space_4MM


_workspace = _Workspace()


def exponentials(u_MD: Tensor, v_MD: Tensor, temperature: float) -> Tensor:
    r"""The four matrices of :math:`e^{\mathrm{sim}/\tau}`: uu, uv, vu and vv.

    Args:
        u_MD: (M, D) float CPU tensor, rows of length one, view 1.
        v_MD: (M, D), view 2.
        temperature: :math:`\tau`.

    Returns:
        (4, M, M), float32 if its range suffices for the temperature, else float64. It is the thread's buffer, valid
        until this thread's next call.
    """
    inverse = min(1 / temperature, DOUBLE_RANGE)
    dtype = torch.float32 if inverse <= SINGLE_RANGE else torch.float64
    u_MD, v_MD = (z.to(dtype) * math.sqrt(inverse) for z in (u_MD, v_MD))
    space_4MM = _workspace.get(len(u_MD), dtype)
    uu, uv, vu, vv = space_4MM
    _products(u_MD, uu)
    _products(v_MD, vv)
    torch.mm(u_MD, v_MD.T, out=uv).exp_()
    vu.copy_(uv.T)
    return space_4MM


def _products(x_MD: Tensor, result_MM: Tensor, block: int = 320) -> None:
    """Write exp(x xᵀ) to ``result_MM``; each pair of blocks is computed once and mirrored."""
    num_rows = len(x_MD)
    for start in range(0, num_rows, block):
        end = min(start + block, num_rows)
        torch.mm(x_MD[start:end], x_MD[start:].T, out=result_MM[start:end, start:]).exp_()
        result_MM[end:, start:end] = result_MM[start:end, end:].T


def factors_a_product(temperature: float) -> int:
    """Return how many members' factors one float64 product can hold: two a member, each at most 1 + 2 e^(2/tau)."""
    return max(1, int(LARGEST_LOG / (2 * math.log1p(2 * math.exp(2 * min(1 / temperature, DOUBLE_RANGE))))))


def refine(
    u_MD: Tensor,
    v_MD: Tensor,
    rows_KB: Ints,
    *,
    temperature: float,
    sweeps: int,
    apart_MM: NDArray[np.bool_] | None = None,
) -> Ints:
    """Improve batches by swaps; their loss does not fall.

    Args:
        u_MD: (M, D) float CPU tensor, rows of length one, view 1.
        v_MD: (M, D), view 2.
        rows_KB: (K, B) int64, a partition of ``range(M)``.
        temperature: of the loss.
        sweeps: passes over the samples; in each pass every sample tries to move to a better batch.
        apart_MM: (M, M) bool, symmetric: pairs that should not share a batch; no swap increases the number that do.

    Returns:
        (K, B) int64, a partition of ``range(M)``.
    """
    from mbcl.samplers.kernels import swaps as loops

    num_batches, batch_size = rows_KB.shape
    order_M = rows_KB.ravel()
    # In the order of the batches, so that the rows of a batch are contiguous in memory.
    u_MD, v_MD = u_MD[order_M], v_MD[order_M]
    tables = tuple(exponentials(u_MD, v_MD, temperature).numpy())
    own_M = tables[1].diagonal().astype(np.float64)
    constraint_MM = np.zeros((1, 1), dtype=np.bool_) if apart_MM is None else apart_MM[np.ix_(order_M, order_M)]
    batch_M = np.repeat(np.arange(num_batches), batch_size)
    members_KB = np.arange(len(order_M)).reshape(num_batches, batch_size).copy()
    members_a_product = factors_a_product(temperature)
    for _ in range(sweeps):
        sums = (own_M, *loops.denominators(tables, members_KB, own_M))
        gain_KM = loops.gain_table(tables, members_KB, sums, members_a_product)
        leave_M = loops.leave_values(tables, members_KB, sums)
        gain_KM[batch_M, np.arange(len(batch_M))] = -np.inf
        order_by_gain_M = np.argsort(leave_M - gain_KM.max(axis=0), kind="stable")
        table = (gain_KM, leave_M, order_by_gain_M)
        limits = (TARGETS, PARTNERS, MIN_GAIN)
        if loops.sweep(tables, members_KB, batch_M, sums, *table, *limits, constraint_MM) == 0:
            break
    return np.asarray(order_M[members_KB])
