"""A sampler with the groups of a data set, for what plans by the interface of samplers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from mbcl.errors import ConfigError
from mbcl.plan import BatchPlan, Embeddings
from mbcl.samplers._base import Ids, Sampler
from mbcl.samplers._groups import NO_GROUPS, Groups
from mbcl.samplers._pools import PoolSampler


def with_groups(sampler: Sampler, *, apart: Ids | None = None, together: Ids | None = None) -> Sampler:
    """Return a sampler whose every plan has these groups, as by the arguments of :meth:`Sampler.plan`.

    Its ``check``, ``plan_length`` and :func:`check_plan` are those of a data set with these sources.

    Args:
        sampler: any sampler that keeps groups.
        apart: (N,) ids, samples of one of which share no batch where that is possible, or None.
        together: (N,) ids of sources, one of which every batch is from, or None.

    Raises:
        ConfigError: unless the ids are one whole number or string for each sample; also, if the sampler has groups.

    Example:
        >>> from mbcl.samplers import build
        >>> sampler = with_groups(build("shuffle", batch_size=2), together=["a", "b", "a", "b", "b"])
        >>> sampler.plan_length(5)
        2
    """
    groups = Groups.of(None, apart, together)
    if not groups:
        return sampler
    if groups_of(sampler):
        raise ConfigError(f"sampler {sampler.name!r} has apart or together already; give both at once")
    return cast(Sampler, Grouped(sampler, groups))


def groups_of(sampler: Sampler) -> Groups:
    """Return the groups that :func:`with_groups` gave a sampler, or none."""
    return sampler.groups if isinstance(sampler, Grouped) else NO_GROUPS


@dataclass(frozen=True, eq=False)
class Grouped:
    """See :func:`with_groups`."""

    sampler: Sampler
    groups: Groups

    def __getattr__(self, name: str) -> Any:
        # Called for what is not defined here: name, batch_size, temperature, ... of the sampler.
        if name.startswith("__") or name in ("sampler", "groups"):
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def __repr__(self) -> str:
        kinds = [kind for kind in ("apart", "together") if getattr(self.groups, kind) is not None]
        return f"{self.sampler!r} with {' and '.join(kinds)}"

    def check(self, num_samples: int) -> None:
        """Check that there is an id for each sample, and that every source that fills a batch can be planned."""
        self.groups.check(self.sampler, num_samples)

    def plan_length(self, num_samples: int) -> int:
        """S, the batches of one plan of all sources."""
        return self.groups.plan_length(self.sampler, num_samples)

    def planned_pools(self, num_samples: int) -> int:
        """Return the number of pools of all sources; the sampler is a :class:`PoolSampler`."""
        assert isinstance(self.sampler, PoolSampler)
        return self.groups.sum_of_sources(self.sampler.planned_pools, self.sampler.batch_size, num_samples)

    def plan(self, num_samples: int, embeddings: Embeddings | None = None, **arguments: Any) -> BatchPlan:
        """Plan as :meth:`Sampler.plan` with these groups."""
        apart, together = self.groups.apart, self.groups.together
        return self.sampler.plan(num_samples, embeddings, apart=apart, together=together, **arguments)

    def plan_rounds(
        self, num_samples: int, embeddings: Embeddings | None = None, *, rounds: Sequence[int] = (0,), **arguments: Any
    ) -> list[BatchPlan]:
        """Make the plans of several rounds of an epoch, as :meth:`PoolSampler.plan_rounds` with these groups."""
        if isinstance(self.sampler, PoolSampler):
            return self.sampler.plan_rounds(num_samples, embeddings, rounds=rounds, groups=self.groups, **arguments)
        return [self.plan(num_samples, embeddings, round=number, **arguments) for number in rounds]
