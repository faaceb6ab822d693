"""``mix`` and ``skip``: they make the batches of any sampler with embeddings less hard.

Letters: M samples of a pool, D dimensions, S batches, B samples a batch, P neighbours of a sample,
W of a ranking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from mbcl.samplers._base import Ints
from mbcl.samplers._normalize import CHUNK_ELEMENTS, pair_sum

WINDOW = 64
"""Consecutive batches among which samples are exchanged to separate neighbours; consecutive ones are similar."""
PASSES = 8
"""Most passes over all samples; each exchange lowers the number of conflicts, so few passes are needed."""
ATTEMPTS = 200
"""Random places that are tried for a sample that would be twice in its new batch."""


def mixed(batches_SB: Ints, share: float, rng: np.random.Generator) -> Ints:
    """Permute some samples among all batches, so that every sample still occurs as often as before.

    Args:
        batches_SB: (S, B) int64 data-set positions; a position at most once in a row.
        share: of the places of each batch that are permuted, in [0, 1]. If share * B is not a whole number, its
            fraction is the probability that a batch has one more.
        rng: draws the places and the permutation.

    Returns:
        (S, B) int64; all other places are unchanged, and no row holds a position twice.
    """
    num_batches, batch_size = batches_SB.shape
    whole, fraction = divmod(share * batch_size, 1)
    num_S1 = int(whole) + (rng.random((num_batches, 1)) < fraction)
    row, rank = np.nonzero(np.arange(batch_size) < num_S1)
    place = np.argsort(rng.random((num_batches, batch_size)), axis=1, kind="stable")[row, rank]
    result_SB = batches_SB.copy()
    result_SB[row, place] = batches_SB[row, place][rng.permutation(len(row))]
    return _without_repeats(result_SB, batches_SB, row, place, rng)


def _without_repeats(result_SB: Ints, before_SB: Ints, row: Ints, place: Ints, rng: np.random.Generator) -> Ints:
    """Exchange samples that are twice in a batch after the permutation, with others that were permuted, until none is.

    Only plans that repeat samples need it. If the random attempts find no partner, which happens in plans of few
    batches, the plan before the permutation is returned.
    """
    rows_SB = np.sort(result_SB, axis=1)
    if not (rows_SB[:, 1:] == rows_SB[:, :-1]).any():
        return result_SB
    counts = [Counter(batch) for batch in result_SB.tolist()]
    for entry in rng.permutation(len(row)):
        batch, sample = int(row[entry]), int(result_SB[row[entry], place[entry]])
        if counts[batch][sample] == 1:
            continue
        for other in rng.integers(0, len(row), ATTEMPTS):
            target, partner = int(row[other]), int(result_SB[row[other], place[other]])
            if counts[target][sample] == 0 and counts[batch][partner] == 0:
                result_SB[batch, place[entry]], result_SB[target, place[other]] = partner, sample
                counts[batch][sample] -= 1
                counts[batch][partner] += 1
                counts[target][partner] -= 1
                counts[target][sample] += 1
                break
        else:
            return before_SB
    return result_SB


def nearest(z1_MD: Tensor, z2_MD: Tensor, count: int) -> NDArray[np.int32]:
    r"""Return the ``count`` nearest other samples of the pool for each sample.

    Nearness is :math:`(\hat u_i + \hat v_i) \cdot (\hat u_j + \hat v_j)`: the sum of the four similarities between two
    samples' views.

    Args:
        z1_MD: (M, D) float, un-normalised embeddings of view 1, on any device.
        z2_MD: (M, D), view 2.
        count: P; at most M - 1 are returned.

    Returns:
        (M, min(P, M - 1)) int32, nearest first; ties in any order.
    """
    x_MD = pair_sum(z1_MD, z2_MD)
    return ranking(x_MD, x_MD, count)


def ranking(u_MD: Tensor, v_MD: Tensor, count: int) -> NDArray[np.int32]:
    """Return the rows of ``v_MD`` with the largest products for each row of ``u_MD``, except the row itself.

    Args:
        u_MD: (M, D) float, on any device.
        v_MD: (M, D) float.
        count: W; at most M - 1 are returned.

    Returns:
        (M, min(W, M - 1)) int32, largest first; ties in any order.
    """
    num_rows = len(u_MD)
    count, chunk = min(count, num_rows - 1), max(1, CHUNK_ELEMENTS // num_rows)
    # Results are allocated once: small arrays that stay, between large temporary ones, would fragment memory.
    ranked_MW = torch.empty(num_rows, count, dtype=torch.int32, device=u_MD.device)
    product_mM = u_MD.new_empty(min(chunk, num_rows), num_rows)
    for start in range(0, num_rows, chunk):
        own_m = torch.arange(start, min(start + chunk, num_rows), device=u_MD.device)
        part_mM = product_mM[: len(own_m)]
        torch.mm(u_MD[own_m], v_MD.T, out=part_mM)
        part_mM.scatter_(1, own_m[:, None], -torch.inf)
        ranked_MW[own_m] = part_mM.topk(count, dim=1).indices.to(torch.int32)
    return ranked_MW.cpu().numpy()


def separate_neighbors(rows_SB: Ints, neighbours_MP: NDArray[np.int32], x_MD: NDArray[np.floating]) -> Ints:
    """Exchange samples between batches until as few neighbours as possible share one.

    A conflict is a sample and a neighbour of it in one batch: two that are each other's neighbours make two. Every
    exchange is the one that lowers the number of conflicts most; of ties, the one whose batches stay most similar.
    Conflicts never increase; where no exchange lowers their number, some remain.

    Args:
        rows_SB: (S, B) int64 distinct row numbers in ``range(M)``.
        neighbours_MP: (M, P) int32, as :func:`nearest` returns.
        x_MD: (M, D) float, whose products are the similarities of samples.

    Returns:
        (S, B) int64, a permutation of the same row numbers.
    """
    if neighbours_MP.shape[1] == 0 or len(rows_SB) < 2:
        return rows_SB
    # As many windows as are full: array_split spreads the remainder over them, so that none has a single batch.
    windows = max(1, len(rows_SB) // WINDOW)
    return np.concatenate([_one_window(part, neighbours_MP, x_MD) for part in np.array_split(rows_SB, windows)])


def _one_window(rows_SB: Ints, neighbours_MP: NDArray[np.int32], x_MD: NDArray[np.floating]) -> Ints:
    """Run :func:`separate_neighbors` on the batches of one window, with row numbers local to its samples."""
    num_batches, batch_size = rows_SB.shape
    ids_M = rows_SB.ravel()
    pairs = _conflicts_of_pairs(ids_M, neighbours_MP)
    x_MD = np.ascontiguousarray(x_MD[ids_M])
    batch_M = np.repeat(np.arange(num_batches), batch_size)
    count_MS = pairs @ np.eye(num_batches, dtype=np.int64)[batch_M]
    sum_SD = x_MD.reshape(num_batches, batch_size, -1).sum(axis=1)
    all_M = np.arange(len(ids_M))
    for _ in range(PASSES):
        conflicted = np.flatnonzero(count_MS[all_M, batch_M] > 0)
        moved = False
        for sample in conflicted[np.argsort(-count_MS[conflicted, batch_M[conflicted]], kind="stable")]:
            moved |= _exchange(int(sample), batch_M, count_MS, sum_SD, pairs, x_MD)
        if not moved:
            break
    return ids_M[np.argsort(batch_M, kind="stable")].reshape(num_batches, batch_size)


def _conflicts_of_pairs(ids_M: Ints, neighbours_MP: NDArray[np.int32]) -> csr_array:
    """(M, M) symmetric int64, M the length of ``ids_M``: how many of two samples are a neighbour of the other."""
    local = np.full(len(neighbours_MP), -1)
    local[ids_M] = np.arange(len(ids_M))
    near_MP = local[neighbours_MP[ids_M]]
    row, place = np.nonzero(near_MP >= 0)
    ones = np.ones(len(row), dtype=np.int64)
    counts = csr_array((ones, (row, near_MP[row, place])), shape=(len(ids_M), len(ids_M)))
    return csr_array(counts + counts.T)


def _row(pairs: csr_array, j: int) -> tuple[NDArray[np.int32], Ints]:
    """Columns and entries of a row."""
    entries = slice(pairs.indptr[j], pairs.indptr[j + 1])
    return pairs.indices[entries], pairs.data[entries]


def _exchange(
    j: int, batch_M: Ints, count_MS: Ints, sum_SD: NDArray[np.floating], pairs: csr_array, x_MD: NDArray[np.floating]
) -> bool:
    """Exchange sample j with its best partner if that lowers the number of conflicts; return whether it did."""
    home = batch_M[j]
    if count_MS[j, home] == 0:
        return False
    all_M = np.arange(len(batch_M))
    change_M = count_MS[j, batch_M] + count_MS[:, home] - count_MS[j, home] - count_MS[all_M, batch_M]
    others, conflicts = _row(pairs, j)
    change_M[others] -= 2 * conflicts  # a partner in conflict with j leaves the batch that j joins, and vice versa
    change_M[batch_M == home] = 1
    best = change_M.min()
    if best >= 0:
        return False
    ties = np.flatnonzero(change_M == best)
    likeness = (sum_SD @ x_MD[j])[batch_M[ties]] + x_MD[ties] @ (sum_SD[home] - 2 * x_MD[j])
    other = int(ties[np.argmax(likeness)])
    other_home = batch_M[other]
    for sample, source, target in ((j, home, other_home), (other, other_home, home)):
        batch_M[sample] = target
        others, conflicts = _row(pairs, sample)
        count_MS[others, source] -= conflicts
        count_MS[others, target] += conflicts
        sum_SD[source] -= x_MD[sample]
        sum_SD[target] += x_MD[sample]
    return True


def count_conflicts(
    batches_SB: Ints, pools: Sequence[Ints], neighbours: Sequence[NDArray[np.int32] | None], num_samples: int
) -> Ints:
    """(S,) int64: the pairs (sample, its neighbour) that share each batch of the final plan, which may repeat samples.

    ``neighbours`` are (M, P) int32 row numbers within each pool, or None.
    """
    near = [(pool, pool[rows]) for pool, rows in zip(pools, neighbours, strict=True) if rows is not None]
    # Pools of at most `skip` samples have fewer neighbours: the number N, which is no sample's, fills up their rows.
    neighbours_NP = np.full((num_samples, max((part.shape[1] for _, part in near), default=0)), num_samples)
    for pool, part in near:
        neighbours_NP[pool, : part.shape[1]] = part
    present_N = np.zeros(num_samples + 1, dtype=np.bool_)
    count_S = np.zeros(len(batches_SB), dtype=np.int64)
    for number, batch_B in enumerate(batches_SB):
        present_N[batch_B] = True
        count_S[number] = present_N[neighbours_NP[batch_B]].sum()
        present_N[batch_B] = False
    return count_S
