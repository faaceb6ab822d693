"""Which batches a sampler chooses for points that are moved directly.

Letters: 2 the views u and v, S seeds, N samples, D dimensions, K batches of a step, B samples a batch.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mbcl.config.sampler_spec import parse_spec
from mbcl.errors import ConfigError, PlanError
from mbcl.functional import clip
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers import (
    OSGD,
    SAMPLERS,
    AllBatches,
    Fixed,
    Full,
    OSGDExhaustive,
    PoolSampler,
    Sampler,
    build,
    check_plan,
)
from mbcl.seeding import derive

ONE_GROUP = 1280
"""Up to so many samples, samplers that can plan everything as one group or pool do, unless told otherwise."""


class Selection(Protocol):
    """What chooses the batches of a step: a sampler, or in a test a list."""

    def batches(self, x_2SND: Tensor, seeds: Sequence[int], step: int) -> Tensor:
        """(S, K, B) int64, chosen when the step begins, in the order of training.

        Args:
            x_2SND: (2, S, N, D) float, the points of each seed; only read.
            seeds: one per run.
            step: counts from 0.
        """
        ...


@dataclass(frozen=True)
class Planned:
    """Batches by the plans of a sampler, N // B of them a step.

    A step is what an epoch is to a training: plans that are shorter are followed by those of further rounds, made from
    the embeddings that the step began with.

    Args:
        sampler: that plans.
    """

    sampler: Sampler

    def batches(self, x_2SND: Tensor, seeds: Sequence[int], step: int) -> Tensor:
        """As :meth:`Selection.batches`; the plans of all seeds at once where the sampler can."""
        sampler, num_samples = self.sampler, x_2SND.shape[2]
        if isinstance(sampler, PoolSampler) and _plans_together(sampler, num_samples):
            streams = [derive(seed, f"synthetic/{sampler.name}", step) for seed in seeds]
            rows_SKB = sampler.plan_batched(x_2SND[0], x_2SND[1], streams)
            _examine_together(rows_SKB, sampler, num_samples)
            # As in every plan, batches stand in the order of their first sample.
            return rows_SKB.take_along_dim(rows_SKB[:, :, :1].argsort(dim=1), dim=1)
        return torch.stack([self._of_seed(x_2SND[:, place], seed, step) for place, seed in enumerate(seeds)])

    def _of_seed(self, x_2ND: Tensor, seed: int, step: int) -> Tensor:
        sampler, num_samples = self.sampler, x_2ND.shape[1]
        embeddings = Embeddings(*x_2ND) if sampler.needs_embeddings else None
        wanted, parts = num_samples // sampler.batch_size, list[BatchPlan]()
        while sum(map(len, parts)) < wanted:
            plan = sampler.plan(num_samples, embeddings, seed=seed, epoch=step, round=len(parts))
            parts.append(check_plan(plan, sampler, num_samples))
        return torch.cat([plan.batches for plan in parts])[:wanted]


def _examine_together(rows_SKB: Tensor, sampler: PoolSampler, num_samples: int) -> None:
    """What :func:`check_plan` asks of one plan, of those of all seeds: as many batches as promised, no sample twice."""
    promised = (sampler.plan_length(num_samples), sampler.batch_size)
    sorted_SM = rows_SKB.flatten(1).sort(dim=1)[0]
    distinct = bool((sorted_SM.diff(dim=1) > 0).all())
    if rows_SKB.shape[1:] != promised or not distinct or sorted_SM[:, 0].min() < 0 or sorted_SM.max() >= num_samples:
        raise PlanError(f"{sampler.name}: {promised} batches of different samples were promised, found others")


@functools.lru_cache(maxsize=64)
def _plans_together(sampler: PoolSampler, num_samples: int) -> bool:
    """Whether one pool holds everything, so that the pools of all seeds can be planned in one computation."""
    return (
        sampler.batched
        and not isinstance(sampler, OSGD)
        and not sampler.mix
        and not sampler.skip
        and sampler.pool_sizes(num_samples) == [num_samples]
        and num_samples <= getattr(sampler, "block_size", num_samples)
    )


@dataclass(frozen=True, eq=False)
class Method:
    """One curve of the study: a sampler with a batch size.

    Args:
        label: how it is called in tables and figures.
        name: the sampler's registered name.
        batch_size: B.
        sampler: with its parameters.
        selection: where batches are known when a step begins.
    """

    label: str
    name: str
    batch_size: int
    sampler: Sampler
    selection: Selection

    @property
    def exhaustive(self) -> bool:
        """Whether a batch is chosen before every update."""
        return isinstance(self.sampler, OSGDExhaustive)

    @property
    def one_update(self) -> bool:
        """Whether a step is one update on the mean of its batches, as published of ``full`` and ``all_batches``."""
        return isinstance(self.sampler, Full | AllBatches)

    @property
    def unchanging(self) -> bool:
        """Whether every step has the batches of the first one."""
        return isinstance(self.sampler, Full | AllBatches | Fixed)


@dataclass(frozen=True)
class Whole:
    """One plan, the same for all seeds: everything, or all batches."""

    sampler: Sampler

    def batches(self, x_2SND: Tensor, seeds: Sequence[int], step: int) -> Tensor:
        """As :meth:`Selection.batches`."""
        num_samples = x_2SND.shape[2]
        plan = check_plan(self.sampler.plan(num_samples), self.sampler, num_samples)
        return plan.batches.expand(len(seeds), -1, -1)


def methods_of(samplers: Sequence[str], batch_sizes: Sequence[int], num_samples: int) -> list[Method]:
    """Every sampler with every batch size; ``full``, which has only one, once.

    Args:
        samplers: specifications as :func:`mbcl.config.sampler_spec.parse_spec` reads them; published names are known.
        batch_sizes: B, each once.
        num_samples: N.

    Raises:
        ConfigError: if a specification is not one, is given twice, or does not fit N and B.
    """
    methods: list[Method] = []
    seen: dict[tuple[str, str], str] = {}
    for text in samplers:
        spec = parse_spec(text)
        identity = (spec.name, repr(sorted(spec.parameters.items())))
        if identity in seen:
            raise ConfigError(f"--samplers {text}: the same as {seen[identity]}; give each once")
        seen[identity] = text
        for batch_size in batch_sizes[:1] if spec.name == "full" else batch_sizes:
            several = len(batch_sizes) > 1 and spec.name != "full"
            label = f"{text}, B = {batch_size}" if several else text
            try:
                methods.append(method_of(spec.name, spec.parameters, batch_size, num_samples, label))
            except ConfigError as error:
                raise ConfigError(f"--samplers {spec.text}: {error}") from error
    return methods


def method_of(
    name: str, parameters: Mapping[str, object], batch_size: int, num_samples: int, label: str | None = None
) -> Method:
    """One sampler with one batch size.

    Args:
        name: registered name.
        parameters: those that are given; the others are :func:`fitting`.
        batch_size: B.
        num_samples: N.
        label: how it is called; by default its name.

    Raises:
        ConfigError: if the parameters are none of the sampler's, or do not fit N and B.
    """
    sampler = build(name, batch_size=batch_size, **{**fitting(name, batch_size, num_samples), **parameters})
    if isinstance(sampler, OSGD) and sampler.score == "objective":
        sampler = sampler.with_objective(functools.partial(clip, temperature=1.0))
    sampler.check(num_samples)
    selection: Selection = Whole(sampler) if name in ("full", "all_batches") else Planned(sampler)
    return Method(label or name, name, batch_size, sampler, selection)


def fitting(name: str, batch_size: int, num_samples: int) -> dict[str, object]:
    """The parameters of a sampler in the study, unless others are given: no temperature, and one group of everything.

    ``osgd`` looks at all batches of a random partition and keeps a tenth, its published share, but at least one.

    Example:
        >>> fitting("spectral", 2, 8), fitting("osgd", 2, 8)
        ({'temperature': 1.0, 'k': None}, {'temperature': 1.0, 'k': 4, 'q': 1})
    """
    known = inspect.signature(SAMPLERS[name]).parameters
    found: dict[str, object] = {"temperature": 1.0} if "temperature" in known else {}
    if "q" in known:
        k = min(1500, num_samples // batch_size)
        return found | {"k": max(1, k), "q": max(1, k // 10)}
    if num_samples <= ONE_GROUP:
        hints = inspect.signature(SAMPLERS[name], eval_str=True).parameters
        found |= {key: None for key in ("k", "pool") if key in hints and hints[key].annotation == int | None}
    return found
