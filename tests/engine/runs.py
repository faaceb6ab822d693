"""Small real trainings that several test modules share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
from torch import Tensor

from mbcl.config.base import validate
from mbcl.config.experiment import Experiment
from mbcl.distributed.collectives import World
from mbcl.engine import Trainer
from mbcl.io.store import LocalStore
from mbcl.planner import PlanService

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


EXACT = 1e-9
"""Bound on the relative difference between two equivalent float64 trainings, as a share of the largest entry.

A sum of n numbers rounds by about 1e-16 times the square root of n. A few training steps amplify a rounding error by a
factor of a thousand and more, which leaves a margin on any processor and with any number of threads. In float32 sums
round by 1e-7, and the same training leaves no margin.
"""


def exact(
    sampler: str | dict[str, Any] = "shuffle", *, train: dict[str, Any] | None = None, **changes: Any
) -> Experiment:
    """The experiment in float64, on half the images: 90 training images, 5 steps an epoch.

    Plans from embeddings are stable, too: planning compares sums that differ by far more than 1e-13.
    """
    data = {"name": "digits", "max_samples": 100}
    block = {"epochs": 2, "batch_size": 16, "precision": "float64", **(train or {})}
    return experiment(sampler, **{"data": data, **changes}, train=block)


Trained = tuple[list[float], dict[str, Tensor], list[dict[str, Any]]]
"""The losses of all steps, the weights and buffers, the rows."""


def assert_alike(actual: Trained, expected: Trained) -> None:
    """Assert that two float64 trainings have equal losses, weights, buffers and rows, except for times."""
    assert actual[0] == pytest.approx(expected[0], rel=EXACT)
    assert largest_difference(actual[1], expected[1]) < EXACT
    for row, other in zip(actual[2], expected[2], strict=True):
        for key in row:
            if not key.startswith("time/") and key != "plan/seconds":
                assert row[key] == (other[key] if other[key] is None else pytest.approx(other[key], rel=EXACT)), key


class Recorder:
    """An observer that records its calls."""

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


def run(world: World, folder: Path | str, content: Experiment, plans: PlanService | None = None) -> Trained:
    """Train, and return the losses of all steps, the weights and buffers, and the rows."""
    recorder = Recorder()
    trainer = Trainer(content, world=world, store=LocalStore(folder), plans=plans, observers=[recorder])
    trainer.resume()
    trainer.run()
    state = {key: value.clone() for key, value in trainer.learner.model.state_dict().items()}
    return recorder.losses, state, recorder.rows


def run_with_children(*arguments: Any) -> Trained:
    """Train as :func:`run` in a rank of gloo that may have a planning process."""
    gloo.allow_children()
    return run(*arguments)


def largest_difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any tensor, relative to its largest entry."""
    assert list(actual) == list(expected)
    worst = 0.0
    for key, tensor in expected.items():
        scale = float(tensor.abs().max()) or 1.0
        difference = float((actual[key] - tensor).abs().max()) / scale
        assert difference == difference, f"{key} is not a number"
        worst = max(worst, difference)
    return worst


def equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether all tensors are the same to the last bit."""
    return list(actual) == list(expected) and all(torch.equal(actual[key], expected[key]) for key in expected)


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
    """Begin a training and stop it as a kill would, ``after_step`` or ``after_epoch``."""
    try:
        trainer = Trainer(content, world=world or World(), store=LocalStore(folder), observers=[_Stopper(**when)])
        trainer.resume()
        trainer.run()
    except _Stop:
        return
    raise AssertionError(f"the training ended before {when}")
