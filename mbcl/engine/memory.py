"""An estimate of the memory that a training takes, from its data, its weights and one forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mbcl.config.experiment import Experiment
from mbcl.engine.setup import SplitData
from mbcl.models import ContrastiveModel

COPIES_OF_WEIGHTS = 5
"""Weights, gradients, at most two moments, and the copy that a checkpoint writes."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a training takes beyond an idle process.

    Args:
        host: samples and embeddings, which stay in the main memory.
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

    Activations are counted: all tensors that autograd saves in a forward pass of two samples, times those of a
    step. Temporary buffers of single operations and of the views are not.

    Args:
        experiment: the configuration.
        data: its samples.
        model: its model, in evaluation mode; its weights are not changed.
    """
    samples: dict[int, int] = {}  # by address, because parts may share their memory
    for part in (data.train, data.validation, data.test):
        samples |= part.stored_bytes()
    weights = sum(weight.nbytes for weight in model.parameters())
    rows = data.train.clean(torch.arange(min(2, len(data.train)))).cpu()
    embeddings, saved = _saved_bytes(model, rows.to(experiment.train.dtype))
    batch_size = experiment.train.accumulation.chunk_size or experiment.train.batch_size
    return MemoryNeed(
        host=sum(samples.values()) + 2 * len(data.train) * embeddings // len(rows),
        weights=COPIES_OF_WEIGHTS * weights,
        activations=2 * batch_size * saved // len(rows),
    )


def _saved_bytes(model: ContrastiveModel, inputs: Tensor) -> tuple[int, int]:
    """Return the bytes of a model's outputs, and of all tensors but weights that autograd saves to compute them."""
    weights = {weight.data_ptr() for weight in model.parameters()}
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = model(inputs)
    return output.nbytes, sum(saved.values())
