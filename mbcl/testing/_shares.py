"""Steps of an objective on one process and on the ranks of a group, which the contract test compares.

Letters: B samples of the whole batch, b samples of a rank, D dimensions, W ranks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.objectives import Candidates, Distribution, Objective, StatefulObjective
from mbcl.seeding import torch_generator
from mbcl.testing._promises import one_line

BATCH_SIZE = 8
DIM = 4
NUM_STEPS = 3
"""State per sample is read again from the second step on."""
EXACT = 1e-9
"""The largest difference in float64 that is attributed to rounding."""


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return two (B, D) float64 views, and the positions 0 to B - 1 in another order for every seed."""
    generator = torch_generator(seed, "testing/batch")
    z1, z2 = (torch.randn(BATCH_SIZE, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    return z1, z2, torch.randperm(BATCH_SIZE, generator=generator)


def gradients(loss: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """Return the (2, b, D) gradients of both views; zeros where the loss does not depend on a view."""
    if not loss.requires_grad:
        return torch.zeros(len(leaves), *leaves[0].shape, dtype=leaves[0].dtype)
    return torch.stack(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference, divided by the largest absolute entry of ``expected``.

    It is 0 if both are equal; infinite if only ``expected`` is 0, if a number is not finite, or if the shapes differ.
    """
    if actual.shape != expected.shape or not bool(actual.isfinite().all() and expected.isfinite().all()):
        return math.inf
    difference = (actual.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max()) if difference > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Step:
    """The result of a step, on one rank or merged.

    Args:
        loss: (1,).
        gradients: (2, b, D) of both views.
        state: the objective's state afterwards.
    """

    loss: Tensor
    gradients: Tensor
    state: dict[str, Tensor]

    @staticmethod
    def merge(ranks: Sequence[Step], distribution: Distribution) -> Step:
        """Merge the results of all ranks: losses are summed, or with ``local`` averaged, as are their gradients."""
        share = len(ranks) if distribution == "local" else 1
        return Step(
            torch.cat([step.loss for step in ranks]).sum(0, keepdim=True) / share,
            torch.cat([step.gradients for step in ranks], dim=1) / share,
            ranks[0].state,
        )


def steps_in_one_process(objective: Objective) -> list[Step]:
    """Run the steps on the whole batch."""
    objective = copy.deepcopy(objective).train()
    return [_step(objective, *batch(number)) for number in range(NUM_STEPS)]


def _step(objective: Objective, z1: Tensor, z2: Tensor, indices: Tensor) -> Step:
    leaves = [z.clone().requires_grad_() for z in (z1, z2)]
    loss = objective(*leaves, indices)
    return Step(loss.detach()[None], gradients(loss, leaves), copy.deepcopy(objective.state_dict()))


def steps_on_rank(world: World, objective: Objective) -> list[Step] | str:
    """Run the steps on this rank's part of each batch, with what the distribution says of the others.

    Returns:
        The steps; or, on every rank, the first error of any rank as one line.
    """
    objective = copy.deepcopy(objective).train()
    steps = []
    for number in range(NUM_STEPS):
        try:
            step, failure = _step_of_rank(world, objective, number), None
        except Exception as error:
            failure = one_line(error)
        # So no rank waits for another one that has failed, and the group can be used again.
        failures: list[str] = [text for text in collectives.gather_objects(failure, world) if text]
        if failures:
            return failures[0]
        steps.append(step)
    return steps


def _step_of_rank(world: World, objective: Objective, number: int) -> Step:
    whole_B = batch(number)[2]
    z1, z2, indices = (tensor.chunk(world.size)[world.rank] for tensor in batch(number))
    if objective.distribution == "local":
        return _step(objective, z1, z2, indices)
    leaves = [z.clone().requires_grad_() for z in (z1, z2)]
    gathered = collectives.gather_with_grad(torch.stack(leaves, dim=1), world)
    stateful = isinstance(objective, StatefulObjective)
    candidates = Candidates(gathered[:, 0], gathered[:, 1], world.rank * len(indices), whole_B if stateful else None)
    loss = objective(*leaves, indices, candidates=candidates)
    gradients_2bD = gradients(loss, leaves)
    if isinstance(objective, StatefulObjective):
        assert objective.pending is not None, "pending is None after a forward pass with candidates"
        objective.commit(whole_B, collectives.all_gather_ragged(objective.pending, world))
    return Step(loss.detach()[None], gradients_2bD, copy.deepcopy(objective.state_dict()))
