"""The known optima of the loss, and the distance of points from them.

Two optima are known. For d >= N - 1 it is the simplex equiangular tight frame: u_i = v_i, with the same angle between
all samples. For d = N / 2 it is the cross-polytope: u_i = v_i, samples in pairs of opposite directions, the pairs
orthogonal.

Letters: R runs, N samples, B samples per batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mbcl.synthetic.pairing import opposites


@dataclass(frozen=True)
class Optimum:
    """The optimum of N samples in d dimensions.

    Args:
        kind: ``simplex`` or ``cross_polytope``.
        num_samples: N.

    Reference:
        Cho et al., Mini-Batch Optimization of Contrastive Loss, arXiv 2307.05906, section 4.
    """

    kind: Literal["simplex", "cross_polytope"]
    num_samples: int

    def batch_loss(self, batch_size: int) -> float:
        """Return the mean loss over all C(N, B) batches; for B = N the loss of all samples as one batch.

        An anchor of a cross-polytope has its opposite in its batch with probability (B - 1) / (N - 1).

        Example:
            >>> round(Optimum("simplex", 8).batch_loss(8), 7), round(Optimum("cross_polytope", 8).batch_loss(8), 7)
            (2.3464163, 2.413505)
        """
        n, b = self.num_samples, batch_size
        if self.kind == "simplex":
            return 2 * math.log1p((b - 1) * math.exp(-n / (n - 1)))
        probability = (b - 1) / (n - 1)
        with_opposite = math.log(math.e + 1 / math.e + b - 2) - 1
        without = math.log(math.e + b - 1) - 1
        return 2 * (probability * with_opposite + (1 - probability) * without)

    @property
    def full_loss(self) -> float:
        """The loss of all samples as one batch."""
        return self.batch_loss(self.num_samples)

    def gram(self) -> Tensor:
        """Return u v^T, (N, N) float64, at the optimum; samples 2m and 2m + 1 are opposites, as published."""
        if self.kind == "simplex":
            gram_NN = torch.full((self.num_samples, self.num_samples), -1 / (self.num_samples - 1), dtype=torch.float64)
            return gram_NN.fill_diagonal_(1)
        opposite_N = torch.arange(self.num_samples) ^ 1
        eye_NN = torch.eye(self.num_samples, dtype=torch.float64)
        return eye_NN - eye_NN[opposite_N]


def optimum(num_samples: int, dim: int) -> Optimum | None:
    """Return the known optimum of N samples in d dimensions, or None if none is known.

    Example:
        >>> optimum(8, 16).kind, optimum(8, 7).kind, optimum(8, 4).kind, optimum(8, 5)
        ('simplex', 'simplex', 'cross_polytope', None)
    """
    if dim >= num_samples - 1:
        return Optimum("simplex", num_samples)
    if 2 * dim == num_samples:
        return Optimum("cross_polytope", num_samples)
    return None


def distance(z_RNN: Tensor, best: Optimum) -> Tensor:
    r"""Compute the distance of points from the optimum: the minimum Frobenius norm of :math:`u v^T - Z^*`.

    The minimum is over the symmetries of the optimum. A rotation of all points does not change :math:`u v^T`. The
    simplex is invariant to permutations of the samples. For the cross-polytope, the minimum is taken exactly over all
    pairings of the samples as opposites. Wrongly matched positives, u_i with v_j, increase the distance, because the
    diagonal of :math:`Z^*` is 1.

    Args:
        z_RNN: (R, N, N) float, the cosines of u and v.
        best: the optimum.

    Returns:
        (R,) float64, 0 at the optimum only.

    Example:
        >>> distance(torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]]), Optimum("simplex", 2))
        tensor([0.], dtype=torch.float64)
    """
    z_RNN = z_RNN.double()
    gram_NN = best.gram()
    if best.kind == "simplex":
        return _frobenius(z_RNN - gram_NN)
    norms = []
    for z_NN in z_RNN.cpu():
        opposite_N = torch.from_numpy(opposites(z_NN.numpy()))
        eye_NN = torch.eye(len(z_NN), dtype=torch.float64)
        norms.append(_frobenius(z_NN - eye_NN + eye_NN[opposite_N]))
    return torch.stack(norms)


def rearranged(z_RNN: Tensor, solution_NN: Tensor) -> Tensor:
    """Apply the published rearrangement: a greedy match of each row's values with the solution, row by row.

    In every row, each entry of the solution, from left to right, takes the closest value that is not used yet. This is
    not a permutation of the samples: it does not detect wrongly matched positives, and it is not the minimum over
    permutations. It exists for comparison with the publication; :func:`distance` has neither fault.

    Args:
        z_RNN: (R, N, N) float.
        solution_NN: (N, N) float.

    Returns:
        (R, N, N), the same values, rearranged within each row.

    Example:
        >>> rearranged(torch.tensor([[[0.1, 0.9], [1.0, 0.0]]]), torch.eye(2)).tolist()
        [[[0.8999999761581421, 0.10000000149011612], [0.0, 1.0]]]
    """
    unused_RNN, out = z_RNN.clone(), []
    for target_N in solution_NN.to(z_RNN).T:
        nearest_RN1 = (unused_RNN - target_N[:, None]).abs_().argmin(dim=2, keepdim=True)
        out.append(unused_RNN.gather(2, nearest_RN1))
        unused_RNN.scatter_(2, nearest_RN1, torch.inf)
    return torch.cat(out, dim=2)


def rearranging_norm(z_RNN: Tensor, best: Optimum) -> Tensor:
    """Return the published distance, (R,): the Frobenius norm of the :func:`rearranged` matrix minus the solution."""
    solution_NN = best.gram()
    return _frobenius(rearranged(z_RNN.double(), solution_NN) - solution_NN)


def _frobenius(x_RNN: Tensor) -> Tensor:
    return x_RNN.square().sum(dim=(-2, -1)).sqrt()
