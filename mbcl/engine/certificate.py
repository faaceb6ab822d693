"""The gradient parity certificate: several workers against one process that holds the whole batch.

Every worker trains a small real network on its part of the batches, through the very step that experiments use (DDP,
synchronised batch norm, gather, objective, state per sample). Apart, it repeats the same steps alone on whole batches,
written down without any of that machinery. What differs beyond rounding is an error in the machinery.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mbcl import dist
from mbcl.configuration import validate
from mbcl.dist import World
from mbcl.engine.build import build_learner
from mbcl.engine.embed import ViewKey, two_views
from mbcl.engine.prepare import SplitData, load_data, model_of
from mbcl.engine.step import Learner
from mbcl.experiment import Experiment
from mbcl.models import ContrastiveModel
from mbcl.objectives import Objective

BOUNDS = {"float64": 1e-9, "float32": 1e-4}
"""The largest error that is put down to rounding."""
DTYPES = {"float64": torch.float64, "float32": torch.float32}
BATCH_SIZE = 16
CHUNK_SIZE = 8
LEARNING_RATE = 0.003
"""Small: the comparison is of single steps; at large rates training itself magnifies rounding, step by step."""


@dataclass(frozen=True)
class Case:
    """What is compared.

    Args:
        objective: its name.
        dtype: ``float64`` or ``float32``.
        accumulation: ``none`` or ``cached``.
        steps: how many are taken; state per sample is met again from the second on.
    """

    objective: str
    dtype: str = "float64"
    accumulation: str = "none"
    steps: int = 4


@dataclass(frozen=True)
class Errors:
    """The largest absolute differences, each relative to the largest entry of its tensor.

    Args:
        loss: of any step.
        gradients: of any parameter in any step.
        state: of any weight, buffer or state per sample after the last step.
    """

    loss: float
    gradients: float
    state: float

    @property
    def largest(self) -> float:
        """Of all three."""
        return max(self.loss, self.gradients, self.state)


def certify(world: World, case: Case) -> Errors:
    """Compare this rank's training with the one of a single process; all ranks call it together.

    Returns:
        The largest errors of any rank.
    """
    experiment = _experiment(case)
    data = load_data(experiment.data, seed=experiment.seed)
    model = model_of(experiment, in_channels=data.train.channels).to(DTYPES[case.dtype])
    learner = build_learner(experiment, data, model, world)
    loss = gradients = 0.0
    alone = _Alone(experiment, data, DTYPES[case.dtype])
    for batch in _batches(experiment, len(data.train), case.steps):
        share = learner.step(batch, epoch=0, lr=LEARNING_RATE).loss
        together = dist.all_reduce_sum(share, world)
        loss = max(loss, relative_error(together, alone.step(batch)))
        gradients = max(gradients, _largest_error(_gradients(learner.model), _gradients(alone.model)))
    state = max(
        _largest_error(learner.model.state_dict(), alone.model.state_dict()),
        _largest_error(learner.objective.state_dict(), alone.objective.state_dict()),
    )
    everyone = dist.gather(torch.tensor([[loss, gradients, state]], dtype=torch.float64), world)
    return Errors(*everyone.max(dim=0).values.tolist())


class _Alone:
    """The same training by one process on whole batches, with torch's own batch norm and optimiser."""

    def __init__(self, experiment: Experiment, data: SplitData, dtype: torch.dtype) -> None:
        self.model: ContrastiveModel = model_of(experiment, in_channels=data.train.channels).to(dtype).train()
        self.objective: Objective = experiment.build_objective(len(data.train))
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-6)
        self._data = data
        self._key = ViewKey(Learner.views_seed(experiment.seed))
        self._dtype = dtype

    def step(self, batch: Tensor) -> Tensor:
        z1, z2 = self.model(two_views(self._data.train, batch, self._key).to(self._dtype)).chunk(2)
        loss: Tensor = self.objective(z1, z2, batch)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach()


def _experiment(case: Case) -> Experiment:
    chunk_size = CHUNK_SIZE if case.accumulation != "none" else None
    content = {
        "data": {"name": "digits", "max_samples": 60},
        "encoder": {"name": "resnet_small", "widths": [8, 16]},
        "projector": {"hidden": 32, "dim": 16},
        "objective": {"name": case.objective},
        "optimizer": {"name": "sgd", "lr": LEARNING_RATE, "momentum": 0.9, "weight_decay": 1e-6},
        "train": {
            "batch_size": BATCH_SIZE,
            "accumulation": {"mode": case.accumulation, "chunk_size": chunk_size},
        },
    }
    return validate(Experiment, content, "the certificate")


def _batches(experiment: Experiment, num_samples: int, steps: int) -> Iterator[Tensor]:
    """Batches of one epoch after the other: samples come back from the second epoch on, in other company."""
    sampler = experiment.build_sampler()
    epoch = 0
    while steps > 0:
        for batch in sampler.plan(num_samples, seed=experiment.seed, epoch=epoch).batches[:steps]:
            steps -= 1
            yield batch
        epoch += 1


def _gradients(model: ContrastiveModel) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _largest_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Over all tensors; infinite if one is missing."""
    if list(found) != list(expected):
        return math.inf
    return max((relative_error(found[name], tensor) for name, tensor in expected.items()), default=0.0)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference, over the largest absolute entry of ``expected``.

    0 where both are equal; infinite where ``expected`` alone is 0, and where a number is not finite.
    """
    if not (torch.isfinite(found).all() and torch.isfinite(expected).all()):
        return math.inf
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max()) if difference > 0 else 0.0
