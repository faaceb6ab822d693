"""The options of ``mbcl bench planner``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mbcl.bench.embeddings import MAKERS, DataSet
from mbcl.bench.measure import check_device
from mbcl.config.sampler_spec import Spec, parse_spec
from mbcl.errors import ConfigError, nearest
from mbcl.functional import check_count, check_temperature


@dataclass(frozen=True, kw_only=True)
class PlannerBenchSettings:
    """The options of ``mbcl bench planner``; its ``--help`` describes them.

    ``pools`` is the maximum for each data set and seed; a small data set has fewer.
    """

    data_sets: Sequence[str]
    samplers: Sequence[str]
    seeds: int
    batch_size: int
    pool: int
    pools: int
    temperature: float
    whole: int | None
    growth: Sequence[int]
    data_dir: str | None
    device: str
    out: str | None
    overwrite: bool = False

    def data_set(self, name: str, num_samples: int, seed: int) -> DataSet:
        """Make the data set of this name, which may have fewer or more than ``num_samples`` samples.

        Raises:
            DataError: if its files are missing or damaged.
        """
        return MAKERS[name](num_samples, self.data_dir, seed).to(self.device)

    def check(self) -> list[Spec]:
        """Check all options before the first measurement, and return the samplers' specifications.

        Raises:
            ConfigError: if a value is not allowed; one line with the value and what is allowed.
        """
        for name in self.data_sets:
            if name not in MAKERS:
                raise ConfigError(f"--data-sets: unknown {name!r}; {nearest(name, MAKERS)}")
        for option, values in (("--data-sets", self.data_sets), ("--samplers", self.samplers)):
            if len(set(values)) < len(values):
                raise ConfigError(f"{option}: each once, found {' '.join(values)}")
        for option, value in (("--seeds", self.seeds), ("--pools", self.pools)):
            check_count(option, value)
        check_count("--batch-size", self.batch_size, least=2)
        check_temperature(self.temperature)
        if self.pool % self.batch_size or self.pool < 2 * self.batch_size:
            allowed = f"a multiple of the batch size {self.batch_size}, two batches at least"
            raise ConfigError(f"--pool must be {allowed}, found {self.pool}")
        whole = [] if self.whole is None else [self.whole]
        for option, sizes in (("--whole", whole), ("--growth", self.growth)):
            for size in sizes:
                if size < self.pool:
                    raise ConfigError(f"{option} must be at least --pool, {self.pool}, found {size}")
        check_device(self.device)
        specs = [parse_spec(text) for text in self.samplers]
        for spec in specs:
            spec.in_pool(self.batch_size, self.pool).check(self.pool)
            for size in (*whole, *self.growth):
                spec.whole(self.batch_size).check(size)
        return specs
