"""A small real training in a loop of its own, which the tests of the replanner share."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import mbcl
from mbcl.torch import PlannedBatchSampler, Replanner

N, B = 24, 4
STEPS = N // B
OPTIONS: dict[str, Any] = {"sampler": "spectral", "k": 2, "seed": 3}


def samples(rows: int = N) -> Tensor:
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Loop:
    """Trains a linear encoder in float64, whose embeddings the replanner uses."""

    def __init__(self, **options: Any) -> None:
        options = OPTIONS | {"batch_size": B, "num_samples": N} | options
        self.x = samples(options["num_samples"])
        self.model = torch.nn.Linear(5, 3, dtype=torch.float64)
        with torch.no_grad():
            for seed, parameter in enumerate(self.model.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.criterion = mbcl.objectives.build("simclr", temperature=0.5)
        embed = self.embed if options.pop("with_embed", True) else None
        self.replanner = Replanner(options.pop("sampler"), embed=embed, **options)
        self.observes = options.get("embeddings") == "cached" or embed is None
        self.batches = PlannedBatchSampler(self.replanner)
        self.seen: list[list[int]] = []

    def views(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(x), self.model(x.roll(1, 1))

    def embed(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.views(self.x[positions])

    def run(self, epochs: int, workers: int = 0) -> Iterator[int]:
        """Train from where the batch sampler stands; yields the number of batches done in the epoch after each."""
        loader = DataLoader(
            TensorDataset(self.x, torch.arange(len(self.x))), batch_sampler=self.batches, num_workers=workers
        )
        for epoch in range(self.batches.epoch, epochs):
            self.batches.set_epoch(epoch)
            for step, (x, positions) in enumerate(loader, start=self.batches.step):
                z1, z2 = self.views(x)
                self.optimizer.zero_grad()
                self.criterion(z1, z2, None).backward()
                self.optimizer.step()
                if self.observes:
                    self.replanner.observe(positions, z1, z2)
                self.seen.append(positions.tolist())
                yield step + 1

    def save(self, step: int) -> bytes:
        stream = io.BytesIO()
        parts = {"model": self.model, "optimizer": self.optimizer, "replanner": self.replanner}
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"batches": self.batches.state_dict(step)}, stream)
        return stream.getvalue()

    def load(self, content: bytes) -> None:
        state = torch.load(io.BytesIO(content), weights_only=True)
        for name in ("model", "optimizer", "batches", "replanner"):
            getattr(self, name).load_state_dict(state[name])


def cut_and_resumed(cut: int, epochs: int, **options: Any) -> tuple[Loop, Loop]:
    """Loops that end and begin after so many steps: the second goes on from what the first saved."""
    first, second = Loop(**options), Loop(**options)
    for done, step in enumerate(first.run(epochs), start=1):
        if done == cut:
            second.load(first.save(step))
            break
    for _ in second.run(epochs):
        pass
    return first, second


def whole(epochs: int, **options: Any) -> Loop:
    loop = Loop(**options)
    for _ in loop.run(epochs):
        pass
    loop.replanner.close()
    return loop
