"""The configuration of one experiment: pretraining of an encoder on a sampler's batches, then its evaluation."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from mbcl.config.base import Component, ComponentOf, ConfigModel, PathConfigError, validate_parameters
from mbcl.config.data import Data
from mbcl.config.evaluation import Evaluation
from mbcl.config.planning import EmbeddingSource, Planner, PlannerSchedule
from mbcl.config.train import Schedule, Train
from mbcl.config.yaml_reader import read_yaml
from mbcl.errors import ConfigError, pluralize
from mbcl.models import ENCODERS, pretrained
from mbcl.models.activation import Activation
from mbcl.objectives import OBJECTIVES, Objective, StatefulObjective
from mbcl.objectives import build as build_objective
from mbcl.optim import OPTIMIZERS
from mbcl.optim import build as build_optimizer
from mbcl.plugins import load_plugins, record_of
from mbcl.samplers import OSGD, SAMPLERS, Sampler
from mbcl.samplers import build as build_sampler


class Projector(ConfigModel):
    """The head from features to projections (published: 2 layers, 2048, 128)."""

    layers: int = Field(default=2, ge=0, le=4)
    """Linear layers; 0: no head, the features are the projections."""
    hidden: int = Field(default=2048, ge=1)
    """Width of all layers but the last."""
    dim: int = Field(default=128, ge=2)
    """Dimension of the projections."""
    activation: Activation | None = None
    """Null: the encoder's."""


def _default(name: str) -> Any:
    return Field(default={"name": name}, validate_default=True)


PLUGINS_SCHEMA = {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "object"}]}}


class ExperimentModel(ConfigModel):
    """Base class of experiments. The reader of a configuration loads the plugins before its validation."""

    plugins: Annotated[list[dict[str, str]], WithJsonSchema(PLUGINS_SCHEMA)] = []
    """Python files that register samplers, objectives, encoders, optimizers or data sets of your own."""

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
        """8 hexadecimal digits that identify the experiment, including its seed; see :func:`identity`."""
        text = json.dumps(identity(self.resolved()), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


PLACES = ("data.dir", "data.apart", "data.together")
"""Keys that say where data are. The content of the data is recorded with the results, and compared with them."""


UNCOUNTED = (*PLACES, "train.threads")
"""Keys that :func:`identity` passes over."""


def identity(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved experiment, as plain data, without what an experiment is no other one for.

    These are the places of its data, which may be moved, and the threads of its processes.
    """
    content: dict[str, Any] = copy.deepcopy(dict(resolved))
    for place in PLACES:
        name, _, key = place.partition(".")
        block = content.get(name)
        if isinstance(block, dict) and block.get(key) not in (None, "labels"):
            block[key] = None if key == "dir" else "file"
    if isinstance(content.get("train"), dict):
        content["train"].pop("threads", None)
    return content


class Experiment(ExperimentModel):
    """One experiment. ``mbcl train --config`` reads only this block."""

    seed: int = Field(default=0, ge=0)
    """All randomness derives from it; a space has `seeds`."""
    data: Data = Data()
    """The data set and its splits."""
    encoder: Annotated[
        Component, ComponentOf(ENCODERS, "in_channels", "in_features", "architecture", shared=pretrained)
    ] = _default("resnet_small")
    """The network that is pretrained, without a classifier: `resnet_small`, a classification architecture of
    torchvision, `pair_mlp` for pairs, or your own."""
    projector: Projector = Projector()
    """The head from features to projections."""
    objective: Annotated[Component, ComponentOf(OBJECTIVES, "num_samples")] = _default("simclr")
    """The contrastive loss."""
    sampler: Annotated[Component, ComponentOf(SAMPLERS, "batch_size")] = _default("shuffle")
    """Which samples share a batch."""
    optimizer: Annotated[Component, ComponentOf(OPTIMIZERS, "params")] = _default("lars")
    """The optimizer."""
    schedule: Schedule = Schedule()
    """The learning rate over the epochs."""
    embeddings: EmbeddingSource = EmbeddingSource()
    """How the embeddings are made from which a sampler plans."""
    planner: Planner = Planner()
    """When and where batches are planned."""
    train: Train = Train()
    """Duration, batch size, checkpoints and numerics."""
    evaluation: Evaluation = Evaluation()
    """The measurements after training, and those of its validations."""
    track: list[Literal["tensorboard", "wandb"]] = ["tensorboard"]
    """Where epochs are logged besides `metrics.jsonl`; `wandb` needs the extra `mbcl[wandb]`."""

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

    A study's own ``space.yaml`` is the space that the study ran.

    Raises:
        ConfigError: if the file cannot be read or is not a mapping.
    """
    content = read_yaml(path)
    ran = content.get("resolved") if "given" in content else None
    content = ran if isinstance(ran, dict) else content
    block = content.get("experiment", content)
    if not isinstance(block, dict):
        raise ConfigError(f"{path}: experiment: found {type(block).__name__}, expected a block")
    return block
