"""``mix`` and ``skip``: what softens any plan that embeddings made, whoever made it.

Letters: M samples of a pool, D dimensions, S batches, B samples a batch, P neighbours of a sample,
W of a ranking.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from mbcl.samplers._normalize import pair_sum

Rows = NDArray[np.int64]

WINDOW = 64
"""Batches among which samples are exchanged to keep neighbours apart: neighbouring ones, which look for the same."""
PASSES = 8
"""How often all samples are looked at; each exchange lowers the number of conflicts, so few passes are needed."""
CHUNK_ELEMENTS = 2**22
ATTEMPTS = 200
"""Random places that are tried for a sample which its new batch holds already."""


def mixed(batches_SB: Rows, share: float, rng: np.random.Generator) -> Rows:
    """Permute some samples among all batches, so that every sample still occurs as often as before.

    Args:
        batches_SB: (S, B) int64 data-set positions; a position at most once in a row.
        share: of the places of each batch that take part, in [0, 1]. Of a place that is not whole, a share of the
            batches has one more.
        rng: draws the places and the permutation.

    Returns:
        (S, B) int64; places that take no part are unchanged, and no row holds a position twice.
    """
    num_batches, batch_size = batches_SB.shape
    whole, rest = divmod(share * batch_size, 1)
    num_S1 = int(whole) + (rng.random((num_batches, 1)) < rest)
    row, rank = np.nonzero(np.arange(batch_size) < num_S1)
    place = np.argsort(rng.random((num_batches, batch_size)), axis=1, kind="stable")[row, rank]
    result_SB = batches_SB.copy()
    result_SB[row, place] = batches_SB[row, place][rng.permutation(len(row))]
    return _without_repeats(result_SB, batches_SB, row, place, rng)


def _without_repeats(result_SB: Rows, before_SB: Rows, row: Rows, place: Rows, rng: np.random.Generator) -> Rows:
    """Exchange samples that came to a batch which holds them with others that took part, until no row has any twice.

    Only plans that repeat samples need it. Where chance finds no partner, which takes plans of few batches, all
    exchanges are undone.
    """
    rows_SB = np.sort(result_SB, axis=1)
    if not (rows_SB[:, 1:] == rows_SB[:, :-1]).any():
        return result_SB
    held = [Counter(batch) for batch in result_SB.tolist()]
    for entry in rng.permutation(len(row)):
        batch, own = int(row[entry]), int(result_SB[row[entry], place[entry]])
        if held[batch][own] == 1:
            continue
        for other in rng.integers(0, len(row), ATTEMPTS):
            target, its = int(row[other]), int(result_SB[row[other], place[other]])
            if held[target][own] == 0 and held[batch][its] == 0:
                result_SB[batch, place[entry]], result_SB[target, place[other]] = its, own
                held[batch][own] -= 1
                held[batch][its] += 1
                held[target][its] -= 1
                held[target][own] += 1
                break
        else:
            return before_SB
    return result_SB


def nearest(z1_MD: Tensor, z2_MD: Tensor, count: int) -> NDArray[np.int32]:
    r"""Of each sample the ``count`` others of the pool that look most like it.

    Alike is measured by :math:`(\hat u_i + \hat v_i) \cdot (\hat u_j + \hat v_j)`: the sum of the four
    similarities between two samples' views.

    Args:
        z1_MD: (M, D) float, un-normalised embeddings of view 1, on any device.
        z2_MD: (M, D), view 2.
        count: P; at most M - 1 are returned.

    Returns:
        (M, min(P, M - 1)) int32, nearest first; of equal ones, any.
    """
    x_MD = pair_sum(z1_MD, z2_MD)
    return ranking(x_MD, x_MD, count)


def ranking(u_MD: Tensor, v_MD: Tensor, count: int) -> NDArray[np.int32]:
    """Of each row of ``u_MD`` the rows of ``v_MD`` with the largest products, without its own.

    Args:
        u_MD: (M, D) float, on any device.
        v_MD: (M, D) float.
        count: W; at most M - 1 are returned.

    Returns:
        (M, min(W, M - 1)) int32, largest first; of equal ones, any.
    """
    num_rows = len(u_MD)
    count, chunk = min(count, num_rows - 1), max(1, CHUNK_ELEMENTS // num_rows)
    # What is kept is allocated once: small arrays between large ones that come and go would tear memory to pieces.
    ranked_MW = torch.empty(num_rows, count, dtype=torch.int32, device=u_MD.device)
    product_mM = u_MD.new_empty(min(chunk, num_rows), num_rows)
    for start in range(0, num_rows, chunk):
        own_m = torch.arange(start, min(start + chunk, num_rows), device=u_MD.device)
        part_mM = product_mM[: len(own_m)]
        torch.mm(u_MD[own_m], v_MD.T, out=part_mM)
        part_mM.scatter_(1, own_m[:, None], -torch.inf)
        ranked_MW[own_m] = part_mM.topk(count, dim=1).indices.to(torch.int32)
    return ranked_MW.cpu().numpy()


def separate_neighbors(rows_SB: Rows, neighbours_MP: NDArray[np.int32], x_MD: NDArray[np.floating]) -> Rows:
    """Exchange samples between batches until as few neighbours as possible share one.

    A conflict is a sample and a neighbour of it in one batch: two that are each other's neighbours make two. Every
    exchange is the one that lowers the number of conflicts most, of equal ones that which keeps similar samples
    together most. Conflicts never increase; where batches have no room for better, some remain.

    Args:
        rows_SB: (S, B) int64 distinct row numbers in ``range(M)``.
        neighbours_MP: (M, P) int32, as :func:`nearest`.
        x_MD: (M, D) float, how samples are compared.

    Returns:
        (S, B) int64, a permutation of the same row numbers.
    """
    if neighbours_MP.shape[1] == 0 or len(rows_SB) < 2:
        return rows_SB
    # The last window takes the rest, so that none has a single batch.
    windows = max(1, len(rows_SB) // WINDOW)
    return np.concatenate([_one_window(part, neighbours_MP, x_MD) for part in np.array_split(rows_SB, windows)])


def _one_window(rows_SB: Rows, neighbours_MP: NDArray[np.int32], x_MD: NDArray[np.floating]) -> Rows:
    """:func:`separate_neighbors` within some batches, on row numbers that count only their samples."""
    num_batches, batch_size = rows_SB.shape
    ids_M = rows_SB.ravel()
    pairs = _conflicts_of_pairs(ids_M, neighbours_MP)
    x_MD = np.ascontiguousarray(x_MD[ids_M])
    batch_M = np.repeat(np.arange(num_batches), batch_size)
    count_MS = pairs @ np.eye(num_batches, dtype=np.int64)[batch_M]
    sum_SD = x_MD.reshape(num_batches, batch_size, -1).sum(axis=1)
    everyone = np.arange(len(ids_M))
    for _ in range(PASSES):
        crowded = np.flatnonzero(count_MS[everyone, batch_M] > 0)
        moved = False
        for sample in crowded[np.argsort(-count_MS[crowded, batch_M[crowded]], kind="stable")]:
            moved |= _exchange(int(sample), batch_M, count_MS, sum_SD, pairs, x_MD)
        if not moved:
            break
    return ids_M[np.argsort(batch_M, kind="stable")].reshape(num_batches, batch_size)


def _conflicts_of_pairs(ids_M: Rows, neighbours_MP: NDArray[np.int32]) -> csr_array:
    """(M, M) symmetric int64: 1 where one of two is a neighbour of the other, 2 where each is; M counts ``ids_M``."""
    local = np.full(len(neighbours_MP), -1)
    local[ids_M] = np.arange(len(ids_M))
    near_MP = local[neighbours_MP[ids_M]]
    row, place = np.nonzero(near_MP >= 0)
    ones = np.ones(len(row), dtype=np.int64)
    held = csr_array((ones, (row, near_MP[row, place])), shape=(len(ids_M), len(ids_M)))
    return csr_array(held + held.T)


def _row(pairs: csr_array, j: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Columns and entries of a row."""
    entries = slice(pairs.indptr[j], pairs.indptr[j + 1])
    return pairs.indices[entries], pairs.data[entries]


def _exchange(
    j: int,
    batch_M: NDArray[np.int64],
    count_MS: NDArray[np.int64],
    sum_SD: NDArray[np.floating],
    pairs: csr_array,
    x_MD: NDArray[np.floating],
) -> bool:
    """Exchange sample j with the best partner, if that lowers the number of conflicts."""
    home = batch_M[j]
    if count_MS[j, home] == 0:
        return False
    everyone = np.arange(len(batch_M))
    change_M = count_MS[j, batch_M] + count_MS[:, home] - count_MS[j, home] - count_MS[everyone, batch_M]
    others, conflicts = _row(pairs, j)
    change_M[others] -= 2 * conflicts  # the two leave each other's way
    change_M[batch_M == home] = 1
    best = change_M.min()
    if best >= 0:
        return False
    ties = np.flatnonzero(change_M == best)
    likeness = (sum_SD @ x_MD[j])[batch_M[ties]] + x_MD[ties] @ (sum_SD[home] - 2 * x_MD[j])
    other = int(ties[np.argmax(likeness)])
    away = batch_M[other]
    for sample, source, target in ((j, home, away), (other, away, home)):
        batch_M[sample] = target
        others, conflicts = _row(pairs, sample)
        count_MS[others, source] -= conflicts
        count_MS[others, target] += conflicts
        sum_SD[source] -= x_MD[sample]
        sum_SD[target] += x_MD[sample]
    return True
