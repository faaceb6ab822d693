"""The batches of each epoch: of a fixed plan, of a function of the epoch, or of a sampler.

Letters: N samples of the data set, S batches of an epoch, B samples of a global batch.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from mbcl.errors import ConfigError, PlanError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.planner import PlanKey, plan_rounds
from mbcl.samplers import SAMPLERS, Sampler, Shuffle, build, groups_of
from mbcl.seeding import torch_generator


class PlanSource(ABC):
    """What a :class:`~mbcl.torch.PlannedBatchSampler` asks for the batches of an epoch.

    Args:
        num_samples: N; None if it is not known.
        batch_size: B; None if it is known from the plans only.
        is_partition: whether each epoch holds every sample once, but for a remainder of fewer than B samples; None if
            that is known from the plans only.
    """

    def __init__(self, num_samples: int | None, batch_size: int | None, *, is_partition: bool | None) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.is_partition = is_partition

    @abstractmethod
    def num_batches(self, epoch: int) -> int:
        """Return S."""

    @abstractmethod
    def plan(self, epoch: int, step: int = 0) -> BatchPlan:
        """Return the batches of an epoch as far as they are planned: at least ``step`` + 1 of the S."""


class FixedPlan(PlanSource):
    """One plan for all epochs: in its own order in epoch 0, in an order drawn for each later epoch."""

    def __init__(self, plan: BatchPlan, num_samples: int | None) -> None:
        plan = _valid(plan, num_samples)
        _warn_if_fewer(plan, num_samples)
        partition = num_samples is not None and _is_partition(plan, num_samples)
        super().__init__(num_samples, plan.batches.shape[1], is_partition=partition)
        self._plan = plan
        self._ordered = plan, 0

    def num_batches(self, epoch: int) -> int:
        return len(self._plan)

    def plan(self, epoch: int, step: int = 0) -> BatchPlan:
        if self._ordered[1] != epoch:
            self._ordered = self._in_order_of(epoch), epoch
        return self._ordered[0]

    def _in_order_of(self, epoch: int) -> BatchPlan:
        if epoch == 0:
            return self._plan
        generator = torch_generator(self._plan.seed, "torch/order", epoch)
        return taken(self._plan, torch.randperm(len(self._plan), generator=generator))


class _WholeEpochs(PlanSource):
    """Base of the sources that plan an epoch as a whole; the newest plan is kept."""

    _newest: tuple[int, BatchPlan] | None = None

    @abstractmethod
    def _make(self, epoch: int) -> BatchPlan:
        """Return the plan of an epoch."""

    def num_batches(self, epoch: int) -> int:
        return len(self.plan(epoch))

    def plan(self, epoch: int, step: int = 0) -> BatchPlan:
        if self._newest is None or self._newest[0] != epoch:
            self._newest = epoch, self._make(epoch)
        return self._newest[1]


class PlanFunction(_WholeEpochs):
    """The plans that a function of the epoch returns. It is called once an epoch, unless another comes between."""

    def __init__(self, function: Callable[[int], BatchPlan], num_samples: int | None) -> None:
        super().__init__(num_samples, None, is_partition=None)
        self._function = function

    def _make(self, epoch: int) -> BatchPlan:
        plan = self._function(epoch)
        if not isinstance(plan, BatchPlan):
            raise ConfigError(f"plan({epoch}) must return a BatchPlan, found a {type(plan).__name__}")
        plan = _valid(plan, self.num_samples)
        _warn_if_fewer(plan, self.num_samples)
        return plan


class SamplerPlans(_WholeEpochs):
    """The plans of a sampler for (seed, epoch), from the same embeddings in every epoch.

    An epoch has N // B batches, with sources those that each of them fills. A sampler of fewer batches (``osgd``) plans
    several rounds, as in the engine; all of a sampler of more (``all_batches``) belong to the epoch.
    """

    def __init__(self, sampler: Sampler, embeddings: Embeddings | None, num_samples: int, seed: int) -> None:
        sampler.check(num_samples)
        width, length = sampler.plan_width(num_samples), sampler.plan_length(num_samples)
        groups = groups_of(sampler)
        steps = groups.num_batches(num_samples, width)
        self._num_batches = max(length, steps)
        one_plan = sampler.no_repeats and sampler.covers_all and length == steps and groups.together is None
        super().__init__(num_samples, width, is_partition=one_plan)
        self._sampler = sampler
        self._embeddings = embeddings.ordered(num_samples) if embeddings is not None else None
        self._seed = seed
        self._rounds = -(-self._num_batches // length)

    def num_batches(self, epoch: int) -> int:
        return self._num_batches

    def _make(self, epoch: int) -> BatchPlan:
        key = PlanKey(epoch, 0, self._rounds, self._num_batches)
        assert self.num_samples is not None
        return plan_rounds(self._sampler, self._embeddings, key, num_samples=self.num_samples, seed=self._seed)


def taken(plan: BatchPlan, rows: torch.Tensor | slice) -> BatchPlan:
    """Return a plan of some batches of another one."""
    scores = None if plan.scores is None else plan.scores[rows]
    conflicts = None if plan.batch_conflicts is None else plan.batch_conflicts[rows]
    return replace(plan, batches=plan.batches[rows], scores=scores, batch_conflicts=conflicts)


def extended(plan: BatchPlan, part: BatchPlan) -> BatchPlan:
    """Return a plan with the batches of a part of the same epoch behind its own."""
    conflicts = None
    if plan.batch_conflicts is not None and part.batch_conflicts is not None:
        conflicts = torch.cat([plan.batch_conflicts, part.batch_conflicts])
    batches = torch.cat([plan.batches, part.batches])
    return replace(plan, batches=batches, scores=None, batch_conflicts=conflicts)


def left_out(plan: BatchPlan, num_samples: int) -> torch.Tensor:
    """Return the positions that no batch holds, ascending, (n,) int64."""
    missing = torch.ones(num_samples, dtype=torch.bool)
    missing[plan.batches.flatten()] = False
    return missing.nonzero().flatten()


def _is_partition(plan: BatchPlan, num_samples: int) -> bool:
    """Tell whether the plan holds every sample once, but for fewer than B."""
    used = plan.batches.numel()
    return num_samples - used < plan.batches.shape[1] and len(torch.unique(plan.batches)) == used


def require_partition(plan: BatchPlan, num_samples: int) -> None:
    """Check a plan whose left-out samples shall be a last, short batch.

    Raises:
        ConfigError: if it holds a sample twice, or leaves a batch or more of them out.
    """
    if not _is_partition(plan, num_samples):
        raise ConfigError(
            f"drop_last=False: the plan of {plan.sampler!r} must hold each of the {num_samples} samples once, but for "
            f"fewer than a batch of {plan.batches.shape[1]}; it holds {len(torch.unique(plan.batches))} samples in "
            f"{plan.batches.numel()} places"
        )


def _valid(plan: BatchPlan, num_samples: int | None) -> BatchPlan:
    """Return a plan that came from outside, if its batches are valid.

    Raises:
        ConfigError: if they are not.
    """
    try:
        highest = int(plan.batches.max()) + 1 if plan.batches.numel() else 1
        return plan.validate(num_samples or highest, distinct=False)
    except PlanError as error:
        raise ConfigError(f"plan: {error}") from error


def _warn_if_fewer(plan: BatchPlan, num_samples: int | None) -> None:
    """Warn of a plan that leaves a batch or more of the data set out, unless its sampler may do so by design.

    It was perhaps made for a part of the data set, or for another one.
    """
    # A class with a rule of its own, such as osgd's, may leave samples out.
    rule = SAMPLERS[plan.sampler].covers_all if plan.sampler in SAMPLERS else Shuffle.covers_all
    by_design: bool = rule is not Shuffle.covers_all
    if num_samples is None or by_design:
        return
    held = len(torch.unique(plan.batches))
    if num_samples - held >= plan.batches.shape[1]:
        warnings.warn(
            f"the plan of {plan.sampler!r} holds {held} of the {num_samples} samples, so the others are in no batch",
            stacklevel=4,
        )


def build_sampler(sampler: str | Sampler, parameters: Mapping[str, object]) -> Sampler:
    """Return the sampler, or build it by its name.

    Raises:
        ConfigError: if parameters are given to a sampler that has its own, or do not fit the name.
    """
    if not isinstance(sampler, str):
        if not callable(getattr(sampler, "plan_width", None)):
            raise ConfigError(f"sampler must be a name or a sampler, found a {type(sampler).__name__}")
        if parameters:
            raise ConfigError(f"a sampler has its own parameters already, found also {', '.join(sorted(parameters))}")
        return sampler
    if "batch_size" not in parameters:
        raise ConfigError(f"sampler {sampler!r}: parameter 'batch_size' is required")
    return build(sampler, **parameters)  # type: ignore[arg-type]  # build checks them


def source_of(plan: object, num_samples: int | None) -> PlanSource:
    """Return the source that yields a plan, a plan file or a function, or the source itself.

    Raises:
        ConfigError: if it is none of these, or does not hold ``num_samples`` samples.
        PlanError: if a file is no plan.
    """
    if isinstance(plan, PlanSource):
        if num_samples not in (None, plan.num_samples):
            raise ConfigError(f"num_samples is {num_samples}, but the plans are of {plan.num_samples} samples")
        return plan
    if isinstance(plan, str | Path):
        path = plan
        plan = BatchPlan.load(path)
        try:
            return FixedPlan(plan, num_samples)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    if isinstance(plan, BatchPlan):
        return FixedPlan(plan, num_samples)
    if callable(plan):
        return PlanFunction(plan, num_samples)
    raise ConfigError(
        f"plan must be a BatchPlan, the path of a plan file, a function from epoch to plan, or a Replanner; found a "
        f"{type(plan).__name__}"
    )
