"""The loops of the swap search of :mod:`mbcl.samplers._swaps`, which defines s, t, A and C.

A sum of logarithms is computed as the logarithm of a product, taken before the product can leave float64's range.

Letters: M samples of the pool, K batches, B samples a batch.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mbcl.samplers.kernels.compiler import compiled

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Tables = tuple[Floats, Floats, Floats, Floats]
"""``uu``, ``uv``, ``vu`` and ``vv``: (M, M), float32 or float64."""
Sums = tuple[Floats, Floats, Floats]
"""(M,) float64 each: every sample's term with its own other view, s, and t."""

LARGE, SMALL = 1e100, 1e-100
"""A product outside this range is replaced by its logarithm. One more factor, below e^341, cannot overflow it."""
CANCELLED = 1e-6
"""A sum that a subtraction reduces below this share of itself is summed anew: cancellation leaves rounding errors."""


@compiled
def both(first_MM: Floats, second_MM: Floats, row: int, column: int) -> float:
    """Return one entry of the sum of two matrices, in float64."""
    return float(first_MM[row, column]) + float(second_MM[row, column])


@compiled
def sums_of(j: int, members_B: Ints, tables: Tables, own_M: Floats) -> tuple[float, float]:
    """Return s and t of sample ``j`` with the members of a batch, of which it may be one."""
    uu, uv, vu, vv = tables
    s, t = own_M[j], own_M[j]
    for i in members_B:
        if i != j:
            s += both(uu, uv, j, i)
            t += both(vv, vu, j, i)
    return s, t


@compiled
def denominators(tables: Tables, members_KB: Ints, own_M: Floats) -> tuple[Floats, Floats]:
    """(M,) and (M,) float64: s and t of every sample in its own batch."""
    s_M = np.empty(len(own_M))
    t_M = np.empty(len(own_M))
    for members in members_KB:
        for j in members:
            s_M[j], t_M[j] = sums_of(j, members, tables, own_M)
    return s_M, t_M


@compiled
def gain_table(tables: Tables, members_KB: Ints, sums: Sums, run: int) -> Floats:
    """(K, M) float64: what every sample would add to every batch; entries of its own batch are meaningless.

    ``run`` is the number of members whose factors one product holds. The inner loop runs along rows: it reads memory
    in order, and its iterations add to different sums, so the compiler can vectorise it.
    """
    uu, uv, vu, vv = tables
    own_M, s_M, t_M = sums
    num_rows, num_batches = len(own_M), len(members_KB)
    gain_KM = np.zeros((num_batches, num_rows))
    product_M = np.empty(num_rows)
    sum_s_M = np.empty(num_rows, dtype=uu.dtype)
    sum_t_M = np.empty(num_rows, dtype=uu.dtype)
    for batch in range(num_batches):
        gain_M = gain_KM[batch]
        product_M[:] = 1
        sum_s_M[:] = 0
        sum_t_M[:] = 0
        for place, i in enumerate(members_KB[batch]):
            if place % run == 0 and place > 0:
                for j in range(num_rows):
                    gain_M[j] += math.log(product_M[j])
                product_M[:] = 1
            uu_M, uv_M, vu_M, vv_M = uu[i], uv[i], vu[i], vv[i]
            inverse_s, inverse_t = uu.dtype.type(1 / s_M[i]), uu.dtype.type(1 / t_M[i])
            one = uu.dtype.type(1)
            for j in range(num_rows):
                sum_s_M[j] += uu_M[j] + vu_M[j]
                sum_t_M[j] += vv_M[j] + uv_M[j]
                product_M[j] *= (one + (uu_M[j] + uv_M[j]) * inverse_s) * (one + (vv_M[j] + vu_M[j]) * inverse_t)
        for j in range(num_rows):
            gain_M[j] += math.log(product_M[j]) + math.log((own_M[j] + sum_s_M[j]) * (own_M[j] + sum_t_M[j]))
    return gain_KM


@compiled
def leave_values(tables: Tables, members_KB: Ints, sums: Sums) -> Floats:
    """(M,) float64: what every sample adds to its own batch, which is what the batch would lose without it."""
    uu, uv, vu, vv = tables
    _, s_M, t_M = sums
    leave_M = np.empty(len(s_M))
    for members in members_KB:
        for j in members:
            product = 1.0
            for i in members:
                if i != j:
                    product *= (1 - (uu[j, i] + vu[j, i]) / s_M[i]) * (1 - (vv[j, i] + uv[j, i]) / t_M[i])
            leave_M[j] = math.log(s_M[j]) + math.log(t_M[j]) - math.log(max(product, 1e-300))
    return leave_M


@compiled
def change_of(j: int, other: int, home: int, target: int, tables: Tables, members_KB: Ints, sums: Sums) -> float:
    """Return the change of the sum of log s + log t if ``j`` of ``home`` and ``other`` of ``target`` change places."""
    _, s_M, t_M = sums
    home_change, s_other, t_other = exchange(other, j, members_KB[home], tables, sums)
    target_change, s_j, t_j = exchange(j, other, members_KB[target], tables, sums)
    own_s = math.log((s_other / s_M[other]) * (s_j / s_M[j]))
    own_t = math.log((t_other / t_M[other]) * (t_j / t_M[j]))
    return home_change + target_change + own_s + own_t


@compiled
def exchange(arriving: int, leaving: int, members_B: Ints, tables: Tables, sums: Sums) -> tuple[float, float, float]:
    """Evaluate a batch in which ``arriving`` takes the place of the member ``leaving``.

    Returns:
        The change of the other members' sum of log s + log t; s and t of ``arriving`` in the batch.
    """
    uu, uv, vu, vv = tables
    own_M, s_M, t_M = sums
    change, product_s, product_t = 0.0, 1.0, 1.0
    s, t = own_M[arriving], own_M[arriving]
    for i in members_B:
        if i == leaving:
            continue
        factor_s = 1 + (both(uu, vu, arriving, i) - both(uu, vu, leaving, i)) / s_M[i]
        factor_t = 1 + (both(vv, uv, arriving, i) - both(vv, uv, leaving, i)) / t_M[i]
        if factor_s < CANCELLED or factor_t < CANCELLED:
            new_s, new_t = sums_after(i, arriving, leaving, members_B, tables, own_M)
            factor_s, factor_t = new_s / s_M[i], new_t / t_M[i]
        product_s *= factor_s
        product_t *= factor_t
        if not (SMALL < product_s < LARGE and SMALL < product_t < LARGE):
            change += math.log(product_s) + math.log(product_t)
            product_s, product_t = 1.0, 1.0
        s += both(uu, uv, arriving, i)
        t += both(vv, vu, arriving, i)
    return change + math.log(product_s * product_t), s, t


@compiled
def sums_after(
    i: int, arriving: int, leaving: int, members_B: Ints, tables: Tables, own_M: Floats
) -> tuple[float, float]:
    """Return s and t of member ``i`` of a batch after ``arriving`` has taken the place of ``leaving``."""
    uu, uv, vu, vv = tables
    s = own_M[i] + both(uu, uv, i, arriving)
    t = own_M[i] + both(vv, vu, i, arriving)
    for other in members_B:
        if other not in (i, leaving):
            s += both(uu, uv, i, other)
            t += both(vv, vu, i, other)
    return s, t


@compiled
def swap(
    j: int, other: int, home: int, target: int, tables: Tables, members_KB: Ints, batch_M: Ints, sums: Sums
) -> None:
    """Exchange ``j`` of ``home`` and ``other`` of ``target``, and update all sums."""
    uu, uv, vu, vv = tables
    own_M, s_M, t_M = sums
    for place in range(members_KB.shape[1]):
        if members_KB[home, place] == j:
            members_KB[home, place] = other
        if members_KB[target, place] == other:
            members_KB[target, place] = j
    batch_M[j], batch_M[other] = target, home
    for arriving, leaving, batch in ((other, j, home), (j, other, target)):
        for i in members_KB[batch]:
            if i != arriving:
                s = s_M[i] + (both(uu, vu, arriving, i) - both(uu, vu, leaving, i))
                t = t_M[i] + (both(vv, uv, arriving, i) - both(vv, uv, leaving, i))
                if s < CANCELLED * s_M[i] or t < CANCELLED * t_M[i]:
                    s, t = sums_of(i, members_KB[batch], tables, own_M)
                s_M[i], t_M[i] = s, t
        s_M[arriving], t_M[arriving] = sums_of(arriving, members_KB[batch], tables, own_M)


@compiled
def crowding(j: int, other: int, home: int, target: int, members_KB: Ints, apart_MM: NDArray[np.bool_]) -> int:
    """Return the change of the number of pairs that should not share a batch but do, if the two change places."""
    change = 0
    for i in members_KB[home]:
        if i != j:
            change += int(apart_MM[other, i]) - int(apart_MM[j, i])
    for i in members_KB[target]:
        if i != other:
            change += int(apart_MM[j, i]) - int(apart_MM[other, i])
    return change


@compiled
def sweep(
    tables: Tables,
    members_KB: Ints,
    batch_M: Ints,
    sums: Sums,
    gain_KM: Floats,
    leave_M: Floats,
    order_M: Ints,
    targets: int,
    partners: int,
    min_gain: float,
    apart_MM: NDArray[np.bool_],
) -> int:
    """Let every sample, in order, change places with the best of some partners, if that raises the loss.

    The table ``gain_KM`` selects the partners to try. It is not updated within the sweep, and ignores the terms between
    the two samples of a swap. Its estimate of a swap is nearly always too high, so partners whose estimate is below
    ``min_gain`` are not tried. The exact change decides. ``members_KB``, ``batch_M``, s and t of ``sums``, and
    ``leave_M`` are updated in place.

    Returns:
        The number of swaps made.
    """
    num_batches, batch_size = members_KB.shape
    constrained = len(apart_MM) == len(batch_M)
    tried_T = np.empty(targets, dtype=np.int64)
    swaps = 0
    for j in order_M:
        home = batch_M[j]
        # Insertion sort of the batches to which j would add most.
        num_tried = 0
        for batch in range(num_batches):
            if batch == home or gain_KM[batch, j] == -np.inf:
                continue
            place = num_tried
            while place > 0 and gain_KM[tried_T[place - 1], j] < gain_KM[batch, j]:
                if place < targets:
                    tried_T[place] = tried_T[place - 1]
                place -= 1
            if place < targets:
                tried_T[place] = batch
                num_tried = min(num_tried + 1, targets)
        best, partner = min_gain, -1
        for target in tried_T[:num_tried]:
            estimate_j = gain_KM[target, j] - leave_M[j]
            limit = np.inf
            for _ in range(partners):
                # The member with the next highest estimate, below those that were tried.
                best_estimate, other = min_gain - estimate_j, -1
                for i in members_KB[target]:
                    estimate = gain_KM[home, i] - leave_M[i]
                    if best_estimate < estimate < limit:
                        best_estimate, other = estimate, i
                if other < 0:
                    break
                limit = best_estimate
                if constrained and crowding(j, other, home, target, members_KB, apart_MM) > 0:
                    continue
                change = change_of(j, other, home, target, tables, members_KB, sums)
                if change > best:
                    best, partner = change, other
        if partner >= 0:
            target = batch_M[partner]
            swap(j, partner, home, target, tables, members_KB, batch_M, sums)
            leave_M[j], leave_M[partner] = gain_KM[target, j], gain_KM[home, partner]
            swaps += 1
    return swaps
