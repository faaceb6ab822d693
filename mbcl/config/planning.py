"""The blocks ``embeddings`` and ``planner`` of an experiment: from what, when and where batches are planned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from mbcl.config.base import ConfigModel, PathConfigError
from mbcl.errors import ConfigError


class EmbeddingSource(ConfigModel):
    """The source of the embeddings from which a sampler plans.

    ``source``: ``fresh`` is a forward pass over all samples with the current weights. ``cached`` reuses the embeddings
    that the training steps of earlier epochs computed anyway, so that planning costs no forward pass; the first plan of
    a training is fresh.

    ``refresh``: for plans that are shorter than an epoch (``osgd``). ``round``: each plan has its own embeddings, as
    published. ``epoch``: all plans of an epoch are made at once from one set of embeddings.

    Samplers without embeddings ignore this block, so that one base block serves a grid of samplers.
    """

    source: Literal["fresh", "cached"] = "fresh"
    refresh: Literal["round", "epoch"] = "round"
    mode: Literal["train", "eval"] = "train"
    views: Literal["augmented", "clean"] = "augmented"
    batch_size: int = Field(default=256, ge=1)

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
    pool: Steps = {}
    k: Steps = {}
    quantile: Steps = {}

    def steps(self) -> Iterator[tuple[str, int, Any]]:
        """Yield every step as parameter, epoch and value."""
        for parameter in type(self).model_fields:
            for epoch, value in getattr(self, parameter).items():
                yield parameter, epoch, value

    def at(self, epoch: int) -> dict[str, Any]:
        """Return the scheduled parameters of an epoch; the value of the latest step counts."""
        return {parameter: value for parameter, first, value in self.steps() if first <= epoch}


class Planner(ConfigModel):
    """The place and time of batch planning. Samplers without embeddings ignore this block.

    ``where``: in Ray ``tasks`` or in the training ``worker``. Without Ray, it is always the worker.

    ``overlap``: 0: training waits while a plan is computed. 1: when a plan arrives, the next one is requested from the
    embeddings of that moment and computed during training. The first two plans come from the same embeddings.

    ``warmup_epochs``: the number of first epochs that train on the batches of ``shuffle`` with the same seed, without
    embeddings. After them, every ``every``-th epoch is planned; the epochs in between repeat the batches of the last
    planned epoch.

    ``schedule``: step functions over the epochs, counted from 0, for ``mix``, ``pool``, ``k`` and ``quantile``. If a
    sampler with embeddings lacks a parameter, its schedule is not used, with a note, because a grid may hold samplers
    with and without it.
    """

    where: Literal["tasks", "worker"] = "tasks"
    overlap: Annotated[Literal[0, 1], BeforeValidator(_refuse_bool)] = 0
    warmup_epochs: int = Field(default=0, ge=0)
    every: int = Field(default=1, ge=1)
    schedule: PlannerSchedule = PlannerSchedule()

    def planned_in(self, epoch: int) -> int | None:
        """Return the epoch whose plans an epoch trains on, itself or an earlier one; None in the warm-up.

        Example:
            >>> [Planner(warmup_epochs=1, every=2).planned_in(epoch) for epoch in range(5)]
            [None, 1, 1, 3, 3]
        """
        since = epoch - self.warmup_epochs
        return epoch - since % self.every if since >= 0 else None
