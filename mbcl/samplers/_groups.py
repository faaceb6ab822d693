"""Groups of samples: those that should not share a batch (``apart``), and those that batches do not mix (``together``).

Letters: N samples, S batches, B samples a batch, G groups.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mbcl.errors import ConfigError, SamplerWarning, pluralize
from mbcl.samplers._base import Ids, Ints, Sampler

ATTEMPTS = 64
"""Random batches that are tried for one that lacks a group, before all that lack it are listed."""


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of all samples, numbered from 0.

    Args:
        apart: (N,) int64 groups whose members should not share a batch, or None.
        together: (N,) int64 sources, one of which every batch is from, or None.
    """

    apart: Ints | None = None
    together: Ints | None = None

    @staticmethod
    def of(num_samples: int | None, apart: Ids | None, together: Ids | None) -> Groups:
        """Number the ids of both kinds.

        Args:
            num_samples: N; None for the number of ids.
            apart: one id a sample, or None.
            together: one id a sample, or None.

        Raises:
            ConfigError: unless there is one whole number or string for each sample.
        """
        codes = [
            None if ids is None else numbered(name, ids, num_samples)
            for name, ids in (("apart", apart), ("together", together))
        ]
        if codes[0] is not None and codes[1] is not None and len(codes[0]) != len(codes[1]):
            raise ConfigError(f"apart has {len(codes[0])} ids and together {len(codes[1])}; expected one for a sample")
        return Groups(*codes)

    def __bool__(self) -> bool:
        return self.apart is not None or self.together is not None

    def check(self, sampler: Sampler, num_samples: int) -> None:
        """Check that there is an id for each sample, and that the sampler can plan every source that fills a batch.

        Raises:
            ConfigError: if not, or if no source fills a batch.
        """
        for name, codes in (("apart", self.apart), ("together", self.together)):
            if codes is not None and len(codes) != num_samples:
                raise ConfigError(f"{name} must have one id for each of {num_samples} samples, found {len(codes)}")
        if self.together is None:
            sampler.check(num_samples)
        else:
            self._check_sources(sampler, self.together)
        if self.apart is not None and sampler.no_repeats:
            self._warn_of_giants(sampler, self.apart)

    def _check_sources(self, sampler: Sampler, source_N: Ints) -> None:
        """Check that the sampler can plan every source that fills a batch; warn of those that fill none."""
        sizes = np.bincount(source_N)
        small = sizes[sizes < sampler.batch_size]
        whole = sizes[sizes >= sampler.batch_size]
        if len(whole) == 0:
            raise ConfigError(
                f"sampler {sampler.name!r}: batch_size {sampler.batch_size} is above the {sizes.max(initial=0)} "
                f"samples of the largest of {pluralize(len(sizes), 'source')} of together"
            )
        # The limits of a sampler are on the fewest or on the most samples.
        for size in dict.fromkeys((int(whole.min()), int(whole.max()))):
            try:
                sampler.check(size)
            except ConfigError as error:
                raise ConfigError(f"a source of together with {size} samples: {error}") from error
        if len(small):
            text = f"{pluralize(len(small), 'source')} of together, with {small.sum()} samples, fill no batch"
            warnings.warn(f"sampler {sampler.name!r}: {text}, and are left out", SamplerWarning, stacklevel=4)

    def _warn_of_giants(self, sampler: Sampler, group_N: Ints) -> None:
        """Warn of groups of ``apart`` with more samples than a plan has batches."""
        pairs, largest, num_batches = self.unavoidable(sampler, group_N)
        if pairs:
            text = (
                f"the largest group of apart has {largest} samples, more than the {pluralize(num_batches, 'batch')} "
                f"that they are parted over: at least {pluralize(pairs, 'pair')} of a sample and another of its group "
                "must share a batch (plan/conflicts)"
            )
            warnings.warn(f"sampler {sampler.name!r}: {text}", SamplerWarning, stacklevel=4)

    def unavoidable(self, sampler: Sampler, group_N: Ints) -> tuple[int, int, int]:
        """Return the fewest pairs of one group that share batches in any plan; the largest group, and its batches.

        Pairs are ordered, as conflicts are. Over S batches the n-th sample of a group, counted from 0, is at best in a
        batch with n // S others of it. Where a plan leaves samples out, those with the most pairs count as left out.
        """
        pairs, worst = 0, (0, 0)
        for rows in self.by_source(np.arange(len(group_N))):
            sizes = np.bincount(group_N[rows])
            num_batches = sampler.plan_length(len(rows)) if len(rows) >= sampler.batch_size else 0
            if num_batches == 0 or sizes.max() <= num_batches:
                continue
            number = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            visited = num_batches * sampler.batch_size
            pairs += 2 * int(np.sort(number // num_batches)[:visited].sum())
            worst = max(worst, (int(sizes.max()), num_batches))
        return pairs, *worst

    def plan_length(self, sampler: Sampler, num_samples: int) -> int:
        """Return the number of batches of a plan of all sources."""
        return self.sum_of_sources(sampler.plan_length, sampler.batch_size, num_samples)

    def sum_of_sources(self, number: Callable[[int], int], batch_size: int, num_samples: int) -> int:
        """Return the sum of a number that depends on the samples of a source, over all sources that fill a batch."""
        if self.together is None:
            return number(num_samples)
        sizes, counts = np.unique(np.bincount(self.together), return_counts=True)
        whole = sizes >= batch_size
        return sum(number(int(size)) * int(count) for size, count in zip(sizes[whole], counts[whole], strict=True))

    def num_batches(self, num_samples: int, batch_size: int) -> int:
        """Return the number of whole batches that the samples fill, each with samples of one source."""
        sizes = np.array([num_samples]) if self.together is None else np.bincount(self.together)
        return int((sizes // batch_size).sum())

    def by_source(self, order_N: Ints) -> list[Ints]:
        """Split an order of the samples into one for each source; without ``together`` all samples are one source."""
        if self.together is None:
            return [order_N]
        source_N = self.together[order_N]
        ends = np.cumsum(np.bincount(source_N))[:-1]
        return np.split(order_N[np.argsort(source_N, kind="stable")], ends)

    def each_source(self, batches_SB: Ints, change: Callable[[Ints], Ints]) -> Ints:
        """Return the batches after a function has changed those of every source, (s, B) to (s, B).

        If it changes their number, those of the sources follow each other.
        """
        if self.together is None:
            return change(batches_SB)
        source_S = self.together[batches_SB[:, 0]]
        order_S = np.argsort(source_S, kind="stable")
        rows_of = np.split(order_S, np.flatnonzero(np.diff(source_S[order_S])) + 1)
        changed_SB = np.concatenate([change(batches_SB[rows]) for rows in rows_of])
        if len(changed_SB) != len(batches_SB):
            return changed_SB
        result_SB = np.empty_like(changed_SB)
        result_SB[order_S] = changed_SB
        return result_SB

    def parted(self, batches_SB: Ints, rng: np.random.Generator) -> Ints:
        """Return the batches after :func:`part_groups` has parted the groups of ``apart`` in every source."""
        if self.apart is None:
            return batches_SB
        apart_N = self.apart
        return self.each_source(batches_SB, lambda rows_sB: part_groups(rows_sB, apart_N, rng))


NO_GROUPS = Groups()


def numbered(name: str, ids: Ids, num_samples: int | None) -> Ints:
    """(N,) int64: the ids numbered from 0 in their order.

    Raises:
        ConfigError: unless there is one whole number or string for each sample.

    Example:
        >>> numbered("apart", ["b", "a", "b"], 3).tolist()
        [1, 0, 1]
    """
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.ndim != 1 or (num_samples is not None and len(array) != num_samples):
        expected = "" if num_samples is None else f" for each of {num_samples} samples"
        raise ConfigError(f"{name} must have one id{expected}, found an array of shape {array.shape}")
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array):
        array = array.astype(str)
    if array.dtype.kind not in "iuUS":
        raise ConfigError(f"{name}: ids must be whole numbers or strings, found {array.dtype}")
    return np.unique(array, return_inverse=True)[1].reshape(-1).astype(np.int64)


def part_groups(batches_SB: Ints, group_N: Ints, rng: np.random.Generator) -> Ints:
    """Exchange samples between batches until every group is spread evenly over them.

    Then no two samples of a group share a batch, if no group has more samples than there are batches; otherwise as few
    pairs as possible do. That is reached because a batch with at least two samples more of a group than another one
    has, for each of them, a sample of the other batch whose group it has less of: exchanging both spreads the first
    group, and does not make the second less even.

    Args:
        batches_SB: (S, B) int64 data-set positions, none twice.
        group_N: (N,) int64, the group of every sample.
        rng: draws among equally good exchanges.

    Returns:
        (S, B) int64, a permutation of the same positions.
    """
    crowded = _crowded(batches_SB, group_N)
    if len(crowded) == 0 or len(batches_SB) < 2:
        return batches_SB
    spread = _Spread(batches_SB.copy(), group_N, rng)
    places = np.argsort(group_N[batches_SB.ravel()], kind="stable")
    sorted_groups = group_N[batches_SB.ravel()][places]
    starts, ends = (np.searchsorted(sorted_groups, crowded, side=side) for side in ("left", "right"))
    for group, start, end in zip(crowded.tolist(), starts, ends, strict=True):
        spread.even(group, int(end - start))
    return spread.batches_SB


def _crowded(batches_SB: Ints, group_N: Ints) -> Ints:
    """Return the groups of which a batch has several samples, ascending."""
    group_SB = np.sort(group_N[batches_SB], axis=1)
    return np.unique(group_SB[:, 1:][group_SB[:, 1:] == group_SB[:, :-1]])


class _Spread:
    """The state of :func:`part_groups`: the batches, and how many samples of each group they have."""

    def __init__(self, batches_SB: Ints, group_N: Ints, rng: np.random.Generator) -> None:
        self.batches_SB = batches_SB
        self.group_N = group_N
        self.rng = rng
        self.counts = [Counter(row) for row in group_N[batches_SB].tolist()]
        self.batches_of: dict[int, set[int]] = {}
        """The batches that have samples of a group."""
        for batch, count in enumerate(self.counts):
            for group in count:
                self.batches_of.setdefault(group, set()).add(batch)

    def even(self, group: int, size: int) -> None:
        """Spread a group of ``size`` samples: every batch gets the floor or the ceiling of their mean number."""
        least = size // len(self.counts)
        holders = sorted(self.batches_of[group])
        givers = [batch for batch in holders for _ in range(self.counts[batch][group] - least - 1)]
        takers: list[int] = []
        if least:
            lacking = [least - count[group] for count in self.counts]
            takers = [batch for batch, number in enumerate(lacking) for _ in range(number)]
        if len(takers) > len(givers):
            spare = np.array([batch for batch in holders if self.counts[batch][group] > least])
            givers += self.rng.permutation(spare)[: len(takers) - len(givers)].tolist()
        takers = self.rng.permutation(np.array(takers, dtype=np.int64)).tolist()
        for giver in givers:
            taker = takers.pop() if takers else self._with(group, least)
            self._exchange(group, giver, taker)

    def _with(self, group: int, number: int) -> int:
        """Return a random batch that has ``number`` samples of a group."""
        for batch in self.rng.integers(0, len(self.counts), ATTEMPTS).tolist():
            if self.counts[batch][group] == number:
                return int(batch)
        return int(self.rng.choice([batch for batch, count in enumerate(self.counts) if count[group] == number]))

    def _exchange(self, group: int, giver: int, taker: int) -> None:
        """Exchange a sample of a group with the one of the taker whose group the giver has least of, relatively."""
        own, other = self.counts[giver], self.counts[taker]
        given = self.group_N[self.batches_SB[giver]]
        taken = self.group_N[self.batches_SB[taker]].tolist()
        change = [own[each] - other[each] for each in taken]
        best = min(change)
        ties = [place for place, value in enumerate(change) if value == best]
        place = ties[int(self.rng.integers(len(ties)))]
        own_place = int(np.flatnonzero(given == group)[0])
        batches_SB = self.batches_SB
        batches_SB[giver, own_place], batches_SB[taker, place] = batches_SB[taker, place], batches_SB[giver, own_place]
        for moved, source, target in ((group, giver, taker), (taken[place], taker, giver)):
            self.counts[source][moved] -= 1
            self.counts[target][moved] += 1
            if not self.counts[source][moved]:
                self.batches_of[moved].discard(source)
            self.batches_of[moved].add(target)
