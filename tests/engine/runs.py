"""Small real trainings that several test modules share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbcl.configuration import validate
from mbcl.dist import World
from mbcl.engine import PlanService, Trainer
from mbcl.experiment import Experiment
from mbcl.storage import LocalStore

SAMPLERS = {
    "shuffle": {"name": "shuffle"},
    "fixed": {"name": "fixed"},
    "osgd": {"name": "osgd", "k": 4, "q": 2},
    "spectral": {"name": "spectral", "k": 2},
}


def experiment(sampler: str | dict[str, Any] = "shuffle", **changes: Any) -> Experiment:
    """A tiny experiment on real digits: 180 training images, 11 steps an epoch."""
    content: dict[str, Any] = {
        "data": {"name": "digits", "max_samples": 200},
        "encoder": {"name": "resnet_small", "widths": [8, 16]},
        "projector": {"hidden": 32, "dim": 16, "activation": "silu"},
        "sampler": SAMPLERS[sampler] if isinstance(sampler, str) else sampler,
        "optimizer": {"name": "lars", "lr": 0.05},
        "schedule": {"warmup_epochs": 1},
        "train": {"epochs": 2, "batch_size": 16},
        "embeddings": {"batch_size": 64},
        "track": [],
    }
    return validate(Experiment, {**content, **changes}, "test")


class Recorder:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.rows: list[dict[str, Any]] = []
        self.closed = 0
        self.checkpoints = 0

    def on_step(self, step: int, loss: float, lr: float) -> None:
        self.steps.append(step)
        self.losses.append(loss)
        self.rates.append(lr)

    def on_checkpoint(self) -> None:
        self.checkpoints += 1

    def on_epoch(self, row: Any) -> None:
        self.rows.append(dict(row))

    def close(self) -> None:
        self.closed += 1


def run(
    world: World, folder: Path | str, content: Experiment, plans: PlanService | None = None
) -> tuple[list[float], dict[str, Tensor], list[dict[str, Any]]]:
    """Train; the losses of all steps, the weights and buffers, the rows."""
    recorder = Recorder()
    trainer = Trainer(content, world=world, store=LocalStore(folder), plans=plans, observers=[recorder])
    trainer.resume()
    trainer.run()
    state = {key: value.clone() for key, value in trainer.learner.model.state_dict().items()}
    return recorder.losses, state, recorder.rows


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any tensor, relative to its largest entry."""
    assert list(found) == list(expected)
    worst = 0.0
    for key, tensor in expected.items():
        scale = float(tensor.abs().max()) or 1.0
        difference = float((found[key] - tensor).abs().max()) / scale
        assert difference == difference, f"{key} is not a number"
        worst = max(worst, difference)
    return worst


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether all tensors are the same to the last bit."""
    return list(found) == list(expected) and all(torch.equal(found[key], expected[key]) for key in expected)


class _Stop(Exception):
    pass


class _Stopper(Recorder):
    def __init__(self, *, after_step: int | None = None, after_epoch: int | None = None) -> None:
        super().__init__()
        self._after_step = after_step
        self._after_epoch = after_epoch

    def on_step(self, step: int, loss: float, lr: float) -> None:
        if step == self._after_step:
            raise _Stop

    def on_epoch(self, row: Any) -> None:
        if row["epoch"] == self._after_epoch:
            raise _Stop


def interrupt(folder: Path | str, content: Experiment, world: World | None = None, **when: int) -> None:
    """Begin a training and break off, as a kill at that moment would leave it: ``after_step`` or ``after_epoch``."""
    try:
        trainer = Trainer(content, world=world or World(), store=LocalStore(folder), observers=[_Stopper(**when)])
        trainer.resume()
        trainer.run()
    except _Stop:
        return
    raise AssertionError(f"the training ended before {when}")
