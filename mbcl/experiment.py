"""The configuration of one experiment: pretrain an encoder on batches that a sampler chose, then evaluate it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import torch
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from mbcl.configuration import PathConfigError, Section, read_yaml, validate_parameters
from mbcl.data import DATASETS
from mbcl.errors import ConfigError
from mbcl.models import ENCODERS
from mbcl.models.activation import Activation
from mbcl.objectives import OBJECTIVES, Objective
from mbcl.objectives import build as build_objective
from mbcl.optim import OPTIMIZERS
from mbcl.optim import build as build_optimizer
from mbcl.registry import Registry
from mbcl.samplers import OSGD, SAMPLERS, Sampler
from mbcl.samplers import build as build_sampler


class Part(dict[str, Any]):
    """A registered part with its parameters: ``{name: spectral, k: 4}``, resolved to canonical name and defaults."""

    @property
    def name(self) -> str:
        """The canonical name of the part."""
        return str(self["name"])

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the part, without its name."""
        return {key: value for key, value in self.items() if key != "name"}


Finder = Callable[[str], tuple[str, Callable[..., Any]]]
"""The canonical name and the class or factory behind a name."""


def _resolver(find: Finder, *provided: str) -> Callable[[Any], Part]:
    """A validator that turns a block with a name into a :class:`Part`.

    Args:
        find: knows the parts of one kind.
        provided: parameters that the experiment fills in itself.
    """

    def resolve(block: Any) -> Part:
        if not isinstance(block, dict) or not isinstance(block.get("name"), str):
            raise ConfigError(f"expected a block with a name, such as {{name: ...}}, found {block!r}")
        name, part = find(block["name"])
        parameters = {key: value for key, value in block.items() if key != "name"}
        return Part(name=name, **validate_parameters(part, parameters, frozenset(provided)))

    return resolve


def _part(find: Finder, *provided: str) -> Any:
    return Annotated[Any, BeforeValidator(_resolver(find, *provided)), PlainSerializer(dict)]


def _in(registry: Registry[Any]) -> Finder:
    return lambda name: (registry.canonical(name), registry[name])


class Data(Section):
    """Which images, and how they are split."""

    name: str = "digits"
    dir: str | None = None
    image_size: int | None = Field(default=None, ge=4, le=1024)
    max_samples: int | None = Field(default=None, ge=2)
    validation: float = Field(default=0.1, gt=0, lt=1)
    download: bool = False

    @model_validator(mode="after")
    def _known(self) -> Data:
        DATASETS.canonical(self.name)
        return self


class Projector(Section):
    """The head between features and projections (published: 2 layers, 2048, 128); the encoder's activation if null."""

    layers: int = Field(default=2, ge=1, le=4)
    hidden: int = Field(default=2048, ge=1)
    dim: int = Field(default=128, ge=2)
    activation: Activation | None = None


class Schedule(Section):
    """The learning rate over the epochs."""

    warmup_epochs: float = Field(default=10, ge=0)
    scale_lr: Literal["sqrt", "linear", "none"] = "sqrt"


class EmbeddingSource(Section):
    """How the embeddings that a sampler plans on are made."""

    source: Literal["fresh"] = "fresh"
    mode: Literal["train", "eval"] = "train"
    views: Literal["augmented", "clean"] = "augmented"
    batch_size: int = Field(default=256, ge=1)


class Planner(Section):
    """Where batch plans are computed: Ray ``tasks``, or the training ``worker``, as always where there is no Ray."""

    where: Literal["tasks", "worker"] = "tasks"
    overlap: Literal[0] = 0


class Train(Section):
    """How long and on how many samples at once."""

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=32, ge=2)
    eval_every: int = Field(default=1, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)


class Evaluation(Section):
    """What is measured once, at the end."""

    split: Literal["test", "validation", "train"] = "test"
    metrics: list[Literal["retrieval"]] = Field(default=["retrieval"], min_length=1)
    similarity: Literal["cosine", "dot"] = "cosine"
    batch_size: int = Field(default=512, ge=1)


if TYPE_CHECKING:
    EncoderPart: TypeAlias = Part
    ObjectivePart: TypeAlias = Part
    SamplerPart: TypeAlias = Part
    OptimizerPart: TypeAlias = Part
else:
    EncoderPart = _part(_in(ENCODERS), "in_channels", "architecture")
    ObjectivePart = _part(_in(OBJECTIVES), "num_samples")
    SamplerPart = _part(_in(SAMPLERS), "batch_size")
    OptimizerPart = _part(_in(OPTIMIZERS), "params")


def _default(name: str) -> Any:
    return Field(default={"name": name}, validate_default=True)


class Experiment(Section):
    """One experiment. ``mbcl train --config`` reads this block alone."""

    seed: int = Field(default=0, ge=0)
    data: Data = Data()
    encoder: EncoderPart = _default("resnet_small")
    projector: Projector = Projector()
    objective: ObjectivePart = _default("simclr")
    sampler: SamplerPart = _default("shuffle")
    optimizer: OptimizerPart = _default("lars")
    schedule: Schedule = Schedule()
    embeddings: EmbeddingSource = EmbeddingSource()
    planner: Planner = Planner()
    train: Train = Train()
    evaluation: Evaluation = Evaluation()
    track: list[Literal["tensorboard", "wandb"]] = ["tensorboard"]

    @model_validator(mode="after")
    def _parts_can_be_built(self) -> Experiment:
        """Range checks belong to the parts: building one runs them. Encoders are built with the data, in the engine."""
        for key, build in (
            ("sampler", self.build_sampler),
            ("objective", self.build_objective),
            ("optimizer", lambda: self.build_optimizer([torch.nn.Parameter(torch.zeros(1))])),
        ):
            try:
                build()
            except ConfigError as error:
                raise PathConfigError(key, str(error)) from error
        return self

    def build_sampler(self) -> Sampler:
        """The sampler of this experiment; one that scores with the objective is given it."""
        sampler = build_sampler(self.sampler.name, batch_size=self.train.batch_size, **self.sampler.parameters)
        if isinstance(sampler, OSGD) and sampler.score == "objective":
            return sampler.with_objective(self.build_objective())
        return sampler

    def build_objective(self) -> Objective:
        """The objective of this experiment."""
        return build_objective(self.objective.name, **self.objective.parameters)

    def build_optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of this experiment for some parameters, at its unscaled learning rate."""
        return build_optimizer(self.optimizer.name, parameters, **self.optimizer.parameters)

    @property
    def digest(self) -> str:
        """8 hexadecimal digits that name the resolved configuration with its seed."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def read_experiment(path: str) -> dict[str, Any]:
    """The experiment's block of a file: its ``experiment`` key if it is a space file, else the whole file.

    Raises:
        ConfigError: if the file cannot be read or is not a mapping.
    """
    content = read_yaml(path)
    block = content.get("experiment", content)
    if not isinstance(block, dict):
        raise ConfigError(f"{path}: experiment: found {type(block).__name__}, expected a block")
    return block
