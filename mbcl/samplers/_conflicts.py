"""Which samples should not share a batch: near neighbours, samples above a margin, and samples of one group.

A conflict is an ordered pair of samples in one batch: a sample, and another one that should not be its negative. Two
samples that exclude each other make two conflicts.

Letters: N samples, M samples of a pool, m of a window, D dimensions, S batches, B samples a batch, P neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from mbcl.plan import Embeddings
from mbcl.samplers._base import Ints
from mbcl.samplers._normalize import CHUNK_ELEMENTS, joined, unit

ROUNDING = 16.0
"""Similarities this many float epsilons below a limit count as equal to it, so that copies of a sample are alike."""


@dataclass(frozen=True)
class Margin:
    r"""The limit of a negative's similarity, from the similarity :math:`s_{ii}` of the sample's own pair.

    Sample j may be a negative of i only if :math:`s_{ij} = \hat u_i \cdot \hat v_j` is below
    :math:`s_{ii} - r|s_{ii}|` for the relative margin r, and below :math:`s_{ii} - a` for the absolute margin a.
    The absolute value keeps the limit below :math:`s_{ii}` where that is negative.

    Args:
        relative: r, or None.
        absolute: a, or None.
    """

    relative: float | None = None
    absolute: float | None = None

    def __bool__(self) -> bool:
        return self.relative is not None or self.absolute is not None

    def exceeded(self, u_D: Tensor, v_D: Tensor, candidate_D: Tensor) -> Tensor:
        """(..., n, m) bool: whether candidate j of m is no negative of sample i of n.

        Args:
            u_D: (..., n, D) unit rows of view 1.
            v_D: (..., n, D) view 2 of the same samples.
            candidate_D: (..., m, D) unit rows of view 2 of the candidates.
        """
        limit = own = (u_D * v_D).sum(dim=-1)
        if self.relative is not None:
            limit = own - self.relative * own.abs()
        if self.absolute is not None:
            limit = torch.minimum(limit, own - self.absolute)
        return u_D @ candidate_D.mT >= (limit - ROUNDING * torch.finfo(own.dtype).eps)[..., None]


NO_MARGIN = Margin()


@dataclass(frozen=True, eq=False)
class Conflicts:
    """The pairs of a pool's rows that should not share a batch.

    Args:
        neighbours_MP: (M, P) int32, for each row the rows that are no negatives of it, or None.
        margin: the limit of a negative's similarity, or none.
        u_MD, v_MD: (M, D) unit rows of both views; used if there is a margin.
        group_M: (M,) int64 groups, whose members should not share a batch, or None.
    """

    neighbours_MP: NDArray[np.int32] | None = None
    margin: Margin = NO_MARGIN
    u_MD: Tensor | None = None
    v_MD: Tensor | None = None
    group_M: Ints | None = None

    def pairs(self, rows_m: Ints) -> csr_array:
        """(m, m) symmetric int64: the conflicts, 0 to 2, between two rows by neighbours and margin, without groups."""
        near = self._near(rows_m)
        above = self._above(rows_m)
        either = near if above is None else above if near is None else csr_array(near + above)
        if either is None:
            return csr_array((len(rows_m), len(rows_m)), dtype=np.int64)
        either.data[:] = 1
        return csr_array(either + either.T)

    def dense(self) -> NDArray[np.bool_]:
        """(M, M) symmetric: whether two rows should not share a batch, for any reason."""
        parts = (self.neighbours_MP, self.u_MD, self.group_M)
        num_rows = next(len(part) for part in parts if part is not None)
        apart_MM: NDArray[np.bool_] = self.pairs(np.arange(num_rows)).astype(np.bool_).toarray()
        if self.group_M is not None:
            apart_MM |= self.group_M[:, None] == self.group_M
            np.fill_diagonal(apart_MM, False)
        return apart_MM

    def _near(self, rows_m: Ints) -> csr_array | None:
        """(m, m) pattern: whether the second row is a neighbour of the first."""
        if self.neighbours_MP is None:
            return None
        local = np.full(len(self.neighbours_MP) + 1, -1)  # the last is for the number M, which is no row's
        local[rows_m] = np.arange(len(rows_m))
        near_mP = local[self.neighbours_MP[rows_m]]
        row, place = np.nonzero(near_mP >= 0)
        return _pattern(row, near_mP[row, place], len(rows_m))

    def _above(self, rows_m: Ints) -> csr_array | None:
        """(m, m) pattern: whether the second row is no negative of the first by the margin."""
        if not self.margin:
            return None
        assert self.u_MD is not None
        assert self.v_MD is not None
        index = torch.from_numpy(rows_m)
        u_mD, v_mD = self.u_MD[index], self.v_MD[index]
        rows, columns = [], []
        chunk = max(1, CHUNK_ELEMENTS // len(rows_m))
        for start in range(0, len(rows_m), chunk):
            part = slice(start, start + chunk)
            row, column = self.margin.exceeded(u_mD[part], v_mD[part], v_mD).nonzero(as_tuple=True)
            other = row + start != column
            rows.append((row[other] + start).numpy())
            columns.append(column[other].numpy())
        return _pattern(np.concatenate(rows), np.concatenate(columns), len(rows_m))


def _pattern(row: Ints, column: Ints, size: int) -> csr_array:
    """(size, size) int64 with a one for each of some different pairs."""
    return csr_array((np.ones(len(row), dtype=np.int64), (row, column)), shape=(size, size))


def neighbour_table(
    pools: Sequence[Ints], neighbours: Sequence[NDArray[np.int32] | None], num_samples: int
) -> NDArray[np.int64]:
    """(N, P) the data-set positions of every sample's neighbours, from (M, P) row numbers within each pool.

    Pools of at most P samples have fewer neighbours: the number N, which is no sample's, fills up their rows.
    """
    near = [(pool, pool[rows]) for pool, rows in zip(pools, neighbours, strict=True) if rows is not None]
    table_NP = np.full((num_samples, max((part.shape[1] for _, part in near), default=0)), num_samples)
    for pool, part in near:
        table_NP[pool, : part.shape[1]] = part
    return table_NP


@dataclass(frozen=True, eq=False)
class Rules:
    """What should not share a batch, by data-set positions.

    Args:
        embeddings: row p holds data-set position p; for the margin.
        neighbours_NP: as :func:`neighbour_table` returns, or None.
        margin: the limit of a negative's similarity, or none.
        group_N: the group of every sample, or None.
    """

    embeddings: Embeddings | None = None
    neighbours_NP: NDArray[np.int64] | None = None
    margin: Margin = NO_MARGIN
    group_N: Ints | None = None

    def among(self, positions_m: Ints) -> tuple[Conflicts, Tensor]:
        """Return the conflicts among some samples by their places, and (m, D) the sums of their views' unit rows."""
        assert self.embeddings is not None
        rows = torch.from_numpy(positions_m).to(self.embeddings.z1.device)
        u_mD, v_mD = (unit(z.detach()[rows]).cpu() for z in (self.embeddings.z1, self.embeddings.z2))
        near_mP = None
        if self.neighbours_NP is not None:
            # Neighbours that are not among them get the number m, which is no sample's.
            place_N = np.full(len(self.neighbours_NP) + 1, len(positions_m), dtype=np.int32)
            place_N[positions_m] = np.arange(len(positions_m))
            near_mP = place_N[self.neighbours_NP[positions_m]]
        group_m = None if self.group_N is None else self.group_N[positions_m]
        return Conflicts(near_mP, self.margin, u_mD, v_mD, group_m), joined(u_mD, v_mD)


def count_conflicts(batches_SB: Ints, rules: Rules) -> Ints:
    """(S,) int64: the conflicts in each batch of the final plan, which may repeat samples in different batches.

    A pair that several rules exclude counts once.
    """
    embeddings, neighbours_NP, margin, group_N = rules.embeddings, rules.neighbours_NP, rules.margin, rules.group_N
    num_batches, batch_size = batches_SB.shape
    place_N = np.full(0 if neighbours_NP is None else len(neighbours_NP) + 1, -1)
    count_S = np.zeros(num_batches, dtype=np.int64)
    anchors = max(1, CHUNK_ELEMENTS // batch_size)
    together = max(1, anchors // batch_size)
    for first in range(0, num_batches, together):
        part_sB = batches_SB[first : first + together]
        for start in range(0, batch_size, anchors):
            own = slice(start, start + anchors)
            shape = (len(part_sB), len(range(batch_size)[own]), batch_size)
            apart_sbB = np.zeros(shape, dtype=np.bool_)
            if group_N is not None:
                apart_sbB |= group_N[part_sB[:, own, None]] == group_N[part_sB[:, None, :]]
            if margin and embeddings is not None:
                apart_sbB |= _above_in_batches(part_sB, own, margin, embeddings)
            if neighbours_NP is not None:
                _mark_neighbours(apart_sbB, part_sB, own, neighbours_NP, place_N)
            rows = np.arange(shape[1])
            apart_sbB[:, rows, rows + start] = False
            count_S[first : first + len(part_sB)] += apart_sbB.sum(axis=(1, 2))
    return count_S


def _above_in_batches(part_sB: Ints, own: slice, margin: Margin, embeddings: Embeddings) -> NDArray[np.bool_]:
    """(s, b, B): whether the second sample of a batch is no negative of the first by the margin."""
    rows_sB = torch.from_numpy(part_sB).to(embeddings.z1.device)
    u_sbD = unit(embeddings.z1.detach()[rows_sB[:, own]])
    v_sBD = unit(embeddings.z2.detach()[rows_sB])
    return margin.exceeded(u_sbD, v_sBD[:, own], v_sBD).cpu().numpy()


def _mark_neighbours(
    apart_sbB: NDArray[np.bool_], part_sB: Ints, own: slice, neighbours_NP: NDArray[np.int64], place_N: Ints
) -> None:
    """Mark the pairs of a sample and one of its neighbours in its batch; ``place_N`` is -1 everywhere, then again."""
    for apart_bB, batch_B in zip(apart_sbB, part_sB, strict=True):
        place_N[batch_B] = np.arange(len(batch_B))
        near_bP = place_N[neighbours_NP[batch_B[own]]]
        row, place = np.nonzero(near_bP >= 0)
        apart_bB[row, near_bP[row, place]] = True
        place_N[batch_B] = -1
