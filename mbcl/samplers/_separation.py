"""``mix``, and exchanges that part samples which should not share a batch: batches of any sampler become less hard.

Letters: M samples of a pool, m of a window, D dimensions, S batches, B samples a batch, P neighbours of a sample,
W of a ranking, G groups.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from mbcl.samplers._base import Ints
from mbcl.samplers._conflicts import Conflicts, Rules
from mbcl.samplers._normalize import CHUNK_ELEMENTS, pair_sum

WINDOW = 64
"""Consecutive batches among which samples are exchanged to separate neighbours; consecutive ones are similar."""
WINDOW_SAMPLES = 4096
"""Most samples of a window of more than two batches where all pairs of them may be in conflict, which takes 300 MB."""
GROUP_WEIGHT = 2**24
"""Conflicts by neighbours and margins that count as one by groups: more than a window has."""
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
    """Exchange samples between batches until as few neighbours as possible share one; see :func:`separate`."""
    return separate(rows_SB, Conflicts(neighbours_MP), x_MD) if neighbours_MP.shape[1] else rows_SB


def separate(rows_SB: Ints, conflicts: Conflicts, x_MD: NDArray[np.floating]) -> Ints:
    """Exchange samples between batches until as few as possible share one that should not.

    Every exchange is the one that lowers the number of conflicts most, first of those in groups, then of the others; of
    ties, the one whose batches stay most similar. Conflicts never increase; where no exchange lowers their number, some
    remain.

    Args:
        rows_SB: (S, B) int64 distinct row numbers in ``range(M)``.
        conflicts: the rows that should not share a batch.
        x_MD: (M, D) float, whose products are the similarities of samples.

    Returns:
        (S, B) int64, a permutation of the same row numbers.
    """
    if len(rows_SB) < 2:
        return rows_SB
    batches_a_window = WINDOW
    if conflicts.margin or conflicts.group_M is not None:
        batches_a_window = min(WINDOW, max(2, WINDOW_SAMPLES // rows_SB.shape[1]))
    # As many windows as are full: array_split spreads the remainder over them, so that none has a single batch.
    windows = max(1, len(rows_SB) // batches_a_window)
    return np.concatenate([_Window(part, conflicts, x_MD).separated() for part in np.array_split(rows_SB, windows)])


def separate_batches(batches_SB: Ints, rules: Rules) -> Ints:
    """:func:`separate` on batches of data-set positions, with the embeddings of a window at a time."""
    num_batches, batch_size = batches_SB.shape
    windows = max(1, num_batches // min(WINDOW, max(2, WINDOW_SAMPLES // batch_size)))
    parts = []
    for part_sB in np.array_split(batches_SB, windows):
        conflicts, x_mD = rules.among(part_sB.ravel())
        rows_sB = separate(np.arange(part_sB.size).reshape(-1, batch_size), conflicts, x_mD.numpy())
        parts.append(part_sB.ravel()[rows_sB])
    return np.concatenate(parts)


class _Window:
    """The batches of one window, with row numbers local to its samples.

    Args:
        rows_SB: (S, B) int64 distinct row numbers in ``range(M)``, m of them.
        conflicts: of the M rows.
        x_MD: (M, D) float.
    """

    def __init__(self, rows_SB: Ints, conflicts: Conflicts, x_MD: NDArray[np.floating]) -> None:
        self.shape = num_batches, batch_size = rows_SB.shape
        self.ids_m: Ints = rows_SB.ravel()
        self.pairs = conflicts.pairs(self.ids_m)
        self.x_mD = np.ascontiguousarray(x_MD[self.ids_m])
        self.all_m = np.arange(len(self.ids_m))
        self.batch_m = np.repeat(np.arange(num_batches), batch_size)
        self.count_mS: Ints = self.pairs @ np.eye(num_batches, dtype=np.int64)[self.batch_m]
        self.sum_SD = self.x_mD.reshape(num_batches, batch_size, -1).sum(axis=1)
        self.group_m: Ints | None = None
        if conflicts.group_M is not None:
            self.group_m = np.unique(conflicts.group_M[self.ids_m], return_inverse=True)[1].reshape(-1)
            self.size_SG: Ints = np.zeros((num_batches, self.group_m.max() + 1), dtype=np.int64)
            np.add.at(self.size_SG, (self.batch_m, self.group_m), 1)

    def separated(self) -> Ints:
        """(S, B) the row numbers after all exchanges."""
        for _ in range(PASSES):
            own_m = self._conflicts()
            conflicted = np.flatnonzero(own_m > 0)
            moved = False
            for sample in conflicted[np.argsort(-own_m[conflicted], kind="stable")]:
                moved |= self._exchange(int(sample))
            if not moved:
                break
        return self.ids_m[np.argsort(self.batch_m, kind="stable")].reshape(self.shape)

    def _conflicts(self) -> Ints:
        """(m,) the conflicts of every sample in its batch; of groups only those that an exchange can part."""
        own_m: Ints = self.count_mS[self.all_m, self.batch_m]
        if self.group_m is not None:
            # Samples of a group can be exchanged if their batch has at least two more of it than another batch.
            excess_m = self.size_SG[self.batch_m, self.group_m] - self.size_SG.min(axis=0)[self.group_m] - 1
            own_m = own_m + GROUP_WEIGHT * np.maximum(excess_m, 0)
        return own_m

    def _is_even(self, batch: int, group: int) -> bool:
        """Whether no batch has at least two less of the group than this one."""
        return bool(self.size_SG[batch, group] - self.size_SG[:, group].min() <= 1)

    def _change(self, j: int) -> Ints:
        """(m,) the change of the number of conflicts if sample j changes places with each other sample."""
        home = self.batch_m[j]
        own_m = self.count_mS[self.all_m, self.batch_m]
        change_m: Ints = self.count_mS[j, self.batch_m] + self.count_mS[:, home] - self.count_mS[j, home] - own_m
        others, conflicts = _row(self.pairs, j)
        change_m[others] -= 2 * conflicts  # a partner in conflict with j leaves the batch that j joins, and vice versa
        if self.group_m is not None:
            group = self.group_m[j]
            size_m = self.size_SG[self.batch_m, group] - self.size_SG[self.batch_m, self.group_m]
            size_m += self.size_SG[home, self.group_m] - self.size_SG[home, group] + 2
            size_m[self.group_m == group] = 0
            change_m += GROUP_WEIGHT * size_m
        change_m[self.batch_m == home] = 1
        return change_m

    def _exchange(self, j: int) -> bool:
        """Exchange sample j with its best partner if that lowers the number of conflicts; return whether it did."""
        home = self.batch_m[j]
        if self.count_mS[j, home] == 0 and (self.group_m is None or self._is_even(home, self.group_m[j])):
            return False
        change_m = self._change(j)
        best = change_m.min()
        if best >= 0:
            return False
        ties = np.flatnonzero(change_m == best)
        x_mD = self.x_mD
        likeness = (self.sum_SD @ x_mD[j])[self.batch_m[ties]] + x_mD[ties] @ (self.sum_SD[home] - 2 * x_mD[j])
        other = int(ties[np.argmax(likeness)])
        other_home = self.batch_m[other]
        for sample, source, target in ((j, home, other_home), (other, other_home, home)):
            self.batch_m[sample] = target
            others, conflicts = _row(self.pairs, sample)
            self.count_mS[others, source] -= conflicts
            self.count_mS[others, target] += conflicts
            self.sum_SD[source] -= x_mD[sample]
            self.sum_SD[target] += x_mD[sample]
            if self.group_m is not None:
                self.size_SG[source, self.group_m[sample]] -= 1
                self.size_SG[target, self.group_m[sample]] += 1
        return True


def _row(pairs: csr_array, j: int) -> tuple[NDArray[np.int32], Ints]:
    """Columns and entries of a row."""
    entries = slice(pairs.indptr[j], pairs.indptr[j + 1])
    return pairs.indices[entries], pairs.data[entries]
