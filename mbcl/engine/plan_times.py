"""When an experiment plans, and how many forward passes that makes of a training.

The unit of work is a **forward pass**: both views of one image through the encoder. An image that is embedded for a
plan takes one. An image that is trained on takes ``TRAINED`` of them, because a backward pass has about twice the
operations of its forward pass: one matrix product for the gradient of the inputs and one for that of the weights.
Validation, evaluation, and what cached accumulation computes again to save memory are not counted.
"""

from __future__ import annotations

from typing import Any

from mbcl.config.experiment import Experiment
from mbcl.engine.setup import Samples
from mbcl.planner.plans import PlanKey

TRAINED = 3
"""The forward passes that training on an image counts for: the forward pass itself, and a backward pass of twice it."""


class PlanTimes:
    """The keys of an experiment's plans from embeddings. They depend on the experiment and the step alone.

    Args:
        experiment: the experiment, checked against its data.
        samples: the training samples.
    """

    def __init__(self, experiment: Experiment, samples: Samples) -> None:
        self._experiment = experiment
        self._samples = samples
        self._plan_lengths: dict[tuple[tuple[str, Any], ...], int] = {}
        self.steps_per_epoch = samples.steps_per_epoch(experiment.train.batch_size)

    def key(self, epoch: int, round_: int) -> PlanKey:
        """Return the key of a round's plan, or of the joined plan of all rounds of the epoch."""
        length = self._plan_length(epoch)
        steps = self.steps_per_epoch - round_ * length
        rounds = 1 if self._experiment.embeddings.refresh == "round" else -(-steps // length)
        return PlanKey(epoch, round_, rounds, steps)

    def due_after(self, epoch: int, round_: int, step: int) -> PlanKey | None:
        """Return the key of the next plan from embeddings after a round that ends at ``step``; None if none is due."""
        planned_in = self._experiment.planner.planned_in
        if step < self.steps_per_epoch:
            return self.key(epoch, round_ + 1) if planned_in(epoch) == epoch else None
        following = epoch + 1
        if following < self._experiment.train.epochs and planned_in(following) == following:
            return self.key(following, 0)
        return None

    def embedding_passes(self) -> int:
        """Return how often the training embeds all its images for plans."""
        experiment = self._experiment
        planner, epochs = experiment.planner, experiment.train.epochs
        if not experiment.build_sampler().needs_embeddings or planner.warmup_epochs >= epochs:
            return 0
        if experiment.embeddings.source == "cached":
            return 1  # before the first plan
        passes, requested = 0, False  # whether the next plan is on its way
        for epoch in range(epochs):
            step = round_ = 0
            while step < self.steps_per_epoch:
                embedded = planner.planned_in(epoch) == epoch and not requested
                passes += embedded
                step += self._length(epoch, round_)
                requested = bool(planner.overlap) and self.due_after(epoch, round_, step) is not None
                passes += requested and not embedded  # the second plan comes from the embeddings of the first
                round_ += 1
        return passes

    def _length(self, epoch: int, round_: int) -> int:
        """Return the number of batches of the plan of a round that an epoch trains on."""
        planned_in = self._experiment.planner.planned_in(epoch)
        if planned_in is None:
            return self.steps_per_epoch  # the batches of shuffle
        rounds = self.key(planned_in, round_).rounds
        return rounds * self._plan_length(planned_in)

    def _plan_length(self, epoch: int) -> int:
        """Return the number of batches of one plan of a planned epoch."""
        scheduled = tuple(self._experiment.planner.schedule.at(epoch).items())
        if scheduled not in self._plan_lengths:  # to bind ids takes time
            sampler = self._samples.bind(self._experiment.build_sampler(epoch))
            self._plan_lengths[scheduled] = sampler.plan_length(self._samples.number)
        return self._plan_lengths[scheduled]


def forward_passes(experiment: Experiment, samples: Samples) -> int:
    """Return the forward passes of a whole training, as its last row has them under ``work/passes``.

    Example:
        An epoch of 10 steps of 32 images with one plan from fresh embeddings of 330 images makes
        3 * 320 + 330 = 1290 forward passes.
    """
    times = PlanTimes(experiment, samples)
    trained = experiment.train.epochs * times.steps_per_epoch * experiment.train.batch_size
    return TRAINED * trained + samples.number * times.embedding_passes()
