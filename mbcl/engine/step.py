"""One training step: views, encoder, gather, objective, backward, optimiser.

The scale, once for all objectives: a rank's loss is the sum over its own anchors divided by the number of anchors
in the global batch. The sum over ranks is then the loss of the whole batch, and since DDP averages gradients over
the W ranks, each rank multiplies its loss by W before backward. The gather's backward sums over ranks.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mbcl import dist
from mbcl.data import ImageSet
from mbcl.dist import World
from mbcl.engine.embed import ViewKey, two_views
from mbcl.models import ContrastiveModel
from mbcl.objectives import Candidates, Objective


@dataclass
class Learner:
    """Everything that a step changes, and what it needs to do so.

    ``network`` is the model as it is called: wrapped in DDP where there are several ranks.
    """

    model: ContrastiveModel
    network: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    images: ImageSet
    world: World
    seed: int

    def step(self, batch: Tensor, *, epoch: int, lr: float) -> Tensor:
        """Train on one global batch.

        Args:
            batch: (B,) int64 CPU tensor, the data-set positions of the global batch; B divisible by the ranks.
            epoch: for the views.
            lr: learning rate of this step.

        Returns:
            This rank's share of the batch's loss, a detached scalar; the sum over ranks is the loss.
        """
        world = self.world
        positions = batch.chunk(world.size)[world.rank]
        key = ViewKey(self.seed, epoch)
        projections = self.network(two_views(self.images, positions, key)).float()
        z1, z2 = projections.chunk(2)
        loss: Tensor = self.objective(z1, z2, positions.to(z1.device), candidates=self._candidates(z1, z2, batch))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        (loss * world.size).backward()
        self.optimizer.step()
        return loss.detach()

    def _candidates(self, z1: Tensor, z2: Tensor, batch: Tensor) -> Candidates | None:
        """All ranks' projections, gathered with gradient, for objectives that look beyond their own rank."""
        if self.world.size == 1 or self.objective.distribution == "local":
            return None
        together = dist.gather_with_grad(torch.stack([z1, z2], dim=1), self.world)
        indices = batch.to(z1.device) if self.objective.distribution == "state" else None
        return Candidates(together[:, 0], together[:, 1], offset=self.world.rank * len(z1), indices=indices)


def wrap(model: ContrastiveModel, world: World) -> nn.Module:
    """The model as training calls it: DDP where there are several ranks.

    Buffers are not broadcast: synchronised batch norm keeps them equal, and a broadcast between the forward and
    the backward pass would be one more collective for nothing.
    """
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    # torch 2.14 renamed the option and warns of the old name.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    option: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(model, device_ids=devices, **option)
