"""What the tests of the adapters share: a plan of small pairs, and the rank that a framework finds."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch
from torch import Tensor, nn

import mbcl
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.plan import BatchPlan
from mbcl.torch import PlannedBatchSampler, Replanner

N, B = 26, 4
STEPS = N // B
EPOCHS = 3


def samples() -> Tensor:
    return torch.randn(N, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def plan() -> BatchPlan:
    """A plan whose batches no sampler of a framework yields."""
    return mbcl.samplers.build("shuffle", batch_size=B).plan(N, seed=5, epoch=1)


def epochs_of(number: int = EPOCHS, drop_last: bool = True) -> list[list[int]]:
    """The global batches of the plan's epochs."""
    batches = PlannedBatchSampler(plan(), num_samples=N, drop_last=drop_last, rank=0, world_size=1)
    result: list[list[int]] = []
    for epoch in range(number):
        batches.set_epoch(epoch)
        result += list(batches)
    return result


class Towers(nn.Module):
    """A linear encoder in float64 that remembers the positions it was trained on, and returns the global batch's loss.

    With ``crash``, training ends in an error once so many batches were trained on.
    """

    def __init__(self, crash: int | None = None) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, 3, dtype=torch.float64)
        with torch.no_grad():
            for seed, parameter in enumerate(self.encoder.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        self.criterion = mbcl.objectives.build("simclr", temperature=0.5)
        self.seen: list[list[int]] = []
        self.crash = crash
        self.replanner: Replanner | None = None
        self.observes = False

    def views(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(x), self.encoder(x.roll(1, 1))

    def forward(self, x: Tensor, position: Tensor) -> dict[str, Tensor]:
        if len(self.seen) == self.crash:
            raise InterruptedError
        self.seen.append(position.tolist())
        z1, z2 = self.views(x)
        if self.replanner is not None and self.observes:
            self.replanner.observe(position, z1, z2)
        world = collectives.current()
        return {"loss": self.criterion(*(collectives.gather_with_grad(z, world) for z in (z1, z2)))}

    def batches(self, kind: str) -> PlannedBatchSampler:
        """The batch sampler of a training: of the plan, or of a replanner that embeds with this encoder.

        With ``beside`` it plans beside the training, and plans nothing behind the last epoch.
        """
        if kind == "plan":
            return PlannedBatchSampler(plan())
        if kind == "short":
            return PlannedBatchSampler(plan(), num_samples=N, drop_last=False)
        x = samples()
        self.observes = kind == "cached"
        self.replanner = Replanner(
            "spectral",
            batch_size=B,
            k=2,
            num_samples=N,
            embed=lambda positions: self.views(x[positions]),
            embeddings="cached" if self.observes else "fresh",
            background=kind == "beside",
            epochs=EPOCHS,
        )
        return PlannedBatchSampler(self.replanner)

    def weights(self) -> list[float]:
        return torch.cat([p.detach().flatten() for p in self.encoder.parameters()]).tolist()


def joined(ranks: list[list[list[int]]]) -> list[list[int]]:
    """The global batches of what each rank trained on."""
    return [sum(parts, []) for parts in zip(*ranks, strict=True)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def describe_rank(world: World, port: int) -> None:
    """Describe the rank as ``torchrun`` does, and leave the process group to the framework."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return
    collectives.finish()
    os.environ.update(
        {
            "RANK": str(world.rank),
            "LOCAL_RANK": str(world.rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(world.size),
            "LOCAL_WORLD_SIZE": str(world.size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
        }
    )


def distance(one: Any, other: Any) -> float:
    return float((torch.tensor(one) - torch.tensor(other)).abs().max())
