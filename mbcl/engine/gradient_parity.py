"""The gradient parity certificate: several workers compared with one process that holds the whole batch.

Every worker trains a small real network on its part of the batches, with the step that experiments use (DDP,
synchronised batch norm, gather, objective, per-sample state). In addition it runs a reference implementation without
any of that machinery: the same steps on whole batches in one process. A difference beyond rounding is an error in the
distributed code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mbcl.config.base import validate
from mbcl.config.experiment import Experiment
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine.build import build_learner
from mbcl.engine.embedding_pass import ViewKey, two_views
from mbcl.engine.precision import Compute
from mbcl.engine.setup import SplitData, load_data, model_of
from mbcl.engine.step import Learner
from mbcl.functional import normalize
from mbcl.models import ContrastiveModel
from mbcl.objectives import Candidates, Distribution, Objective
from mbcl.testing._shares import EXACT, relative_error

LOCAL = "local"
"""The name of :class:`Alignment` in a case."""
DTYPES = ("float64", "float32")
SPREAD = 30.0
"""The largest error in float32 that is attributed to rounding, in units of a single process's rounding error.

The unit depends on the processor's kernels, and on the training, which amplifies it. So it is measured: one process on
whole batches, in float32 against float64. That error and the error of several workers are both the maximum of
thousands of rounding errors of one size, so they differ by a small factor, about two after four steps.
"""
BATCH_SIZE = 16
CHUNK_SIZE = 8
LEARNING_RATE = 0.003
"""Small, because single steps are compared: at large rates training itself amplifies rounding with every step."""


class Alignment(Objective):
    """Mean squared distance of the views on the unit sphere: an objective with the distribution ``local``.

    No registered objective has it, and alone it would collapse an encoder; it is here for the certificate.
    """

    distribution: ClassVar[Distribution] = "local"

    def forward(
        self, z1: Tensor, z2: Tensor, indices: Tensor | None = None, *, candidates: Candidates | None = None
    ) -> Tensor:
        """Return the mean over the samples; they need no candidates."""
        return (normalize(z1) - normalize(z2)).square().sum(dim=1).mean()


@dataclass(frozen=True)
class Case:
    """One configuration to certify: ``dtype`` is ``float64`` or ``float32``, ``accumulation`` ``none`` or ``cached``.

    ``objective`` is a registered name, or ``local`` for :class:`Alignment`.

    Per-sample state is read again from the second step on.
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
        state: of any weight, buffer or per-sample state after the last step.
        bound: the largest error that is attributed to rounding.
    """

    loss: float
    gradients: float
    state: float
    bound: float

    @property
    def within(self) -> bool:
        """Whether all errors are finite and at most ``bound``."""
        return all(error <= self.bound < math.inf for error in (self.loss, self.gradients, self.state))


def certify(world: World, case: Case) -> Errors:
    """Compare this rank's training with that of a single process: the largest errors of any rank. A collective call."""
    experiment = _experiment(case)
    data = load_data(experiment.data, seed=experiment.seed)
    batches = list(_batches(experiment, len(data.train), case.steps))
    learner = build_learner(experiment, data, model_of(experiment, in_channels=data.train.channels), world)
    learner.objective = _objective(case, experiment, len(data.train))

    def step(batch: Tensor) -> Tensor:
        return collectives.all_reduce_sum(learner.step(batch, epoch=0, lr=LEARNING_RATE).loss, world)

    reference = _reference(case, data, batches)
    errors = _errors(_trace(step, learner.model, learner.objective, batches), reference)
    bound = EXACT
    if case.dtype == "float32":
        bound = SPREAD * max(_errors(reference, _reference(replace(case, dtype="float64"), data, batches)))
    errors_by_rank = collectives.all_gather_ragged(torch.tensor([[*errors, bound]], dtype=torch.float64), world)
    return Errors(*errors_by_rank.max(dim=0).values.tolist())


@dataclass(frozen=True)
class _Trace:
    """A record of a training: the loss and the gradients of every step, and all state after the last."""

    losses: list[Tensor]
    gradients: list[dict[str, Tensor]]
    state: dict[str, Tensor]


def _trace(
    step: Callable[[Tensor], Tensor], model: ContrastiveModel, objective: Objective, batches: Sequence[Tensor]
) -> _Trace:
    """Run the steps and record their losses and gradients, and the state after the last."""
    losses, gradients = [], []
    for batch in batches:
        losses.append(step(batch))
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    return _Trace(losses, gradients, {**model.state_dict(), **objective.state_dict(prefix="objective.")})


def _objective(case: Case, experiment: Experiment, num_samples: int) -> Objective:
    """Build the objective of a case."""
    return Alignment() if case.objective == LOCAL else experiment.build_objective(num_samples)


def _reference(case: Case, data: SplitData, batches: Sequence[Tensor]) -> _Trace:
    """Train in one process on whole batches, with torch's own batch norm and optimiser."""
    experiment = _experiment(case)
    model = model_of(experiment, in_channels=data.train.channels).train()
    compute = Compute.of(experiment.train, torch.device("cpu"), model)
    compute.place(model)
    objective = _objective(case, experiment, len(data.train))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-6)
    key = ViewKey(Learner.views_seed(experiment.seed))

    def step(batch: Tensor) -> Tensor:
        z1, z2 = model(compute.layout(two_views(data.train, batch, key).to(experiment.train.dtype))).chunk(2)
        loss: Tensor = objective(z1, z2, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return _trace(step, model, objective, batches)


def _errors(actual: _Trace, expected: _Trace) -> tuple[float, float, float]:
    """Return the largest relative errors of the losses, of the gradients, and of the state."""
    losses = zip(actual.losses, expected.losses, strict=True)
    gradients = zip(actual.gradients, expected.gradients, strict=True)
    return (
        max(relative_error(*pair) for pair in losses),
        max(_largest_error(*pair) for pair in gradients),
        _largest_error(actual.state, expected.state),
    )


def _experiment(case: Case) -> Experiment:
    """Build the small experiment on digits that a case describes."""
    chunk_size = CHUNK_SIZE if case.accumulation != "none" else None
    content = {
        "data": {"name": "digits", "max_samples": 60},
        "encoder": {"name": "resnet_small", "widths": [8, 16]},
        "projector": {"hidden": 32, "dim": 16},
        "objective": {"name": "simclr" if case.objective == LOCAL else case.objective},
        "optimizer": {"name": "sgd", "lr": LEARNING_RATE, "momentum": 0.9, "weight_decay": 1e-6},
        "train": {
            "batch_size": BATCH_SIZE,
            "precision": case.dtype,
            "accumulation": {"mode": case.accumulation, "chunk_size": chunk_size},
        },
    }
    return validate(Experiment, content, "the certificate")


def _batches(experiment: Experiment, num_samples: int, steps: int) -> Iterator[Tensor]:
    """Yield the batches of successive epochs: from the second epoch on samples recur, in different batches."""
    sampler = experiment.build_sampler()
    epoch = 0
    while steps > 0:
        for batch in sampler.plan(num_samples, seed=experiment.seed, epoch=epoch).batches[:steps]:
            steps -= 1
            yield batch
        epoch += 1


def _largest_error(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest relative error over all tensors; infinite if one is missing."""
    if list(actual) != list(expected):
        return math.inf
    return max((relative_error(actual[name], tensor) for name, tensor in expected.items()), default=0.0)
