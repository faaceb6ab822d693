"""The schedulers of a space file and their parameters. Imports no Ray.

The rules themselves are in :mod:`mbcl.orchestration.scheduling.early_stopping`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mbcl.errors import ConfigError, pluralize
from mbcl.registry import Registry, construct


class Scheduler(Protocol):
    """A scheduler block of a space file."""

    @property
    def stops(self) -> bool:
        """Whether it can stop a trial early."""

    @property
    def grace_period(self) -> int:
        """Number of epochs before which it stops no trial."""

    def end(self, epochs: int) -> int:
        """Return the last epoch of a trial that has ``epochs`` epochs."""

    def describe(self, metric: str) -> str:
        """Describe the scheduler in a line for people."""


MAX_EPOCHS = 2**31
"""Upper bound of any number of epochs. ASHA without ``max_t`` has its rungs up to here."""
FACTORS = (1.01, 1e6)
"""The smallest and the largest reduction factor. Near 1 the rungs lie so close that their number explodes."""

SCHEDULERS: Registry[Any] = Registry("scheduler")


@SCHEDULERS.register("fifo")
@dataclass(frozen=True, kw_only=True)
class Fifo:
    """Every trial runs to its end."""

    @property
    def stops(self) -> bool:
        """False: no trial is stopped."""
        return False

    @property
    def grace_period(self) -> int:
        """0, which has no effect: no trial is stopped."""
        return 0

    def end(self, epochs: int) -> int:
        """Return ``epochs``: the scheduler sets no limit."""
        return epochs

    def describe(self, metric: str) -> str:
        """Describe the scheduler in a line for people."""
        return "fifo: every trial runs to its end"


@SCHEDULERS.register("asha", aliases=("async_hyperband", "asynchyperband"))
@dataclass(frozen=True, kw_only=True)
class Asha:
    """Asynchronous successive halving (Li et al., arXiv 1810.05934), as Ray's ``AsyncHyperBandScheduler``.

    Args:
        grace_period: no trial stops before this epoch.
        reduction_factor: at each rung, ``grace_period * reduction_factor ** i`` epochs, the best
            ``1 / reduction_factor`` of the trials go on.
        max_t: last epoch of every trial, even of the best; null: the trial's own number of epochs, so that survivors
            finish.
    """

    grace_period: int = 1
    reduction_factor: float = 4
    max_t: int | None = None

    def __post_init__(self) -> None:
        _within("grace_period", self.grace_period, 1, MAX_EPOCHS)
        low, high = FACTORS
        if not low <= self.reduction_factor <= high:
            raise ConfigError(
                f"reduction_factor: found {self.reduction_factor!r}, allowed: a number from {low:g} to {high:g}"
            )
        if self.max_t is not None and not self.grace_period <= self.max_t <= MAX_EPOCHS:
            raise ConfigError(
                f"max_t: found {self.max_t}, allowed: null or at least the grace_period of {self.grace_period} and at "
                f"most {MAX_EPOCHS}"
            )

    @property
    def stops(self) -> bool:
        """True."""
        return True

    def end(self, epochs: int) -> int:
        """Return ``max_t`` or ``epochs``, whichever is smaller."""
        return min(epochs, self.max_t or epochs)

    def describe(self, metric: str) -> str:
        """Describe the scheduler in a line for people."""
        rungs = ", ".join(f"{self.grace_period * self.reduction_factor**i:g}" for i in range(3))
        return f"asha: after {rungs}, ... epochs the best 1/{self.reduction_factor:g} by {metric} go on"


@SCHEDULERS.register("median", aliases=("median_stopping_rule", "median_stopping", "medianstopping"))
@dataclass(frozen=True, kw_only=True)
class Median:
    """The median stopping rule (Golovin et al., Google Vizier, KDD 2017), as Ray's ``MedianStoppingRule``.

    A trial is stopped if its best value so far is worse than the median of the others' running means.

    Args:
        grace_period: no trial stops before this epoch, and running means begin here.
        min_samples_required: number of other trials that must have come as far.
    """

    grace_period: int = 1
    min_samples_required: int = 3

    def __post_init__(self) -> None:
        _within("grace_period", self.grace_period, 1, MAX_EPOCHS)
        _within("min_samples_required", self.min_samples_required, 1, MAX_EPOCHS)

    @property
    def stops(self) -> bool:
        """True."""
        return True

    def end(self, epochs: int) -> int:
        """Return ``epochs``: the scheduler sets no limit."""
        return epochs

    def describe(self, metric: str) -> str:
        """Describe the scheduler in a line for people."""
        return (
            f"median: from epoch {self.grace_period} on, who is below the median of at least "
            f"{pluralize(self.min_samples_required, 'other')} by {metric} is stopped"
        )


def _within(key: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{key}: found {value}, allowed: a whole number of at least {low} and at most {high}")


def build(block: Mapping[str, Any]) -> Scheduler:
    """Build the scheduler of a space file's block.

    Raises:
        ConfigError: for an unknown name or parameter, or a value that is not allowed.
    """
    parameters = {key: value for key, value in block.items() if key != "name"}
    scheduler: Scheduler = construct("scheduler", block["name"], SCHEDULERS[block["name"]], parameters)
    return scheduler
