"""``diverse``: batches of dissimilar samples, the control experiment against hard batches.

Letters: M samples of a pool, D dimensions, B samples a batch, S batches of the pool, m candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mbcl.errors import ConfigError
from mbcl.functional import check_count, check_number
from mbcl.samplers._base import SAMPLERS, FloatArray, Ints, PoolPlan
from mbcl.samplers._sized_pools import SortedPools, pair_rows, unit_rows
from mbcl.seeding import numpy_generator


@SAMPLERS.register("diverse")
@dataclass(frozen=True, kw_only=True)
class Diverse(SortedPools):
    r"""Batches grown greedily to a high effective rank, or to a moderate one.

    A batch starts with a random sample. Then, of ``m`` random candidates, the one that raises the batch's effective
    rank most joins the batch, and a new candidate replaces it, until the batch is full. Every sample is used once, so
    the last batches have few candidates.

    The effective rank here is the participation ratio :math:`(\sum_i \lambda_i)^2 / \sum_i \lambda_i^2` of the
    eigenvalues of the batch's Gram matrix :math:`G`, that is :math:`(\operatorname{tr} G)^2 / \|G\|_F^2`: the
    exponential of the Rényi entropy of order 2 of the normalised eigenvalues. It is a lower bound of the usual
    effective rank, the exponential of their Shannon entropy, equal to it where all non-zero eigenvalues are equal, and
    needs no eigenvalues: a candidate costs the products with the batch. Rows of :math:`G` are the samples' views,
    normalised, added and normalised again.

    Cost:
        One forward pass a plan. m·D products for each place of a batch; three quarters of the time of ``refined`` on
        pools of 1,280, linear in N.

    When to use:
        As a control against hardness. Its batches are easier than random ones; if they train as well as hard ones,
        hardness was not the reason.

    Args:
        batch_size: B, global.
        pool: samples of a random pool; None for the whole data set as one.
        m: candidates at a time.
        rank_low: a share of B in (0, 1]. Once a batch has this effective rank, the first candidate joins that keeps it
            between both bounds. None for no such bound: the candidate that raises the rank most always joins.
        rank_high: a share of B in (0, 1]. Candidates that would raise the effective rank above it do not join; if all
            would, the one that raises it least joins. None for no such bound.
        mix, skip: as for all samplers with embeddings.

    Reference:
        After Ochieng, spectrum-aware batch selection, NeurIPS 2025, arXiv 2510.05767; its bounds are not published
        here, so there are none by default. Effective rank: Roy and Vetterli, EUSIPCO 2007.

    Example:
        >>> Diverse(batch_size=32, rank_high=0.5).m
        64
    """

    name: ClassVar[str] = "diverse"
    compares_sides: ClassVar[bool] = False

    m: int = 64
    rank_low: float | None = None
    rank_high: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("m", self.m, least=2)
        for bound in ("rank_low", "rank_high"):
            if getattr(self, bound) is not None:
                check_number(bound, getattr(self, bound), above=0.0, most=1.0)
        if self.rank_low is not None and self.rank_high is not None and self.rank_low > self.rank_high:
            raise ConfigError(
                f"rank_low must be at most rank_high, found rank_low {self.rank_low} and rank_high {self.rank_high}"
            )

    def plan_one(self, z1_MD: FloatArray, z2_MD: FloatArray, seed: int) -> PoolPlan:
        """Plan one pool; batches are in the order in which they were filled."""
        x_MD = unit_rows(pair_rows(z1_MD, z2_MD))
        rng = numpy_generator(seed, "diverse")
        low = np.inf if self.rank_low is None else self.rank_low * self.batch_size
        high = np.inf if self.rank_high is None else self.rank_high * self.batch_size
        unseen = Unseen(len(x_MD))
        batches = [
            grow(x_MD, unseen, self.batch_size, self.m, low, high, rng) for _ in range(len(x_MD) // self.batch_size)
        ]
        return PoolPlan(np.stack(batches))


class Unseen:
    """The set of row numbers that are in no batch yet; taking k random ones takes time independent of its size."""

    def __init__(self, num_rows: int) -> None:
        self._rows = np.arange(num_rows)
        self._end = num_rows

    def take(self, count: int, rng: np.random.Generator) -> Ints:
        """Remove and return ``count`` random rows, or all if there are fewer."""
        count = min(count, self._end)
        places = np.sort(rng.choice(self._end, count, replace=False))
        taken = self._rows[places].copy()
        # The last rows fill the places of those that are taken.
        moved = np.setdiff1d(np.arange(self._end - count, self._end), places, assume_unique=True)
        self._rows[places[: len(moved)]] = self._rows[moved]
        self._end -= count
        return rng.permutation(taken)

    def give_back(self, rows: Ints) -> None:
        """Put rows back."""
        self._rows[self._end : self._end + len(rows)] = rows
        self._end += len(rows)


def grow(
    x_MD: FloatArray, unseen: Unseen, batch_size: int, m: int, low: float, high: float, rng: np.random.Generator
) -> Ints:
    """Grow one batch from the unseen rows.

    Args:
        x_MD: (M, D) float, rows of length one or zero.
        unseen: the rows that may be taken, at least B; those of the batch are removed.
        batch_size: B.
        m: candidates at a time.
        low: effective rank from which on the first candidate within both bounds joins.
        high: effective rank that the batch should not exceed.
        rng: draws candidates.

    Returns:
        (B,) int64 row numbers.
    """
    first = unseen.take(1, rng)
    # Spare candidates replace those that join, one by one.
    drawn = unseen.take(m + batch_size - 2, rng)
    candidates, spare = drawn[:m].copy(), drawn[m:]
    y_mD = x_MD[candidates]
    square_m = np.einsum("md,md->m", y_mD, y_mD)
    batch = np.empty(batch_size, dtype=np.int64)
    batch[0] = first[0]
    b_BD = np.empty((batch_size, x_MD.shape[1]), dtype=x_MD.dtype)
    b_BD[0] = x_MD[first[0]]
    overlap_m = np.square(y_mD @ b_BD[0])
    trace = float(b_BD[0] @ b_BD[0])
    frobenius = trace**2
    for size in range(1, batch_size):
        trace_m = trace + square_m
        frobenius_m = frobenius + 2 * overlap_m + square_m**2
        # Where all rows are zero there is no eigenvalue: the rank is 0.
        rank_m = trace_m**2 / np.maximum(frobenius_m, np.finfo(x_MD.dtype).tiny)
        place = chosen(rank_m, trace**2 / max(frobenius, 1e-30), low, high)
        batch[size], b_BD[size] = candidates[place], y_mD[place]
        trace, frobenius = float(trace_m[place]), float(frobenius_m[place])
        overlap_m += np.square(y_mD @ b_BD[size])
        if len(spare):
            candidates[place], spare = spare[0], spare[1:]
            y_mD[place] = x_MD[candidates[place]]
            square_m[place] = y_mD[place] @ y_mD[place]
            overlap_m[place] = np.square(b_BD[: size + 1] @ y_mD[place]).sum()
        else:
            candidates, y_mD = np.delete(candidates, place), np.delete(y_mD, place, axis=0)
            square_m, overlap_m = np.delete(square_m, place), np.delete(overlap_m, place)
    unseen.give_back(np.concatenate([candidates, spare]))
    return batch


def chosen(rank_m: FloatArray, rank: float, low: float, high: float) -> int:
    """Choose the candidate that joins a batch of effective rank ``rank``; ``rank_m`` are the ranks with each candidate.

    Example:
        >>> ranks = np.array([2.1, 2.9, 2.5, 2.0])
        >>> inf = np.inf
        >>> chosen(ranks, 1.9, inf, inf), chosen(ranks, 1.9, inf, 2.6), chosen(ranks, 1.9, inf, 1.5)
        (1, 2, 3)
        >>> chosen(ranks, 1.9, 1.8, 2.0)
        3
    """
    allowed_m = rank_m <= high
    if not allowed_m.any():
        return int(rank_m.argmin())
    if rank >= low:
        inside_m = allowed_m & (rank_m >= low)
        if inside_m.any():
            return int(inside_m.argmax())
    return int(np.where(allowed_m, rank_m, -np.inf).argmax())
