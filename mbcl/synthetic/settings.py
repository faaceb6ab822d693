"""The settings of a synthetic study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mbcl.errors import ConfigError, pluralize
from mbcl.functional import check_choice, check_count, check_number

Accumulate = Literal["sum", "mean"]

MAX_SAMPLES = 10_000
"""Maximum N: the loss of all samples compares every pair, which needs 0.8 GB of cosines."""
MAX_SEEDS = 10_000
MAX_COORDINATES = 2**27
"""Maximum number of coordinates of all points of all runs, 1 GiB."""
MAX_POINTS = 1_000_000
"""Maximum number of points of all curves; each is a row of a table and an element of several arrays."""


def num_points(steps: int, log_every: int) -> int:
    """Return an upper bound of the number of points of a curve, which is at most one too many."""
    return 1 + -(-steps // log_every)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a synthetic study: the options that ``mbcl synthetic --help`` explains.

    Batch sizes, samplers and seeds are distinct; every seed is a run. Without ``accumulate``, every batch is an update.
    The last step is a point of a curve, too.

    Raises:
        ConfigError: names the option, the value found and the values allowed.
    """

    n: int = 8
    dim: int = 16
    batch_sizes: tuple[int, ...] = (2,)
    steps: int = 2000
    samplers: tuple[str, ...] = ("fixed", "shuffle", "full", "all_batches", "osgd_exhaustive", "spectral")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    lr: float = 0.5
    accumulate: Accumulate | None = None
    equal_init: bool = False
    log_every: int = 100
    published_points: bool = False
    restarts: int = 16

    def __post_init__(self) -> None:
        check_count("--n", self.n, least=2)
        if self.n > MAX_SAMPLES:
            raise ConfigError(f"--n {self.n}: every pair of samples is compared; allowed are at most {MAX_SAMPLES:,}")
        for name in ("dim", "steps", "log_every", "restarts"):
            check_count(f"--{name.replace('_', '-')}", getattr(self, name))
        check_number("--lr", self.lr, above=0.0)
        if self.accumulate is not None:
            check_choice("--accumulate", self.accumulate, ("sum", "mean"))
        for option, values, least in (("--batch-size", self.batch_sizes, 2), ("--seeds", self.seeds, 0)):
            if not values:
                raise ConfigError(f"{option}: at least one is needed")
            for value in values:
                check_count(option, value, least=least)
            if len(set(values)) < len(values):
                duplicate = next(value for value in values if values.count(value) > 1)
                raise ConfigError(f"{option}: {duplicate} is given twice")
        if not self.samplers:
            raise ConfigError("--samplers: at least one is needed")
        for batch_size in self.batch_sizes:
            if batch_size > self.n:
                raise ConfigError(f"--batch-size {batch_size}: above --n {self.n}")
        runs = len(self.seeds) * len(self.samplers) * len(self.batch_sizes)
        if (count := 2 * self.n * self.dim * runs) > MAX_COORDINATES:
            raise ConfigError(
                f"--n {self.n}, --dim {self.dim}: the two views of {pluralize(runs, 'run')} have {count:,} "
                f"coordinates; allowed are at most {MAX_COORDINATES:,}"
            )
        if (count := runs * num_points(self.steps, self.log_every)) > MAX_POINTS:
            raise ConfigError(
                f"--steps {self.steps}, --log-every {self.log_every}: the curves of {pluralize(runs, 'run')} have "
                f"about {count:,} points; allowed are at most {MAX_POINTS:,}"
            )

    def logged(self) -> list[int]:
        """Return the steps after which curves have a point.

        Example:
            >>> Settings(steps=250).logged()
            [0, 100, 200, 249]
        """
        return sorted({*range(0, self.steps, self.log_every), self.steps - 1})
