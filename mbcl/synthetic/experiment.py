"""The configuration of a synthetic trial: an ``experiment`` block with a ``synthetic`` block."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from mbcl.config.base import Component, ComponentOf, ConfigModel, PathConfigError, validate_parameters
from mbcl.config.experiment import Experiment, ExperimentModel
from mbcl.errors import ConfigError
from mbcl.samplers import SAMPLERS
from mbcl.synthetic.selections import Method, fitting, method_of
from mbcl.synthetic.settings import MAX_COORDINATES, MAX_POINTS, MAX_SAMPLES, Accumulate, Settings, num_points

# No defaults (fill=False): they depend on N and B, which a sweep may change after the sampler is read.
GivenSampler = Annotated[Component, ComponentOf(SAMPLERS, "batch_size", fill=False)]


class Synthetic(ConfigModel):
    """N points in ``dim`` dimensions (null: 2 N), moved by SGD on batches of B; see :class:`Settings`."""

    n: int = Field(default=Settings.n, ge=2, le=MAX_SAMPLES)
    """Samples, N."""
    dim: int | None = Field(default=None, ge=2)
    """Dimensions; null: 2 N."""
    batch_size: int = Field(default=2, ge=2)
    """Samples of a batch, at most `n`."""
    steps: int = Field(default=Settings.steps, ge=1)
    """Steps of the study."""
    lr: float = Field(default=Settings.lr, gt=0)
    """Learning rate of SGD."""
    accumulate: Accumulate | None = None
    """One update a step, on the sum or mean of its batches' losses; null: one update a batch."""
    equal_init: bool = Settings.equal_init
    """Both views of a sample start at the same point."""
    log_every: int = Field(default=Settings.log_every, ge=1)
    """Steps between two points of a curve."""
    published_points: bool = Settings.published_points
    """Log `osgd_exhaustive` after the first update of a step, as published."""
    restarts: int = Field(default=Settings.restarts, ge=1)
    """Where no optimum is known: random starts from which the least loss is sought."""

    @model_validator(mode="after")
    def _a_batch_can_be_filled(self) -> Synthetic:
        if self.batch_size > self.n:
            raise PathConfigError("batch_size", f"found {self.batch_size}, which is above n {self.n}")
        if self.dim is not None and self.dim > (max_dim := MAX_COORDINATES // (2 * self.n)):
            raise PathConfigError("dim", f"found {self.dim}, allowed with n {self.n} are at most {max_dim:,}")
        if num_points(self.steps, self.log_every) > MAX_POINTS:
            problem = f"with {self.steps} steps a curve has too many points; allowed are at most {MAX_POINTS:,}"
            raise PathConfigError("log_every", f"found {self.log_every}: {problem}")
        return self


class SyntheticExperiment(ExperimentModel):
    """A synthetic study of one sampler with one seed. Its loss is ``clip`` without temperature."""

    seed: int = Field(default=0, ge=0)
    """All randomness derives from it; a space has `seeds`."""
    sampler: GivenSampler = Field(default={"name": "shuffle"}, validate_default=True)
    """Which samples share a batch."""
    synthetic: Synthetic = Synthetic()
    """The points and their optimization."""

    @model_validator(mode="before")
    @classmethod
    def _pretrains_nothing(cls, content: Any) -> Any:
        for key in content if isinstance(content, dict) else ():
            if key in Experiment.model_fields and key not in cls.model_fields:
                raise PathConfigError(key, "a synthetic study does not use it; beside synthetic it has a sampler alone")
        return content

    @property
    def objective(self) -> Component:
        """The minimised objective: CLIP at temperature 1."""
        return Component(name="clip", temperature=1.0)

    def resolved(self) -> dict[str, Any]:
        """Return the experiment as plain data, with the defaults that follow from N and B."""
        name, block = self.sampler.name, self.synthetic
        parameters = {**fitting(name, block.batch_size, block.n), **self.sampler.parameters}
        filled = validate_parameters(SAMPLERS[name], parameters, frozenset({"batch_size"}))
        content = self.model_dump(mode="json")
        content["sampler"] = {"name": name, **filled}
        content["synthetic"]["dim"] = self.settings.dim
        return content

    @property
    def settings(self) -> Settings:
        """The settings with which ``mbcl synthetic`` runs the same study."""
        given = self.synthetic.model_dump(exclude={"batch_size", "dim"})
        dim = 2 * self.synthetic.n if self.synthetic.dim is None else self.synthetic.dim
        sizes = (self.synthetic.batch_size,)
        return Settings(**given, dim=dim, batch_sizes=sizes, samplers=(self.sampler.name,), seeds=(self.seed,))

    def build_method(self) -> Method:
        """Build the method: the sampler with the defaults that follow from N and B.

        Raises:
            ConfigError: if the sampler does not fit N and B, for example because C(N, B) is too large.
        """
        block = self.synthetic
        try:
            return method_of(self.sampler.name, self.sampler.parameters, block.batch_size, block.n)
        except ConfigError as error:
            raise ConfigError(f"sampler: {error}") from error
