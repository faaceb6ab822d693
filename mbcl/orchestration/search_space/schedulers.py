"""Who decides which settings go on: the schedulers of a space file and their parameters. No Ray here.

The rules themselves are in :mod:`mbcl.orchestration.scheduling.early_stopping`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mbcl.errors import ConfigError
from mbcl.registry import Registry, construct


class Scheduler(Protocol):
    """What a space file says about a scheduler."""

    @property
    def stops(self) -> bool:
        """Whether it ever stops a trial."""

    @property
    def grace_period(self) -> int:
        """Before so many epochs it stops nobody."""

    def end(self, epochs: int) -> int:
        """After how many epochs a trial of so many ends at the latest."""

    def describe(self, metric: str) -> str:
        """What it does, for people."""


MOST_EPOCHS = 2**31
"""More than anybody trains."""
FACTORS = (1.01, 1e6)
"""The least and the largest reduction factor: a smaller one has more rungs than anybody wants."""

SCHEDULERS: Registry[Any] = Registry("scheduler")


@SCHEDULERS.register("fifo")
@dataclass(frozen=True, kw_only=True)
class Fifo:
    """Every trial runs to its end."""

    @property
    def stops(self) -> bool:
        """Never."""
        return False

    @property
    def grace_period(self) -> int:
        """Nobody is stopped at all."""
        return 0

    def end(self, epochs: int) -> int:
        """All of them."""
        return epochs

    def describe(self, metric: str) -> str:
        """What it does."""
        return "fifo: every trial runs to its end"


@SCHEDULERS.register("asha", aliases=("async_hyperband", "asynchyperband"))
@dataclass(frozen=True, kw_only=True)
class Asha:
    """Asynchronous successive halving (Li et al., arXiv 1810.05934), as Ray's ``AsyncHyperBandScheduler``.

    Args:
        grace_period: nobody is stopped before so many epochs.
        reduction_factor: at the rungs ``grace_period * reduction_factor ** i`` the best of so many go on.
        max_t: epochs after which a trial is stopped even if it is the best; null: its own epochs, so that who survives
            finishes.
    """

    grace_period: int = 1
    reduction_factor: float = 4
    max_t: int | None = None

    def __post_init__(self) -> None:
        _within("grace_period", self.grace_period, 1, MOST_EPOCHS)
        low, high = FACTORS
        if not low <= self.reduction_factor <= high:
            raise ConfigError(
                f"reduction_factor: found {self.reduction_factor!r}, allowed: a number from {low:g} to {high:g}"
            )
        if self.max_t is not None and not self.grace_period <= self.max_t <= MOST_EPOCHS:
            raise ConfigError(
                f"max_t: found {self.max_t}, allowed: null or at least the grace_period of {self.grace_period} and at "
                f"most {MOST_EPOCHS}"
            )

    @property
    def stops(self) -> bool:
        """Always may."""
        return True

    def end(self, epochs: int) -> int:
        """``max_t``, if that comes first."""
        return min(epochs, self.max_t or epochs)

    def describe(self, metric: str) -> str:
        """What it does."""
        rungs = ", ".join(f"{self.grace_period * self.reduction_factor**i:g}" for i in range(3))
        return f"asha: after {rungs}, ... epochs the best 1/{self.reduction_factor:g} by {metric} go on"


@SCHEDULERS.register("median", aliases=("median_stopping_rule", "median_stopping", "medianstopping"))
@dataclass(frozen=True, kw_only=True)
class Median:
    """The median stopping rule (Golovin et al., Google Vizier, KDD 2017), as Ray's ``MedianStoppingRule``.

    A trial is stopped if its best value so far is worse than the median of the others' running means.

    Args:
        grace_period: nobody is stopped before so many epochs, and means begin there.
        min_samples_required: so many others must have come as far.
    """

    grace_period: int = 1
    min_samples_required: int = 3

    def __post_init__(self) -> None:
        _within("grace_period", self.grace_period, 1, MOST_EPOCHS)
        _within("min_samples_required", self.min_samples_required, 1, MOST_EPOCHS)

    @property
    def stops(self) -> bool:
        """Always may."""
        return True

    def end(self, epochs: int) -> int:
        """All of them."""
        return epochs

    def describe(self, metric: str) -> str:
        """What it does."""
        return (
            f"median: from epoch {self.grace_period} on, who is below the median of at least "
            f"{self.min_samples_required} others by {metric} is stopped"
        )


def _within(key: str, found: int, least: int, most: int) -> None:
    if not least <= found <= most:
        raise ConfigError(f"{key}: found {found}, allowed: a whole number of at least {least} and at most {most}")


def build(block: Mapping[str, Any]) -> Scheduler:
    """The scheduler of a space file's block.

    Raises:
        ConfigError: for an unknown name or parameter, or a value that is not allowed.
    """
    parameters = {key: value for key, value in block.items() if key != "name"}
    scheduler: Scheduler = construct("scheduler", block["name"], SCHEDULERS[block["name"]], parameters)
    return scheduler
