"""Setup of an experiment before the first step: its data and split, the sizes derived from them, and its model."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.config.data import LOAD_KEYS, Data
from mbcl.config.experiment import Experiment
from mbcl.data import ImageSet, Splits, load
from mbcl.data.content import content_digest
from mbcl.data.samples import Channels, SampleSet, validation_positions
from mbcl.engine.precision import Compute
from mbcl.errors import CheckpointError, ConfigError, SamplerWarning, pluralize
from mbcl.io.npz import read_array
from mbcl.models import ContrastiveModel
from mbcl.models import build as build_model
from mbcl.samplers import Ids, Sampler, Shuffle, with_groups


@dataclass(frozen=True, eq=False)
class Samples:
    """The training samples without their content: what a plan's shape depends on.

    Args:
        number: N.
        apart: (N,) ids, or None: samples of one id should not share a batch.
        together: (N,) ids, or None: every batch has samples of one id.
    """

    number: int
    apart: Ids | None = None
    together: Ids | None = None

    def bind(self, sampler: Sampler) -> Sampler:
        """Return the sampler with the ids, if there are any."""
        return with_groups(sampler, apart=self.apart, together=self.together)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the batches of an epoch: N // B, or those of all sources together."""
        return self.bind(Shuffle(batch_size=batch_size)).plan_length(self.number)


@dataclass(frozen=True)
class SplitData:
    """Train, validation and test samples; training positions are 0..N-1.

    ``apart`` and ``together`` are the ids of the training samples, see :class:`Samples`. ``content`` returns the digest
    of the whole data set, ids included, whatever the validation split.
    """

    train: SampleSet
    validation: SampleSet
    test: SampleSet
    apart: Ids | None = None
    together: Ids | None = None
    content: Callable[[], str] = lambda: ""

    @property
    def samples(self) -> Samples:
        """What a plan's shape depends on."""
        return Samples(len(self.train), self.apart, self.together)

    def part(self, name: Literal["train", "validation", "test"]) -> SampleSet:
        """Return one of the three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


@dataclass(frozen=True)
class DataSizes:
    """The sizes of data and epochs, and what identifies the data.

    Args:
        num_train, num_validation, num_test: samples of each part.
        steps_per_epoch: batches of an epoch.
        plan_length: number of batches in the first planned epoch's plan.
        channels: of images; of pairs the widths of both sides.
        sources: what the samples were made from, where other sources make others; see
            :class:`~mbcl.data.samples.SampleSet`.
    """

    num_train: int
    num_validation: int
    num_test: int
    steps_per_epoch: int
    plan_length: int
    channels: Channels
    sources: Mapping[str, str] = field(default_factory=dict)


def load_data(data: Data, *, seed: int) -> SplitData:
    """Load the data set and split the validation samples off the training samples.

    Raises:
        DataError: if files are missing or damaged.
    """
    return split_data(load_splits(data), data, seed=seed)


def split_data(splits: Splits, data: Data, *, seed: int) -> SplitData:
    """Split the validation samples of a seed off the training samples of a loaded data set."""
    positions, held_out = validation_positions(splits.train, data.validation, seed=seed)
    ids = {key: _ids(key, getattr(data, key), splits.train) for key in ("apart", "together")}
    return SplitData(
        splits.train.part(positions),
        splits.train.part(held_out),
        splits.test,
        **{key: None if each is None else each[positions.numpy()] for key, each in ids.items()},
        content=cache(partial(content_digest, splits, ids.values())),
    )


def load_splits(data: Data) -> Splits:
    """Load the training and test parts of the data set, with the configured augmentation.

    Raises:
        DataError: if files are missing or damaged.
    """
    try:
        splits = load(data.name, **data.model_dump(include=set(LOAD_KEYS)))
    except ConfigError as error:
        raise type(error)(f"data: {error}") from error
    return replace(splits, train=_with_views(splits.train, data), test=_with_views(splits.test, data))


def _with_views(part: SampleSet, data: Data) -> SampleSet:
    return replace(part, recipe=data.views.of(part.recipe)) if isinstance(part, ImageSet) else part


def _ids(key: str, value: str | None, samples: SampleSet) -> NDArray[Any] | None:
    """Return one id for each sample: its label, or from a file."""
    if value is None:
        return None
    if value == "labels":
        if not samples.labelled:
            why = f"its {samples.noun}s are {samples.why_unlabelled}"
            raise ConfigError(f"data.{key}: found labels, but {samples.name} has none: {why}")
        return samples.labels.numpy()
    try:
        ids = read_array(value)
    except ConfigError as error:
        raise ConfigError(f"data.{key}: {error}") from error
    if ids.shape != (len(samples),) or ids.dtype.kind not in "iuUS":
        raise ConfigError(
            f"data.{key}: {value}: expected one whole number or string for each of {len(samples)} training "
            f"{samples.noun}s, found {ids.shape} {ids.dtype}"
        )
    return ids


def data_sizes(experiment: Experiment, data: SplitData) -> DataSizes:
    """Derive the sizes, after checking that the experiment fits the data.

    Raises:
        ConfigError: as :func:`check_samples`.
    """
    samples = data.samples
    samplers = check_samples(experiment, samples)
    return DataSizes(
        num_train=samples.number,
        num_validation=len(data.validation),
        num_test=len(data.test),
        steps_per_epoch=samples.steps_per_epoch(experiment.train.batch_size),
        plan_length=next(iter(samplers.values())).plan_length(samples.number),
        channels=data.train.channels,
        sources=dict(data.train.sources),
    )


def check_samples(experiment: Experiment, samples: Samples) -> dict[int, Sampler]:
    """Check that the experiment fits the training samples; warn of settings that it does not use.

    Returns:
        Its samplers with the ids of the samples, by the first epoch of each.

    Raises:
        ConfigError: if the batch size exceeds the data set or the sampler cannot plan that many samples.
    """
    num_train, batch_size = samples.number, experiment.train.batch_size
    if batch_size > num_train:
        count = pluralize(num_train, "training sample")
        raise ConfigError(f"train.batch_size: {batch_size} is above the {count} of {experiment.data.name}")
    for line in experiment.unused_planning():
        warnings.warn(line, SamplerWarning, stacklevel=2)
    samplers = {epoch: samples.bind(sampler) for epoch, sampler in experiment.samplers().items()}
    steps = samples.steps_per_epoch(batch_size)
    for epoch, sampler in samplers.items():
        try:
            sampler.check(num_train)
        except ConfigError as error:
            if epoch not in {first for _, first, _ in experiment.planner.schedule.steps()}:
                raise
            raise ConfigError(f"planner.schedule, from epoch {epoch} on: {error}") from error
        _check_shape(sampler, num_train, steps)
    return samplers


def _check_shape(sampler: Sampler, num_train: int, steps: int) -> None:
    """Reject plans meant for the synthetic study: another batch size, or more batches than an epoch has steps."""
    width = sampler.plan_width(num_train)
    if width != sampler.batch_size:
        raise ConfigError(
            f"sampler {sampler.name!r}: its batches have {width} samples; train.batch_size is {sampler.batch_size}, "
            f"allowed with it: {width}"
        )
    if sampler.plan_length(num_train) > steps:
        raise ConfigError(
            f"sampler {sampler.name!r}: its {sampler.plan_length(num_train):,} batches are more than the "
            f"{pluralize(steps, 'step')} of an epoch, so most would never be trained on; it is for `mbcl synthetic`"
        )


def model_of(experiment: Experiment, *, in_channels: Channels, pretrained: bool = True) -> ContrastiveModel:
    """Build the experiment's model with its initial weights, drawn in float32 and cast to the experiment's dtype.

    Without ``pretrained`` the file of ``encoder.weights`` is not read, because other weights follow.
    """
    encoder = {key: value for key, value in experiment.encoder.items() if pretrained or key != "weights"}
    model = build_model(encoder, experiment.projector, in_channels=in_channels, seed=experiment.seed)
    return model.to(experiment.train.dtype)


def channels_from(value: Any) -> Channels:
    """Return the width of an encoder's input from a file: JSON has a list for both sides of pairs.

    Raises:
        TypeError, ValueError: if it is neither a number nor two.
    """
    if isinstance(value, list | tuple):
        first, second = value
        return int(first), int(second)
    return int(value)


def channels_of(meta: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Channels:
    """Return the width of the input of a checkpoint's model: image channels, or the widths of both sides of pairs.

    Checkpoints of 0.2.0 do not record them: there they are those of the first convolution in the state dict, which has
    the modules' order.

    Args:
        meta: the plain values of the checkpoint.
        weights: its state dict.

    Raises:
        CheckpointError: if they are not recorded and there is no convolution.
    """
    if recorded := meta.get("facts", {}).get("channels"):
        return channels_from(recorded)
    for key, weight in weights.items():
        if key.startswith("encoder.") and weight.dim() == 4:
            return weight.shape[1]
    raise CheckpointError("these are not weights of an encoder: they have no convolution")


def load_model(experiment: Experiment, weights: Mapping[str, Tensor], *, in_channels: Channels) -> ContrastiveModel:
    """Build the experiment's model with the weights of a state dict, in training mode on the CPU.

    Raises:
        CheckpointError: if the weights do not belong to this model.
    """
    try:
        model = model_of(experiment, in_channels=in_channels, pretrained=False)
        state = OrderedDict(weights)
        # Module versions: safetensors cannot store them, and MNASNet's load hook requires them.
        state._metadata = getattr(weights, "_metadata", model.state_dict()._metadata)  # type: ignore[attr-defined]
        model.load_state_dict(state)
    except (RuntimeError, AttributeError) as error:
        message = " ".join(str(error).split())[:200]
        raise CheckpointError(f"these are not weights of encoder {experiment.encoder.name}: {message}") from error
    return model


def check_model(experiment: Experiment, data: SplitData) -> ContrastiveModel:
    """Build the model, in evaluation mode, and run it: some encoders reject small images only in their forward pass.

    Raises:
        ConfigError: if the encoder cannot be built or cannot take these samples.
    """
    try:
        model = model_of(experiment, in_channels=data.train.channels).eval()
    except ConfigError as error:
        raise ConfigError(f"encoder: {error}") from error
    check_takes(model, experiment, data.train)
    return model


def check_takes(model: ContrastiveModel, experiment: Experiment, samples: SampleSet) -> None:
    """Run a model in evaluation mode on two samples, on the CPU and in the memory format of its training there.

    Raises:
        ConfigError: if its encoder cannot take samples of this size.
    """
    views = samples.clean(torch.arange(min(2, len(samples)))).cpu().to(experiment.train.dtype)
    compute = Compute.of(experiment.train, torch.device("cpu"), model)
    try:
        with torch.no_grad():
            compute.place(deepcopy(model))(compute.layout(views))
    except (RuntimeError, ValueError, AssertionError) as error:
        shape = " x ".join(str(size) for size in views.shape[1:])
        message = " ".join(str(error).split())
        if compute.channels_last:
            message += " (in the memory format of train.channels_last; false is the contiguous one)"
        raise ConfigError(
            f"encoder: {experiment.encoder.name} cannot take {samples.noun}s of {shape}: {message}"
        ) from error
