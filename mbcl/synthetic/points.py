"""Direct optimisation of points on a sphere: plain SGD on raw rows, vectorised over many runs.

A sample has two rows, x_u and x_v, of which only the directions enter the loss. The loss of a batch is the CLIP loss
without temperature. Its gradient is implemented by hand: for the many small batches of the study, autograd costs more
than the arithmetic.

Letters: 2 the views u and v, R runs, N samples, K batches, B samples per batch, D dimensions, M = R * K batches of all
runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**22
"""Maximum number of elements of rows and similarities in memory at once, 32 MiB in float64."""


def similarities(x_2RND: Tensor) -> Tensor:
    """Return the cosines of every u with every v, (R, N, N). As published without epsilon: a zero row becomes NaN."""
    unit_2RND = x_2RND.div(torch.linalg.vector_norm(x_2RND, dim=-1, keepdim=True))
    return unit_2RND[0] @ unit_2RND[1].mT


def clip_losses(similarity_MBB: Tensor) -> Tensor:
    r"""Compute the CLIP loss, without temperature, from the similarities of batches.

    .. math:: \frac{1}{B} \sum_i \Big[ \log \sum_j e^{S_{ij}} + \log \sum_j e^{S_{ji}} - 2 S_{ii} \Big]

    Args:
        similarity_MBB: (..., B, B) float, rows view u, columns view v.

    Returns:
        (...) losses in nats: the sum of both directions, as in :func:`mbcl.functional.clip`.

    Reference:
        Cho et al., Mini-Batch Optimization of Contrastive Loss, arXiv 2307.05906, section 3.

    Example:
        >>> clip_losses(torch.eye(2))  # 2 log(1 + 1/e)
        tensor(0.6265)
    """
    log_sums_MB = similarity_MBB.logsumexp(dim=-1) + similarity_MBB.logsumexp(dim=-2)
    return (log_sums_MB - 2 * similarity_MBB.diagonal(dim1=-2, dim2=-1)).mean(dim=-1)


def clip_gradient(unit_2MBD: Tensor) -> tuple[Tensor, Tensor]:
    r"""Compute the CLIP loss of M batches and its gradient with respect to the directions, unconstrained.

    With P the row-wise and Q the column-wise softmax of :math:`S = u v^T`, :math:`G = (P + Q - 2 I) / B`, the gradients
    are :math:`G v` and :math:`G^T u`.

    Args:
        unit_2MBD: (2, M, B, D) float, rows of length one, so that no exponential overflows.

    Returns:
        (M,) losses; (2, M, B, D) gradients.
    """
    u_MBD, v_MBD = unit_2MBD
    s_MBB = u_MBD @ v_MBD.mT
    e_MBB = s_MBB.exp()
    row_MB1, column_M1B = e_MBB.sum(dim=2, keepdim=True), e_MBB.sum(dim=1, keepdim=True)
    size = s_MBB.shape[1]
    s_MB = s_MBB.diagonal(dim1=1, dim2=2)
    loss_M = ((row_MB1[:, :, 0] * column_M1B[:, 0]).log_() - 2 * s_MB).mean(dim=1)
    g_MBB = (e_MBB / row_MB1).addcdiv_(e_MBB, column_M1B)
    g_MBB.diagonal(dim1=1, dim2=2).sub_(2)
    gradient_2MBD = torch.stack([g_MBB @ v_MBD, g_MBB.mT @ u_MBD]).div_(size)
    return loss_M, gradient_2MBD


class Points:
    """The raw rows of R runs, updated in place by SGD.

    Args:
        x_2RND: (2, R, N, D) float, the starting points; they are copied.
    """

    def __init__(self, x_2RND: Tensor) -> None:
        self.x_2RND = x_2RND.clone(memory_format=torch.contiguous_format)
        _, num_runs, num_samples, dim = self.x_2RND.shape
        self._rows = self.x_2RND.view(2, num_runs * num_samples, dim)
        self._first_row_R11 = (torch.arange(num_runs, device=x_2RND.device) * num_samples)[:, None, None]

    def update(self, batches_RKB: Tensor, *, lr: float, scale: float = 1.0) -> Tensor:
        """Make one SGD update: every run moves against ``scale`` times the sum of the gradients of its K batches.

        Args:
            batches_RKB: (R, K, B) int64, the batches of each run; a sample may be in several batches.
            lr: learning rate.
            scale: 1 for the sum of the batches' losses, 1 / K for their mean.

        Returns:
            (R, K) losses of the batches before the update.
        """
        num_runs, num_batches, size = batches_RKB.shape
        elements = size * (2 * self._rows.shape[2] + size)
        chunk = max(1, CHUNK_ELEMENTS // (num_runs * elements))
        if num_batches == 1 and num_runs * elements > CHUNK_ELEMENTS:
            # Runs share no rows, so they can be updated in chunks, one after the other, to bound memory.
            runs_per_chunk = max(1, CHUNK_ELEMENTS // elements)
            parts = zip(batches_RKB.split(runs_per_chunk), self._first_row_R11.split(runs_per_chunk), strict=True)
            return torch.cat([self._move(part_RKB, first_R11, lr * scale) for part_RKB, first_R11 in parts])
        if num_batches <= chunk:
            return self._move(batches_RKB, self._first_row_R11, lr * scale)
        total, losses = torch.zeros_like(self._rows), []
        for part_RKB in batches_RKB.split(chunk, dim=1):
            rows, loss_RK, gradient = self._gradient(part_RKB, self._first_row_R11)
            total.index_add_(1, rows, gradient)
            losses.append(loss_RK)
        self._rows.sub_(total, alpha=lr * scale)
        return torch.cat(losses, dim=1)

    def _move(self, batches_RKB: Tensor, first_row_R11: Tensor, rate: float) -> Tensor:
        """Update the runs with these first rows and return the losses before the update, (R, K)."""
        rows, loss_RK, gradient = self._gradient(batches_RKB, first_row_R11)
        self._rows.index_add_(1, rows, gradient, alpha=-rate)
        return loss_RK

    def gradient(self, batches_RKB: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of each run's batches, (R,), and its gradient, (2, R, N, D)."""
        rows, loss_RK, gradient = self._gradient(batches_RKB, self._first_row_R11)
        total = torch.zeros_like(self._rows).index_add_(1, rows, gradient, alpha=1 / batches_RKB.shape[1])
        return loss_RK.mean(dim=1), total.view_as(self.x_2RND)

    def _gradient(self, batches_RKB: Tensor, first_row_R11: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return row indices, (R K B,), losses, (R, K), and gradients of the raw rows, (2, R K B, D)."""
        num_runs, num_batches, size = batches_RKB.shape
        rows = (batches_RKB + first_row_R11).flatten()
        x = self._rows.index_select(1, rows)
        length = torch.linalg.vector_norm(x, dim=2, keepdim=True)
        unit = x / length
        loss_M, gradient = clip_gradient(unit.view(2, num_runs * num_batches, size, -1))
        gradient = gradient.view_as(unit)
        # Chain rule of the normalisation: the tangential part of the gradient, divided by the length of the row.
        radial = (gradient * unit).sum(dim=2, keepdim=True)
        return rows, loss_M.view(num_runs, num_batches), gradient.addcmul_(unit, radial, value=-1).div_(length)
