"""What an experiment needs before the first step: its data, split, and the facts that follow from their sizes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from mbcl.data import ImageSet, clean_views, load, split_validation
from mbcl.errors import ConfigError
from mbcl.experiment import Data, Experiment
from mbcl.models import ContrastiveModel
from mbcl.models import build as build_model
from mbcl.samplers import Sampler


@dataclass(frozen=True)
class SplitData:
    """Train, validation and test images; training positions are 0..N-1."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class Facts:
    """What the data's sizes decide about an experiment; ``plan_length`` is that of its first planned epoch."""

    num_train: int
    num_validation: int
    num_test: int
    steps_per_epoch: int
    plan_length: int


def load_data(data: Data, *, seed: int) -> SplitData:
    """Read the data set and take the validation split off the training images.

    Raises:
        DataError: if files are missing or damaged.
    """
    try:
        splits = load(
            data.name, dir=data.dir, image_size=data.image_size, max_samples=data.max_samples, download=data.download
        )
    except ConfigError as error:
        raise type(error)(f"data: {error}") from error
    train, validation = split_validation(splits.train, data.validation, seed=seed)
    return SplitData(train, validation, splits.test)


def facts_of(experiment: Experiment, data: SplitData) -> Facts:
    """The sizes, after checking that the experiment fits them.

    Raises:
        ConfigError: if the batch size exceeds the data set or the sampler can never plan that many samples.
    """
    num_train = len(data.train)
    batch_size = experiment.train.batch_size
    if batch_size > num_train:
        raise ConfigError(
            f"train.batch_size: {batch_size} is above the {num_train} training samples of {experiment.data.name}"
        )
    for line in experiment.unused_schedule():
        warnings.warn(line, UserWarning, stacklevel=2)
    samplers = experiment.samplers()
    for epoch, sampler in samplers.items():
        try:
            sampler.check(num_train)
        except ConfigError as error:
            if epoch not in {first for _, first, _ in experiment.planner.schedule.steps()}:
                raise
            raise ConfigError(f"planner.schedule, from epoch {epoch} on: {error}") from error
        _check_shape(sampler, num_train)
    return Facts(
        num_train=num_train,
        num_validation=len(data.validation),
        num_test=len(data.test),
        steps_per_epoch=num_train // batch_size,
        plan_length=next(iter(samplers.values())).plan_length(num_train),
    )


def _check_shape(sampler: Sampler, num_train: int) -> None:
    """Refuse plans that are made for the synthetic study: batches of another size, or more than an epoch has steps."""
    width, steps = sampler.plan_width(num_train), num_train // sampler.batch_size
    if width != sampler.batch_size:
        raise ConfigError(
            f"sampler {sampler.name!r}: its batches have {width} samples; train.batch_size is {sampler.batch_size}, "
            f"allowed with it: {width}"
        )
    if sampler.plan_length(num_train) > steps:
        raise ConfigError(
            f"sampler {sampler.name!r}: its {sampler.plan_length(num_train):,} batches are more than the {steps} steps "
            f"of an epoch, so most would never be trained on; it is for `mbcl synthetic`"
        )


def model_of(experiment: Experiment, *, in_channels: int) -> ContrastiveModel:
    """The experiment's model with its initial weights."""
    return build_model(experiment.encoder, experiment.projector, in_channels=in_channels, seed=experiment.seed)


def check_model(experiment: Experiment, data: SplitData) -> ContrastiveModel:
    """Build the model and show it two images: some encoders find out only then that images are too small.

    Returns:
        The model with its initial weights, in evaluation mode.

    Raises:
        ConfigError: if the encoder cannot be built or cannot take images of this size.
    """
    try:
        model = model_of(experiment, in_channels=data.train.channels).eval()
    except ConfigError as error:
        raise ConfigError(f"encoder: {error}") from error
    views = clean_views(data.train.images[:2], images=data.train)
    try:
        with torch.no_grad():
            model(views)
    except (RuntimeError, ValueError, AssertionError) as error:
        shape = " x ".join(str(size) for size in views.shape[1:])
        words = " ".join(str(error).split())
        raise ConfigError(f"encoder: {experiment.encoder.name} cannot take images of {shape}: {words}") from error
    return model
