"""The interface of samplers, their registry, and the check of their plans.

Letters: N samples of the data set, B samples a batch, S batches of a plan.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.errors import ConfigError, PlanError, SamplerWarning
from mbcl.functional import check_count
from mbcl.plan import BatchPlan, Embeddings
from mbcl.registry import Registry, construct

FloatArray = NDArray[np.floating]
Ints = NDArray[np.int64]
Ids = Tensor | NDArray[Any] | Sequence[int] | Sequence[str]
"""One id a sample, in the order of the data set: whole numbers or strings."""
PoolItem = tuple[FloatArray, FloatArray, int] | tuple[FloatArray, FloatArray, int, Ints]


@dataclass(frozen=True, eq=False)
class PoolPlan:
    """The batches of one pool.

    Args:
        rows: (S_p, B) int64 row numbers within the pool.
        scores: (S_p,) float64, the losses by which the batches were ranked, or None.
        neighbours: (M, skip) int32, for each row of the pool the rows that should not share a batch with it, or None.
    """

    rows: Ints
    scores: NDArray[np.float64] | None = None
    neighbours: NDArray[np.int32] | None = None


PoolFunction = Callable[..., PoolPlan]
"""A function of a :data:`PoolItem`'s entries: both views, a seed, and the groups of the rows if there are groups."""


class PoolMap(Protocol):
    """A map over pools: a loop in this process, or tasks in other processes."""

    def __call__(self, function: PoolFunction, items: Sequence[PoolItem]) -> Sequence[PoolPlan]:
        """Return ``[function(*item) for item in items]``, in this order.

        ``items`` is lazy: it makes an item at every access and caches none, so the implementation of the map decides
        how many items are in memory at once.
        """


def serial(function: PoolFunction, items: Sequence[PoolItem]) -> Sequence[PoolPlan]:
    """The :class:`PoolMap` that plans one pool after the other in this thread."""
    return [function(*item) for item in items]


class Sampler(Protocol):
    """A sampler: small, frozen, picklable; every plan is a pure function of the arguments of :meth:`plan`."""

    name: ClassVar[str]
    needs_embeddings: ClassVar[bool]

    @property
    def batch_size(self) -> int:
        """B, the samples of a global batch."""

    @property
    def no_repeats(self) -> bool:
        """Whether no sample is visited twice in one plan."""

    @property
    def covers_all(self) -> bool:
        """Whether a plan visits every sample, except the remainder that fills no batch or pool."""

    def check(self, num_samples: int) -> None:
        """Check that ``num_samples`` samples can be planned; warn if a setting has no effect.

        Raises:
            ConfigError: if they cannot; the text holds the numbers.
        """

    def plan_length(self, num_samples: int) -> int:
        """S, the batches of one plan."""

    def plan_width(self, num_samples: int) -> int:
        """The samples of each batch of a plan: B, except for ``full``."""

    def plan(
        self,
        num_samples: int,
        embeddings: Embeddings | None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
        round: int = 0,
        map_pools: PoolMap = serial,
        apart: Ids | None = None,
        together: Ids | None = None,
    ) -> BatchPlan:
        """Plan batches of the data-set positions ``range(num_samples)``.

        Args:
            num_samples: N.
            embeddings: of all N samples, rows in any order, on any device; ignored unless ``needs_embeddings``.
            seed: the experiment's seed.
            epoch: counts from 0.
            round: counts the plans of one epoch from 0; an epoch needs several where a plan is shorter than the epoch.
            map_pools: the map that plans the pools; the plan does not depend on it.
            apart: (N,) ids, whole numbers or strings. Samples of one id share no batch where that is possible; those
                that do are counted (``BatchPlan.conflicts``).
            together: (N,) ids of sources: every batch is from one of them, and pools do not cross them. Batches of all
                sources come in random order. A source's remainder that fills no batch is drawn anew each epoch.

        Raises:
            ConfigError: as in :meth:`check`, for each source; also, unless there is an id for each sample.
            PlanError: if embeddings are missing or do not hold each sample once.
        """


@dataclass(frozen=True, kw_only=True)
class BaseSampler:
    """Base of most samplers: batches of B samples, none repeated, and none left out except the remainder N mod B.

    Args:
        batch_size: B, global.
    """

    name: ClassVar[str]
    needs_embeddings: ClassVar[bool] = False

    batch_size: int

    def __post_init__(self) -> None:
        # A single sample has no negatives.
        check_count("batch_size", self.batch_size, least=2)

    @property
    def no_repeats(self) -> bool:
        return True

    @property
    def covers_all(self) -> bool:
        return True

    def check(self, num_samples: int) -> None:
        """Check that the samples fill at least one batch."""
        if self.batch_size > num_samples:
            raise ConfigError(
                f"sampler {self.name!r}: batch_size {self.batch_size} is above the {num_samples} samples of the data "
                "set"
            )

    def plan_length(self, num_samples: int) -> int:
        return num_samples // self.batch_size

    def plan_width(self, num_samples: int) -> int:
        return self.batch_size

    def _warn(self, text: str) -> None:
        """Warn from :meth:`check`."""
        warnings.warn(f"sampler {self.name!r}: {text}", SamplerWarning, stacklevel=4)


SAMPLERS: Registry[type[Sampler]] = Registry("sampler", "mbcl.samplers")


def build(name: str, *, batch_size: int, **parameters: object) -> Sampler:
    """Make the sampler of this name or alias.

    Raises:
        ConfigError: if the name or a parameter is unknown, or a value is out of range.

    Example:
        >>> build("s", batch_size=2).plan(5, seed=0, epoch=3).batches.shape
        torch.Size([2, 2])
    """
    return construct("sampler", name, SAMPLERS[name], {"batch_size": batch_size, **parameters})


def check_widths(sampler: Sampler, widths: tuple[int, int]) -> None:
    """Check that a sampler can plan from two sides of these widths (:attr:`mbcl.Embeddings.widths`).

    Raises:
        ConfigError: if the widths differ and the sampler compares one side with the other.
    """
    first, second = widths
    if first == second or not getattr(sampler, "needs_one_width", sampler.needs_embeddings):
        return
    able = sorted(name for name in SAMPLERS if not getattr(SAMPLERS[name], "compares_sides", True))
    reason = "with a margin compares" if sampler.name in able else "compares"
    raise ConfigError(
        f"sampler {sampler.name!r} {reason} side one with side two, so both need one width: z1 has {first} dimensions, "
        f"z2 has {second}; without margins, {', '.join(able)} compare each side with itself only"
    )


def check_one_width(embeddings: Embeddings) -> None:
    """Check that a loss can be measured on embeddings.

    Raises:
        ConfigError: if both sides have a width of their own.
    """
    first, second = embeddings.widths
    if first != second:
        found = f"z1 has {first} dimensions, z2 has {second}"
        raise ConfigError(f"a loss compares side one with side two, so both need one width: {found}")


def check_plan(plan: BatchPlan, sampler: Sampler, num_samples: int) -> BatchPlan:
    """Return the plan itself if it keeps its sampler's promises; every plan is checked here before training uses it.

    Args:
        plan: of one round.
        sampler: the sampler that made it.
        num_samples: N.

    Raises:
        PlanError: if a position is out of range or repeated, a batch is missing, or a score is not finite; also, if
            the sampler has ``covers_all``, unless the plan visits min(S * B, N) different samples.
    """
    plan.validate(num_samples, distinct=sampler.no_repeats)
    expected = (sampler.plan_length(num_samples), sampler.plan_width(num_samples))
    if plan.batches.shape != expected:
        raise PlanError(f"{plan.sampler}: {expected} batches were promised, found {tuple(plan.batches.shape)}")
    if plan.scores is not None and (plan.scores.shape != expected[:1] or not bool(plan.scores.isfinite().all())):
        raise PlanError(f"{plan.sampler}: scores must be {expected[0]} finite numbers")
    visited = len(torch.unique(plan.batches))
    promised = min(expected[0] * expected[1], num_samples)
    if sampler.covers_all and visited != promised:
        raise PlanError(f"{plan.sampler}: promises {promised} of the {num_samples} samples, visits {visited}")
    return plan
