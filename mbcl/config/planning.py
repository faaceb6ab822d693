"""The blocks ``embeddings`` and ``planner`` of an experiment: from what, when and where batches are planned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from mbcl.config.base import ConfigModel, PathConfigError
from mbcl.errors import ConfigError


class EmbeddingSource(ConfigModel):
    """How the embeddings are made from which a sampler plans.

    Samplers without embeddings ignore this block, so that one base block serves a grid of samplers.
    """

    source: Literal["fresh", "cached"] = "fresh"
    """`fresh`: a forward pass over all samples with the current weights. `cached`: the embeddings that the training
    steps of earlier epochs computed anyway, so that planning costs no forward pass; the first plan of a training is
    fresh. It needs `mode: train`, `views: augmented`, and a sampler that visits every sample."""
    refresh: Literal["round", "epoch"] = "round"
    """For plans that are shorter than an epoch (`osgd`). `round`: each plan has its own embeddings, as published.
    `epoch`: all plans of an epoch are made at once from one set of embeddings."""
    mode: Literal["train", "eval"] = "train"
    """Whether batch norm uses the batch's statistics or the running ones; with `eval` these begin as those of the views
    of epoch 0."""
    views: Literal["augmented", "clean"] = "augmented"
    """The views that are trained on next, or the images as they are."""
    batch_size: int = Field(default=256, ge=1)
    """Images of a forward pass."""

    @model_validator(mode="after")
    def _cached_is_what_training_made(self) -> EmbeddingSource:
        for key, value, allowed in (("mode", self.mode, "train"), ("views", self.views, "augmented")):
            if self.source == "cached" and value != allowed:
                message = f"cached embeddings are those of training, found {value!r}, allowed: {allowed}"
                raise PathConfigError(key, message)
        return self


def _by_epoch(steps: Any) -> Any:
    """Convert the keys to sorted integer epochs: keys from YAML are numbers, from JSON and ``--set`` strings."""
    if not isinstance(steps, dict):
        raise ConfigError(f"expected values by epoch, such as {{0: 0.5, 20: 0.0}}, found {steps!r}")
    by_epoch: dict[int, Any] = {}
    for key, value in steps.items():
        if not (str(key).isascii() and str(key).isdigit()):
            raise ConfigError(f"found the epoch {key!r}, allowed are whole numbers from 0")
        if int(key) in by_epoch:
            raise ConfigError(f"epoch {int(key)} is given twice")
        by_epoch[int(key)] = value
    return dict(sorted(by_epoch.items()))


Steps = Annotated[
    dict[int, Any],
    BeforeValidator(_by_epoch),
    PlainSerializer(lambda steps: {str(epoch): value for epoch, value in steps.items()}),
]
"""A step function from epochs, counted from 0, to values; before its first epoch the sampler's own value holds."""


def _refuse_bool(value: object) -> object:
    """Refuse ``true`` and ``false``, which Python equates with 1 and 0."""
    if isinstance(value, bool):
        raise ConfigError(f"expected 0 or 1, found {str(value).lower()}")
    return value


class PlannerSchedule(ConfigModel):
    """Parameters of the sampler that change over the epochs, such as ``pool: {0: 1280, 50: 5120}``."""

    mix: Steps = {}
    """The share of the places of each batch whose samples are permuted among all batches of the plan, by epoch: 1 is
    random batches, 0 the sampler's own."""
    pool: Steps = {}
    """The samples that are planned together, by epoch."""
    k: Steps = {}
    """`k` of `osgd` and `spectral`, the batches of a pool, by epoch."""
    quantile: Steps = {}
    """`quantile` of `chain`, by epoch."""

    def steps(self) -> Iterator[tuple[str, int, Any]]:
        """Yield every step as parameter, epoch and value."""
        for parameter in type(self).model_fields:
            for epoch, value in getattr(self, parameter).items():
                yield parameter, epoch, value

    def at(self, epoch: int) -> dict[str, Any]:
        """Return the scheduled parameters of an epoch; the value of the latest step counts."""
        return {parameter: value for parameter, first, value in self.steps() if first <= epoch}


class Planner(ConfigModel):
    """When and where batches are planned. Samplers without embeddings ignore this block."""

    where: Literal["tasks", "worker"] = "tasks"
    """Plan pools in parallel Ray tasks, or in the training process: on its GPU where the sampler can. Without Ray, it
    is always the worker."""
    overlap: Annotated[Literal[0, 1], BeforeValidator(_refuse_bool)] = 0
    """0: training waits while a plan is computed. 1: when a plan arrives, the next one is requested from the embeddings
    of that moment and computed during training; the first two plans come from the same embeddings. `plan/age` says how
    old the embeddings of a plan are."""
    warmup_epochs: int = Field(default=0, ge=0)
    """So many first epochs train on the batches of `shuffle` with the same seed, without embeddings."""
    every: int = Field(default=1, ge=1)
    """Make a new plan every so many epochs; the epochs between repeat the batches of the last planned one."""
    schedule: PlannerSchedule = PlannerSchedule()
    """Step functions over the epochs, counted from 0. If a sampler with embeddings lacks a parameter, its schedule is
    not used, with a note, because a grid may hold samplers with and without it."""

    def planned_in(self, epoch: int) -> int | None:
        """Return the epoch whose plans an epoch trains on, itself or an earlier one; None in the warm-up.

        Example:
            >>> [Planner(warmup_epochs=1, every=2).planned_in(epoch) for epoch in range(5)]
            [None, 1, 1, 3, 3]
        """
        since = epoch - self.warmup_epochs
        return epoch - since % self.every if since >= 0 else None
