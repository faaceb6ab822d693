"""The schedulers of a space file and their parameters. Imports no Ray.

The rules themselves are in :mod:`mbcl.orchestration.scheduling.early_stopping`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mbcl.errors import ConfigError, pluralize
from mbcl.registry import Registry, construct


class Scheduler:
    """A scheduler block of a space file."""

    stops: ClassVar[bool] = True
    """Whether it can stop a trial early."""
    grace_period: int = 0
    """Number of epochs before which it stops no trial."""

    def end(self, epochs: int) -> int:
        """Return the last epoch of a trial that has ``epochs`` epochs: that number unless the scheduler limits it."""
        return epochs

    def describe(self, metric: str) -> str:
        """Describe the scheduler in a line for people."""
        raise NotImplementedError


MAX_EPOCHS = 2**31
"""Upper bound of any number of epochs. ASHA without ``max_t`` has its rungs up to here."""
FACTORS = (1.01, 1e6)
"""The smallest and the largest reduction factor. Near 1 the rungs lie so close that their number explodes."""

SCHEDULERS: Registry[Any] = Registry("scheduler")


@SCHEDULERS.register("fifo")
@dataclass(frozen=True, kw_only=True)
class Fifo(Scheduler):
    """Every trial runs to its end."""

    stops = False

    def describe(self, metric: str) -> str:
        return "fifo: every trial runs to its end"


@SCHEDULERS.register("asha", aliases=("async_hyperband", "asynchyperband"))
@dataclass(frozen=True, kw_only=True)
class Asha(Scheduler):
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
        _check_epochs("grace_period", self.grace_period)
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

    def end(self, epochs: int) -> int:
        return min(epochs, self.max_t or epochs)

    def describe(self, metric: str) -> str:
        rungs = ", ".join(f"{self.grace_period * self.reduction_factor**i:g}" for i in range(3))
        return f"asha: after {rungs}, ... epochs the best 1/{self.reduction_factor:g} by {metric} go on"


@SCHEDULERS.register("median", aliases=("median_stopping_rule", "median_stopping", "medianstopping"))
@dataclass(frozen=True, kw_only=True)
class Median(Scheduler):
    """The median stopping rule (Golovin et al., Google Vizier, KDD 2017), as Ray's ``MedianStoppingRule``.

    A trial is stopped if its best value so far is worse than the median of the others' running means.

    Args:
        grace_period: no trial stops before this epoch, and running means begin here.
        min_samples_required: number of other trials that must have come as far.
    """

    grace_period: int = 1
    min_samples_required: int = 3

    def __post_init__(self) -> None:
        _check_epochs("grace_period", self.grace_period)
        _check_epochs("min_samples_required", self.min_samples_required)

    def describe(self, metric: str) -> str:
        return (
            f"median: from epoch {self.grace_period} on, who is below the median of at least "
            f"{pluralize(self.min_samples_required, 'other')} by {metric} is stopped"
        )


def _check_epochs(key: str, value: int) -> None:
    if not 1 <= value <= MAX_EPOCHS:
        raise ConfigError(f"{key}: found {value}, allowed: a whole number of at least 1 and at most {MAX_EPOCHS}")


def build(block: Mapping[str, Any]) -> Scheduler:
    """Build the scheduler of a space file's block.

    Raises:
        ConfigError: for an unknown name or parameter, or a value that is not allowed.
    """
    parameters = {key: value for key, value in block.items() if key != "name"}
    scheduler: Scheduler = construct("scheduler", block["name"], SCHEDULERS[block["name"]], parameters)
    return scheduler
