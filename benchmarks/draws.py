"""Processor time of measuring retrieval over draws of the views, against that of an epoch.

python benchmarks/draws.py

Two cases, with the encoder, batch size and views of the shipped spaces, on one thread: the digits of
``tune_spaces/digits.yaml``; and Fashion-MNIST of ``tune_spaces/fashion_mnist.yaml``, 60,000 training and 10,000 test
images of 28 pixels. There an epoch is 843 times the mean of 60 steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from mbcl.config.base import validate as validated
from mbcl.config.evaluation import Evaluation
from mbcl.config.experiment import Experiment, read_experiment
from mbcl.distributed.collectives import World
from mbcl.engine.build import build_learner
from mbcl.engine.setup import SplitData, load_data, model_of
from mbcl.engine.validation import validate
from mbcl.evaluation.measures import measure_retrieval
from mbcl.evaluation.subject import Subject
from mbcl.models import ContrastiveModel


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median of the processor seconds of a call."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return median(taken)


def measure(title: str, experiment: Experiment, data: SplitData, steps: int, repeats: int) -> None:
    """Print the processor seconds of an epoch, of validation, and of the evaluation's draws."""
    size, settings = experiment.train.batch_size, experiment.evaluation
    model = model_of(experiment, in_channels=data.train.channels)
    learner = build_learner(experiment, data, model, World())
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    batches = order[: steps * size].view(steps, size)
    learner.step(batches[0], epoch=0, lr=0.01)  # code is loaded, memory is there

    def train() -> None:
        for batch in batches:
            learner.step(batch, epoch=0, lr=0.01)

    epoch = seconds(train, repeats) * (len(data.train) // size) / steps
    print(f"{title}: an epoch of {len(data.train)} images {epoch:.2f} s", flush=True)
    for draws in (1, settings.validation_draws):
        block = settings.model_copy(update={"validation_draws": draws})
        taken = seconds(partial(validate, learner, data.validation, block, seed=0, epoch=0), repeats)
        share = f"{taken / epoch:.1%} of the epoch"
        print(f"  validation of {len(data.validation)} images, {draws} draws: {taken:.3f} s, {share}", flush=True)
    model.eval()
    taken = seconds(lambda: measure_retrieval(_subject(experiment, model, data, settings)), repeats)
    share = f"{taken / epoch:.1%} of the epoch"
    print(f"  retrieval among {len(data.test)} images, {settings.draws} draws: {taken:.3f} s, {share}", flush=True)


def _subject(experiment: Experiment, model: ContrastiveModel, data: SplitData, block: Evaluation) -> Subject:
    return Subject(model, data, experiment.data, block, 0, torch.device("cpu"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    digits = validated(Experiment, read_experiment("tune_spaces/digits.yaml"), "digits")
    parts = load_data(digits.data, seed=0)
    measure("digits", digits, parts, steps=len(parts.train) // digits.train.batch_size, repeats=5)
    clothes = validated(Experiment, read_experiment("tune_spaces/fashion_mnist.yaml"), "fashion_mnist")
    measure("Fashion-MNIST", clothes, load_data(clothes.data, seed=0), steps=60, repeats=1)
