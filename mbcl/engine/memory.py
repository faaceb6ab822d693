"""An estimate of the memory that a training takes, from its data, its weights and one forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mbcl.config.experiment import Experiment
from mbcl.data import clean_views
from mbcl.engine.setup import SplitData
from mbcl.models import ContrastiveModel

COPIES_OF_WEIGHTS = 5
"""Weights, gradients, at most two moments, and the copy that a checkpoint writes."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a training takes beyond an idle process.

    Args:
        host: images and embeddings, which stay in the main memory.
        weights: weights, gradients and optimiser state, on the device that trains.
        activations: activations of a step on the global batch, which the workers share.
    """

    host: int
    weights: int
    activations: int

    @staticmethod
    def largest(needs: Iterable[MemoryNeed]) -> MemoryNeed:
        """Return the largest of each field; zeros for no needs."""
        rows = [(need.host, need.weights, need.activations) for need in needs]
        return MemoryNeed(*(max(column) for column in zip(*rows, (0, 0, 0), strict=True)))


def memory_need(experiment: Experiment, data: SplitData, model: ContrastiveModel) -> MemoryNeed:
    """Estimate the memory of a training on one worker.

    Activations are counted: all tensors that autograd saves in a forward pass of two images, times the images of a
    step. Temporary buffers of single operations and of the views are not.

    Args:
        experiment: the configuration.
        data: its images.
        model: its model, in evaluation mode; its weights are not changed.
    """
    parts = [part for part in (data.train, data.validation, data.test) if not part.mapped]
    images = {part.images.data_ptr(): part.images.nbytes for part in parts}  # parts may share their images
    weights = sum(weight.nbytes for weight in model.parameters())
    pair = clean_views(data.train.pixels(torch.arange(min(2, len(data.train)))).cpu(), images=data.train)
    embeddings, saved = _saved_bytes(model, pair.to(experiment.train.dtype))
    samples = experiment.train.accumulation.chunk_size or experiment.train.batch_size
    return MemoryNeed(
        host=sum(images.values()) + 2 * len(data.train) * embeddings // len(pair),
        weights=COPIES_OF_WEIGHTS * weights,
        activations=2 * samples * saved // len(pair),
    )


def _saved_bytes(model: ContrastiveModel, images: Tensor) -> tuple[int, int]:
    """Return the bytes of a model's outputs, and of all tensors but weights that autograd saves to compute them."""
    weights = {weight.data_ptr() for weight in model.parameters()}
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = model(images)
    return output.nbytes, sum(saved.values())
