"""Embeddings of images by trained weights, in the form that ``mbcl plan`` reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbcl.config.data import Data
from mbcl.data import SampleSet
from mbcl.engine.embedding_pass import key_of_draws
from mbcl.engine.precision import Compute
from mbcl.engine.setup import check_takes, load_data
from mbcl.evaluation.run import usable_device
from mbcl.evaluation.subject import Subject
from mbcl.export import Weights

Split = Literal["train", "validation", "test", "all"]


@dataclass(frozen=True, eq=False)
class Embedded:
    """The embeddings of images; row p is image p of the split.

    Args:
        z1, z2: (N, D) of both views, or both of the image itself; of pairs those of both sides.
        labels: (N,) int64, or None.
        files: (N,) names of the files without extension, or None.
    """

    z1: Tensor
    z2: Tensor
    labels: Tensor | None
    files: NDArray[np.str_] | None

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the columns of an embeddings file."""
        columns: dict[str, NDArray[np.generic]] = {"z1": self.z1.numpy(), "z2": self.z2.numpy()}
        if self.labels is not None:
            columns["labels"] = self.labels.numpy()
        return columns if self.files is None else {**columns, "files": self.files}


def embed_images(
    weights: Weights,
    data: Data,
    *,
    split: Split = "train",
    features: bool = False,
    augmented: bool = True,
    device: str = "cpu",
) -> Embedded:
    """Embed a split of a data set, or all of its images: training, validation and test images, one after the other.

    Args:
        weights: of a checkpoint or an export.
        data: the images.
        split: which of them.
        features: give the encoder's features instead of the projections.
        augmented: embed two augmented views of each image, in one draw by the experiment's seed, instead of the image;
            pairs have both sides as they are.
        device: where to compute.

    Raises:
        ConfigError: if the weights do not take these images.
        DataError: if files are missing or damaged.
        CheckpointError: if embeddings are not finite.
    """
    experiment, used_device = weights.experiment, usable_device(device)
    parts = load_data(data, seed=experiment.seed)
    model = weights.model(in_channels=parts.train.channels)
    check_takes(model, experiment, parts.train)
    model = Compute.of(experiment.train, used_device, model).place(model)
    settings, dtype = experiment.evaluation, experiment.train.dtype
    subject = Subject(model, parts, data, settings, experiment.seed, used_device, dtype)
    function = model.features if features else subject.projections
    z1s, z2s, sets = [], [], []
    for name in ("train", "validation", "test") if split == "all" else (split,):
        images = parts.part(name).to(used_device)
        if augmented or not images.draws_when_measured:
            key = key_of_draws(experiment.seed, f"{name} embedded", 1, augmented=images.draws_when_measured)
            z1, z2 = next(subject.pairs(function, images, key))
        else:
            z1 = z2 = subject.clean(function, images)
        z1s.append(z1.cpu())
        z2s.append(z2.cpu())
        sets.append(images)
    return Embedded(torch.cat(z1s), torch.cat(z2s), _labels(sets), _files(sets))


def _labels(sets: list[SampleSet]) -> Tensor | None:
    return torch.cat([images.labels for images in sets]) if sets[0].labelled else None


def _files(sets: list[SampleSet]) -> NDArray[np.str_] | None:
    return np.array([file for images in sets for file in images.files]) if all(each.files for each in sets) else None
