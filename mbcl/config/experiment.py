"""The configuration of one experiment: pretraining of an encoder on a sampler's batches, then its evaluation."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from mbcl.config.base import Component, ComponentOf, ConfigModel, PathConfigError, read_yaml, validate_parameters
from mbcl.config.evaluation import Evaluation
from mbcl.data import DATASETS
from mbcl.data.datasets.request import LARGEST_SIZE, LEAST_SIZE
from mbcl.errors import ConfigError, pluralize
from mbcl.models import ENCODERS
from mbcl.models.activation import Activation
from mbcl.objectives import OBJECTIVES, Objective, StatefulObjective
from mbcl.objectives import build as build_objective
from mbcl.optim import OPTIMIZERS
from mbcl.optim import build as build_optimizer
from mbcl.plugins import load_plugins, record_of
from mbcl.samplers import OSGD, SAMPLERS, Sampler
from mbcl.samplers import build as build_sampler


class Data(ConfigModel):
    """The data set and its splits.

    ``verify``: whether files that are not official (checksums, counts), or have changed since they were packed, cause a
    warning (``warn``) or an error (``strict``).
    """

    name: str = "digits"
    dir: str | None = None
    image_size: int | None = Field(default=None, ge=LEAST_SIZE, le=LARGEST_SIZE)
    max_samples: int | None = Field(default=None, ge=2)
    validation: float = Field(default=0.1, gt=0, lt=1)
    download: bool = False
    verify: Literal["warn", "strict"] = "warn"

    @model_validator(mode="after")
    def _known(self) -> Data:
        DATASETS.canonical(self.name)
        return self


class Projector(ConfigModel):
    """The head from features to projections (published: 2 layers, 2048, 128). Null ``activation``: the encoder's."""

    layers: int = Field(default=2, ge=1, le=4)
    hidden: int = Field(default=2048, ge=1)
    dim: int = Field(default=128, ge=2)
    activation: Activation | None = None


class Schedule(ConfigModel):
    """The learning-rate schedule over the epochs."""

    warmup_epochs: float = Field(default=10, ge=0)
    scale_lr: Literal["sqrt", "linear", "none"] = "sqrt"


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

    ``schedule``: step functions over the epochs, counted from 0, for ``mix``, ``pool`` and ``k``. If a sampler with
    embeddings lacks a parameter, its schedule is not used, with a note, because a grid may hold samplers with and
    without it.
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


Precision = Literal["float32", "float64", "bf16", "fp16"]


class Accumulation(ConfigModel):
    """Gradient accumulation: the batch is processed in chunks, to save memory.

    ``cached``: GradCache, two passes over the chunks; loss, batch norms and gradient are those of the whole batch.
    ``plain``: the mean of the chunks' own losses, which has fewer negatives and is another objective; the published
    option.

    ``chunk_size`` counts samples of the global batch, like ``train.batch_size``.
    """

    mode: Literal["none", "cached", "plain"] = "none"
    chunk_size: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _chunks_where_needed(self) -> Accumulation:
        if self.mode == "none" and self.chunk_size is not None:
            raise PathConfigError("chunk_size", f"not used with mode none, found {self.chunk_size}")
        if self.mode != "none" and self.chunk_size is None:
            raise PathConfigError("chunk_size", f"mode {self.mode} needs the samples of a chunk, found null")
        return self


class Train(ConfigModel):
    """Duration, batch size, checkpoints and numerics of the training."""

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=32, ge=2)
    accumulation: Accumulation = Accumulation()
    eval_every: int = Field(default=1, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    precision: Precision = "float32"
    channels_last: Literal["auto", True, False] = "auto"
    compile: bool = False
    sync_batchnorm: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights, gradients, optimiser state and the model's input views; autocast does not change it."""
        return torch.float64 if self.precision == "float64" else torch.float32

    @model_validator(mode="after")
    def _options_fit(self) -> Train:
        if (size := self.accumulation.chunk_size) is not None and self.batch_size % size:
            message = f"found {size}, which does not divide batch_size {self.batch_size}"
            raise PathConfigError("accumulation.chunk_size", message)
        if self.accumulation.mode == "cached":
            if self.compile:
                raise PathConfigError("compile", "found true, which does not go with cached accumulation")
            if not self.sync_batchnorm:
                message = "found false, but cached accumulation normalises over the whole batch"
                raise PathConfigError("sync_batchnorm", message)
        return self

    def check_workers(self, workers: int) -> None:
        """Refuse a number of workers that does not divide a batch, or a chunk of it, evenly.

        Raises:
            ConfigError: names the key and the numbers.
        """
        for key, size in (("batch_size", self.batch_size), ("accumulation.chunk_size", self.accumulation.chunk_size)):
            if size is not None and size % workers:
                raise ConfigError(f"train.{key}: {size} is not divisible by {workers} workers")


def _default(name: str) -> Any:
    return Field(default={"name": name}, validate_default=True)


class ExperimentModel(ConfigModel):
    """Base class of experiments.

    ``plugins``: Python files that register components. The reader of a configuration loads them before its validation.
    """

    plugins: list[dict[str, str]] = []

    @model_validator(mode="before")
    @classmethod
    def _plugins_are_loaded(cls, content: Any) -> Any:
        """Check the plugins first: without them, each of their names would be unknown."""
        if not isinstance(content, dict) or not isinstance(content.get("plugins"), list):
            return content
        try:
            return {**content, "plugins": [record_of(entry) for entry in content["plugins"]]}
        except ConfigError as error:
            raise PathConfigError("plugins", str(error)) from error

    @model_serializer(mode="wrap")
    def _without_empty_plugins(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = dump(self)
        if not content.get("plugins"):
            content.pop("plugins", None)
        return content

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Load the plugins in a process that receives the experiment, too: its registries lack them."""
        load_plugins(state["__dict__"]["plugins"])
        super().__setstate__(state)

    def resolved(self) -> dict[str, Any]:
        """Return the experiment as plain data, with all defaults."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """8 hexadecimal digits that identify the resolved configuration, including its seed."""
        return hashlib.blake2b(json.dumps(self.resolved(), sort_keys=True).encode(), digest_size=4).hexdigest()


class Experiment(ExperimentModel):
    """One experiment. ``mbcl train --config`` reads only this block."""

    seed: int = Field(default=0, ge=0)
    data: Data = Data()
    encoder: Annotated[Component, ComponentOf(ENCODERS, "in_channels", "architecture")] = _default("resnet_small")
    projector: Projector = Projector()
    objective: Annotated[Component, ComponentOf(OBJECTIVES, "num_samples")] = _default("simclr")
    sampler: Annotated[Component, ComponentOf(SAMPLERS, "batch_size")] = _default("shuffle")
    optimizer: Annotated[Component, ComponentOf(OPTIMIZERS, "params")] = _default("lars")
    schedule: Schedule = Schedule()
    embeddings: EmbeddingSource = EmbeddingSource()
    planner: Planner = Planner()
    train: Train = Train()
    evaluation: Evaluation = Evaluation()
    track: list[Literal["tensorboard", "wandb"]] = ["tensorboard"]

    @model_validator(mode="before")
    @classmethod
    def _is_a_pretraining(cls, content: Any) -> Any:
        if isinstance(content, dict) and "synthetic" in content:
            message = "a synthetic study pretrains nothing; `mbcl synthetic` runs one, run_ray.py a space of them"
            raise PathConfigError("synthetic", message)
        return content

    @model_validator(mode="after")
    def _parts_can_be_built(self) -> Experiment:
        """Build each component, which runs its range checks. Encoders need the data and are built in the engine."""
        for key, build in (
            ("sampler", lambda: self._sampler_with(self.sampler.parameters)),
            ("objective", self.build_objective),
            ("optimizer", lambda: self.build_optimizer([torch.nn.Parameter(torch.zeros(1))])),
        ):
            try:
                build()
            except ConfigError as error:
                raise PathConfigError(key, str(error)) from error
        self._check_schedule()
        for sampler in self.samplers().values():
            if self.embeddings.source == "cached" and sampler.needs_embeddings and not sampler.covers_all:
                raise PathConfigError(
                    "embeddings.source",
                    f"found cached, but {sampler.name} trains on a part of the samples, so the others' embeddings "
                    f"would never be renewed; allowed: fresh",
                )
        return self

    def _check_schedule(self) -> None:
        """Refuse a scheduled value that the sampler refuses; the error names the step."""
        provided = frozenset({"batch_size"})
        for parameter, epoch, value in self.planner.schedule.steps():
            if parameter not in self.sampler.parameters:
                continue  # not used; a note says so when the data are loaded
            changed = {**self.sampler.parameters, parameter: value}
            try:
                validate_parameters(SAMPLERS[self.sampler.name], changed, provided)
                self._sampler_with(changed)
            except ConfigError as error:
                raise PathConfigError(f"planner.schedule.{parameter}.{epoch}", str(error)) from error

    def unused_planning(self) -> list[str]:
        """Return a note for each setting of ``planner`` that a sampler with embeddings will not use."""
        if not self.build_sampler().needs_embeddings:
            return []
        epochs, planner = self.train.epochs, self.planner
        num_epochs = pluralize(epochs, "epoch")
        if planner.warmup_epochs >= epochs:
            return [
                f"planner.warmup_epochs {planner.warmup_epochs} leaves none of the {num_epochs}, so nothing is "
                f"planned; allowed for a planned epoch: at most {epochs - 1}"
            ]
        schedulable = sorted(set(PlannerSchedule.model_fields) & set(self.sampler.parameters))
        scheduled = dict.fromkeys(parameter for parameter, _, _ in planner.schedule.steps())
        return [
            f"sampler {self.sampler.name!r} has no parameter {parameter!r}, so planner.schedule.{parameter} is not "
            f"used; it can schedule: {', '.join(schedulable)}"
            for parameter in scheduled
            if parameter not in schedulable
        ] + [
            f"planner.schedule.{parameter}.{epoch}: there {'is' if epochs == 1 else 'are'} {num_epochs}, 0 to "
            f"{epochs - 1}, so it is not used"
            for parameter, epoch, _ in planner.schedule.steps()
            if parameter in schedulable and epoch >= epochs
        ]

    def samplers(self) -> dict[int, Sampler]:
        """Build the samplers of the schedule, keyed by the planned epoch from which each one is used.

        The first key is the first planned epoch.
        """
        end, every = self.train.epochs, self.planner.every
        first = min(self.planner.warmup_epochs, end - 1)
        # A step takes effect in the next planned epoch; planned are first, first + every, first + 2 * every, ...
        steps = {
            first - (first - epoch) // every * every for _, epoch, _ in self.planner.schedule.steps() if epoch > first
        }
        return {epoch: self.build_sampler(epoch) for epoch in sorted({first} | steps) if epoch < end}

    def build_sampler(self, epoch: int = 0) -> Sampler:
        """Build the sampler for an epoch; a sampler that scores with the objective gets this experiment's."""
        parameters = self.sampler.parameters
        return self._sampler_with(
            parameters | {key: value for key, value in self.planner.schedule.at(epoch).items() if key in parameters}
        )

    def _sampler_with(self, parameters: dict[str, Any]) -> Sampler:
        sampler = build_sampler(self.sampler.name, batch_size=self.train.batch_size, **parameters)
        if isinstance(sampler, OSGD) and sampler.score == "objective":
            objective = self.build_objective()
            if isinstance(objective, StatefulObjective):
                raise ConfigError(
                    f"score: found 'objective', but {self.objective.name} has state per sample; allowed: ntxent"
                )
            return sampler.with_objective(objective)
        return sampler

    def build_objective(self, num_samples: int = 1) -> Objective:
        """Build the objective of this experiment; N is for objectives with state per sample."""
        needs_num_samples = "num_samples" in inspect.signature(OBJECTIVES[self.objective.name]).parameters
        provided = {"num_samples": num_samples} if needs_num_samples else {}
        return build_objective(self.objective.name, **provided, **self.objective.parameters)

    def build_optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Build the optimiser of this experiment for some parameters, at its unscaled learning rate."""
        return build_optimizer(self.optimizer.name, parameters, **self.optimizer.parameters)


def add_plugins(content: dict[str, Any], files: Sequence[str] = ()) -> None:
    """Load the plugins of an experiment's block and of further files, which are added to the block in place.

    Raises:
        ConfigError: if one cannot be loaded.
    """
    given = content.get("plugins", [])
    load_plugins(given)
    load_plugins(list(files))
    if files:
        by_name: dict[str, Any] = {}
        for entry in (*given, *files):
            by_name.setdefault(Path(record_of(entry)["file"]).stem, entry)
        content["plugins"] = list(by_name.values())


def read_experiment(path: str) -> dict[str, Any]:
    """Read the experiment block of a file: the ``experiment`` key of a space file, otherwise the whole file.

    Raises:
        ConfigError: if the file cannot be read or is not a mapping.
    """
    content = read_yaml(path)
    block = content.get("experiment", content)
    if not isinstance(block, dict):
        raise ConfigError(f"{path}: experiment: found {type(block).__name__}, expected a block")
    return block
