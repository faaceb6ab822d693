"""Selection of batches by samplers, for the direct optimisation of points.

Letters: 2 the views u and v, S seeds, N samples, D dimensions, K batches of a step, B samples per batch.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbcl.config.sampler_spec import parse_spec
from mbcl.errors import ConfigError, PlanError
from mbcl.functional import clip
from mbcl.plan import Embeddings
from mbcl.planner import PlanKey, plan_rounds
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
"""Maximum number of samples up to which samplers plan all samples as one group or pool by default."""


def _plan_seed(sampler: Sampler, x_2ND: Tensor, seed: int, step: int) -> Tensor:
    """(N // B, B) int64: if a plan is shorter, plans of further rounds follow, made from the same embeddings."""
    num_samples = x_2ND.shape[1]
    embeddings = Embeddings(*x_2ND) if sampler.needs_embeddings else None
    num_batches = num_samples // sampler.batch_size
    key = PlanKey(step, 0, -(-num_batches // sampler.plan_length(num_samples)), num_batches)
    return plan_rounds(sampler, embeddings, key, num_samples=num_samples, seed=seed).batches


def _check_batched_plans(rows_SKB: Tensor, sampler: PoolSampler, num_samples: int) -> None:
    """Check the plans of all seeds like :func:`check_plan`: the promised shape, valid positions, no sample twice."""
    promised = (sampler.plan_length(num_samples), sampler.batch_size)
    sorted_SM = rows_SKB.flatten(1).sort(dim=1)[0]
    distinct = bool((sorted_SM.diff(dim=1) > 0).all())
    if rows_SKB.shape[1:] != promised or not distinct or sorted_SM[:, 0].min() < 0 or sorted_SM.max() >= num_samples:
        raise PlanError(f"{sampler.name}: {promised} batches of different samples were promised, found others")


@functools.lru_cache(maxsize=64)
def _can_plan_batched(sampler: PoolSampler, num_samples: int) -> bool:
    """Return whether one pool holds all samples, so that the plans of all seeds can be made in one computation."""
    return (
        sampler.batched
        and not isinstance(sampler, OSGD)
        and not sampler.mix
        and not sampler.separates
        and sampler.width == sampler.batch_size
        and sampler.pool_sizes(num_samples) == [num_samples]
        and num_samples <= getattr(sampler, "block_size", num_samples)
    )


@dataclass(frozen=True, eq=False)
class Method:
    """One curve of the study: a sampler with a batch size.

    Args:
        label: the name in tables and figures.
        name: the sampler's registered name.
        sampler: the sampler with its parameters.
    """

    label: str
    name: str
    sampler: Sampler

    @property
    def exhaustive(self) -> bool:
        """Whether a batch is chosen before every update."""
        return isinstance(self.sampler, OSGDExhaustive)

    @property
    def one_update(self) -> bool:
        """Whether a step is one update on the mean of its batches, as published for ``full`` and ``all_batches``."""
        return isinstance(self.sampler, Full | AllBatches)

    @property
    def unchanging(self) -> bool:
        """Whether all steps have the same batches."""
        return isinstance(self.sampler, Full | AllBatches | Fixed)

    def batches(self, x_2SND: Tensor, seeds: Sequence[int], step: int) -> Tensor:
        """Return the batches of a step, (S, K, B) int64, chosen when the step begins, in training order.

        A step corresponds to an epoch of training. With ``one_update``, all seeds share one plan. Otherwise K = N // B,
        and the plans of all seeds are made in one computation if the sampler supports it.

        Args:
            x_2SND: (2, S, N, D) float, the points of each seed; they are not modified.
            seeds: one per run.
            step: counts from 0.
        """
        sampler, num_samples = self.sampler, x_2SND.shape[2]
        if self.one_update:
            plan = check_plan(sampler.plan(num_samples), sampler, num_samples)
            return plan.batches.expand(len(seeds), -1, -1)
        if isinstance(sampler, PoolSampler) and _can_plan_batched(sampler, num_samples):
            streams = [derive(seed, f"synthetic/{sampler.name}", step) for seed in seeds]
            rows_SKB = sampler.plan_batched(x_2SND[0], x_2SND[1], streams)
            _check_batched_plans(rows_SKB, sampler, num_samples)
            # As in every plan, sort the batches by their first sample.
            return rows_SKB.take_along_dim(rows_SKB[:, :, :1].argsort(dim=1), dim=1)
        return torch.stack([_plan_seed(sampler, x_2SND[:, index], seed, step) for index, seed in enumerate(seeds)])


def methods_of(samplers: Sequence[str], batch_sizes: Sequence[int], num_samples: int) -> list[Method]:
    """Create the methods: every sampler with every batch size, but ``full``, which ignores batch sizes, once.

    Args:
        samplers: specifications as :func:`mbcl.config.sampler_spec.parse_spec` reads them; published names are known.
        batch_sizes: B, each once.
        num_samples: N.

    Raises:
        ConfigError: if a specification is malformed, is given twice, or does not fit N and B.
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
    """Create the method of one sampler with one batch size.

    Args:
        name: the registered name.
        parameters: the given parameters; the others come from :func:`fitting`.
        batch_size: B.
        num_samples: N.
        label: the name in tables and figures; by default the registered name.

    Raises:
        ConfigError: if the sampler has no such parameters, or they do not fit N and B.
    """
    sampler = build(name, batch_size=batch_size, **{**fitting(name, batch_size, num_samples), **parameters})
    if isinstance(sampler, OSGD) and sampler.score == "objective":
        sampler = sampler.with_objective(functools.partial(clip, temperature=1.0))
    sampler.check(num_samples)
    return Method(label or name, name, sampler)


def fitting(name: str, batch_size: int, num_samples: int) -> dict[str, object]:
    """Return a sampler's default parameters in the study: temperature 1, and one group or pool of all samples.

    ``osgd`` scores all batches of a random partition and selects a tenth, its published share, but at least one.

    Example:
        >>> fitting("spectral", 2, 8), fitting("osgd", 2, 8)
        ({'temperature': 1.0, 'k': None}, {'temperature': 1.0, 'k': 4, 'q': 1})
    """
    parameters = inspect.signature(SAMPLERS[name]).parameters
    defaults: dict[str, object] = {"temperature": 1.0} if "temperature" in parameters else {}
    if "q" in parameters:
        k = min(1500, num_samples // batch_size)
        return defaults | {"k": max(1, k), "q": max(1, k // 10)}
    if num_samples <= ONE_GROUP:
        hints = inspect.signature(SAMPLERS[name], eval_str=True).parameters
        defaults |= {key: None for key in ("k", "pool") if key in hints and hints[key].annotation == int | None}
    return defaults
