"""A trial that prints its peak bytes by stage as JSON. A peak never falls, so every trial needs a process of its own.

``python memory_trial.py EXPERIMENT EVALUATION FOLDER``, the first two as JSON; an empty EVALUATION for none.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from mbcl.bench.measure import memory_bytes
from mbcl.config.base import validate
from mbcl.config.evaluation import Evaluation
from mbcl.config.experiment import Experiment
from mbcl.distributed.collectives import World
from mbcl.engine import train
from mbcl.evaluation import evaluate
from mbcl.io.store import LocalStore


class Peaks:
    """An observer of the peak after each epoch."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def note(self, stage: str) -> None:
        self.of[stage] = memory_bytes("VmHWM", "cpu")

    def on_step(self, step: int, loss: float, lr: float) -> None: ...

    def on_checkpoint(self) -> None: ...

    def on_epoch(self, row: Any) -> None:
        self.note(f"epoch {row['epoch']}")

    def close(self) -> None: ...


def main(experiment: dict[str, Any], evaluation: dict[str, Any], folder: str) -> dict[str, int]:
    torch.set_num_threads(1)
    peaks, store = Peaks(), LocalStore(folder)
    train(validate(Experiment, experiment, "experiment"), world=World(), store=store, observers=[peaks])
    for metric in evaluation.get("metrics", []):
        evaluate(store, settings=validate(Evaluation, evaluation | {"metrics": [metric]}, "evaluation"))
        peaks.note(metric)
    return peaks.of


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3])))
