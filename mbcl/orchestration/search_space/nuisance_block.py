"""The ``nuisance`` block of a space file; :mod:`mbcl.study.nuisance` says what follows from it."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from pydantic import Field

from mbcl.config.base import ConfigModel, PathConfigError
from mbcl.errors import nearest
from mbcl.orchestration.search_space.domains import is_drawn
from mbcl.orchestration.search_space.trial_kinds import SYNTHETIC, TrialKind


class _Space(Protocol):
    """What the check of the block reads of a :class:`~mbcl.orchestration.search_space.schema.Space`."""

    space: dict[str, Any]
    seeds: list[int]
    search: Any
    scheduler: Any
    baseline: dict[str, Any]

    @property
    def kind(self) -> TrialKind: ...

    @property
    def nuisance_keys(self) -> frozenset[str]: ...


class Nuisance(ConfigModel):
    """The ``nuisance`` block: swept keys of which every setting takes its own best value.

    The space's ``seeds`` measure the chosen values.
    """

    keys: list[str] = Field(min_length=1)
    """Nuisance hyperparameters, which are tuned for a fair comparison of the others, with the keys tied to them."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    """Seeds of the trials that choose the values; none is among the space's `seeds`."""

    def check(self, space: _Space) -> None:
        """Refuse what a space cannot choose.

        Raises:
            PathConfigError: naming the key of the block, or of the space.
        """
        for key in self.keys:
            if key not in space.space:
                raise PathConfigError("nuisance.keys", f"{key!r} is not swept; {nearest(key, space.space)}")
        if len(set(self.keys)) != len(self.keys):
            raise PathConfigError("nuisance.keys", f"found {self.keys}, every key may be given once")
        if len(set(self.seeds)) != len(self.seeds):
            raise PathConfigError("nuisance.seeds", f"found {self.seeds}, every seed may be given once")
        if shared := sorted(set(self.seeds) & set(space.seeds)):
            message = f"found {shared[0]}, which is among `seeds`, too; the choice is measured on seeds that made none"
            raise PathConfigError("nuisance.seeds", message)
        drawn = [key for key, domain in space.space.items() if is_drawn(domain) and key not in space.nuisance_keys]
        for refused, key, reason in (
            (space.kind is SYNTHETIC, "nuisance", "a synthetic study has no validation split that could choose"),
            (space.search.adaptive, "search.name", f"found {space.search.name}; allowed with nuisance: random"),
            (
                space.scheduler.name != "fifo",
                "scheduler.name",
                f"found {space.scheduler.name}; allowed with nuisance: fifo",
            ),
            (
                not space.search.metric.startswith("val/"),
                "search.metric",
                "with nuisance a metric of the validation split",
            ),
            (bool(drawn), "nuisance.keys", f"{', '.join(drawn)} is drawn, but no nuisance key; allowed for it: a grid"),
        ):
            if refused:
                raise PathConfigError(key, reason)
        for key in space.baseline:
            if key in space.nuisance_keys:
                raise PathConfigError(f"baseline.{key}", "is a nuisance key, of which every setting has its own value")
