"""Planned batches in a ``SentenceTransformerTrainer``, through ``batch_sampler`` of its training arguments.

Letters: N samples of the data set, S batches of an epoch, b samples of a rank's batch, W ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import BatchSampler, SequentialSampler
from transformers import TrainerControl, TrainerState, TrainingArguments

from mbcl.errors import ConfigError
from mbcl.integrations.transformers import PlannedCallback
from mbcl.torch import PlannedBatchSampler


class PlannedBatches(PlannedCallback):
    """Planned batches for a ``SentenceTransformerTrainer``, which receives them as batch sampler and as callback.

    For example::

        planned = PlannedBatches(PlannedBatchSampler("plan.npz", num_samples=len(dataset)))
        args = SentenceTransformerTrainingArguments(..., per_device_train_batch_size=b, batch_sampler=planned)
        trainer = SentenceTransformerTrainer(..., args=args, train_dataset=dataset, callbacks=[planned])

    The callback tells the epoch, and keeps a :class:`~mbcl.torch.Replanner` in the checkpoints. An error in a training
    does not reach it: ``with replanner: trainer.train()`` ends the background process then, too. Evaluation during a
    training has the batches of the evaluation set in its own order; so has ``trainer.evaluate()`` otherwise, unless
    that set has N samples and ``per_device_eval_batch_size`` is b.

    Args:
        batches: the batch sampler.
    """

    def __init__(self, batches: PlannedBatchSampler) -> None:
        super().__init__(batches)
        self._has_trainer = False
        self._trains = False

    def __call__(self, dataset: Any, batch_size: int, drop_last: bool, **rest: Any) -> BatchSampler:
        """Return the batch sampler of a data set: the planned one for that of the training."""
        fits = batch_size == self.batches.batch_size and self.batches.num_samples in (None, len(dataset))
        if self._trains or not fits:
            return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)
        return _ForShards(self)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the plans out of the arguments that the trainer pickles into its checkpoints."""
        return {}

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Note that the trainer has the callback."""
        self._has_trainer = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Check the arguments, and restore the plans of the checkpoint that the training resumes from."""
        if self._trains:
            raise ConfigError("a training on these planned batches was broken off: make them and the trainer anew")
        if args.world_size > 1 and not self.batches.drop_last and args.accelerator_config.even_batches:
            raise ConfigError(
                "accelerator_config: even_batches would fill the last, short batch with samples of the first; with "
                "drop_last=False it must be false on several ranks"
            )
        super().on_train_begin(args, state, control, **rest)
        self._has_trainer = self._trains = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Note that what is evaluated later is no part of a training."""
        super().on_train_end(args, state, control, **rest)
        self._trains = False

    def check_trainer(self) -> None:
        """Check that the trainer has the callback.

        Raises:
            ConfigError: if it has not.
        """
        if not self._has_trainer:
            raise ConfigError("the trainer needs the planned batches as a callback, too: callbacks=[planned]")


class _ForShards(BatchSampler):
    """A rank's batches, each W times: accelerate deals a batch sampler's batches out to W ranks, one each in turn."""

    def __init__(self, planned: PlannedBatches) -> None:
        self._planned = planned
        self.batch_sampler = planned.batches
        self.drop_last = planned.batches.drop_last

    @property
    def batch_size(self) -> int:  # type: ignore[override]  # not an attribute
        """The samples of a batch, b."""
        return self.batch_sampler.batch_size

    def __len__(self) -> int:
        return len(self.batch_sampler) * self.batch_sampler.world_size

    def __iter__(self) -> Iterator[list[int]]:
        self._planned.check_trainer()
        size = self.batch_sampler.world_size
        for batch in self.batch_sampler:
            for _ in range(size):
                yield batch
