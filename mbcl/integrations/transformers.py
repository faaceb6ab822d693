"""Planned batches in Hugging Face's ``Trainer`` and in loops on ``accelerate``, which shard a batch sampler otherwise.

Letters: S batches of an epoch, b samples of a rank's batch, W ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from mbcl.errors import CheckpointError, ConfigError
from mbcl.integrations._state import check_ranks, check_samples, end, load, save
from mbcl.torch import PlannedBatchSampler

STATE_FILE = "planned_batches.pt"
"""The file of a checkpoint of the ``Trainer`` that holds the state of the plans."""
LOADER_OPTIONS = (
    "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator",
    "prefetch_factor", "persistent_workers",
)  # fmt: skip


class PlannedDataLoader(DataLoaderShard):
    """The ``DataLoader`` of planned batches for a loop on ``accelerate``.

    ``Accelerator.prepare`` leaves it as it is. The batch sampler of another loader it would shard: each of W ranks
    would train on every W-th batch. Here every rank yields its columns of each batch, and ``split_batches``,
    ``dispatch_batches`` and ``even_batches`` have no effect.

    The loader counts the epochs; ``set_epoch`` chooses one. Its :meth:`state_dict` counts the batches that the loop
    was given, though accelerate takes one ahead: save it, or give it to ``Accelerator.register_for_checkpointing``.
    After :meth:`load_state_dict` the next iteration begins behind the last batch, so ``skip_first_batches`` would skip
    twice. A :class:`~mbcl.torch.Replanner` is in the state; on several ranks saving is a collective call then.

    Args:
        accelerator: whose device the batches are moved to.
        dataset: with positions, of N samples.
        batches: the batch sampler.
        options: of the ``DataLoader``, such as ``num_workers`` and ``collate_fn``.

    Raises:
        ConfigError: if the data set or the ranks are not those of the batch sampler.
    """

    def __init__(
        self, accelerator: Accelerator, dataset: Dataset[Any], batches: PlannedBatchSampler, **options: Any
    ) -> None:
        check_samples(batches, dataset)
        check_ranks(batches, accelerator.process_index, accelerator.num_processes)
        self._batches = batches
        device = accelerator.device if accelerator.device_placement else None
        # With `_drop_last` accelerate takes no last batch for one that was padded, of which it would cut metrics.
        options |= {"iteration": batches.epoch, "_drop_last": True}
        super().__init__(dataset, device=device, batch_sampler=batches, **options)
        self._is_accelerate_prepared = True  # `Accelerator.prepare` leaves such objects as they are
        self._given = batches.start

    @property
    def iteration(self) -> int:
        """The epoch of the next iteration."""
        return self._batches.epoch

    @iteration.setter
    def iteration(self, epoch: int) -> None:
        self._batches.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        """Yield the epoch's batches, on the accelerator's device; behind the last one comes the next epoch."""
        epoch = self.iteration
        for given, batch in enumerate(super().__iter__(), start=self._batches.start + 1):
            self._given = given
            yield batch
        # accelerate does not count an epoch without batches, the rest of one that was saved behind its last.
        self.iteration, self._given = epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return where the loop stands, as tensors and plain values."""
        return save(self._batches, self._given)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the last batch that the loop was given before :meth:`state_dict`."""
        load(self._batches, state)
        self._given = self._batches.start


class PlannedCallback(TrainerCallback):
    """Tells planned batches the epoch, and keeps their state in the checkpoints of a ``Trainer``.

    Args:
        batches: the batch sampler that the trainer has.
    """

    def __init__(self, batches: PlannedBatchSampler) -> None:
        self.batches = batches
        self._num_batches = 0
        self._epoch = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Check the arguments, and restore the plans of the checkpoint that the training resumes from.

        Raises:
            ConfigError: if the trainer would change the batches or their order.
            CheckpointError: if the checkpoint has other plans, or none.
        """
        check_arguments(args, self.batches)
        self._check_loader(rest.get("train_dataloader"))
        self._num_batches = len(self.batches)
        self._epoch = state.global_step // self._updates(args)
        if state.global_step:
            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE
            if not file.is_file():
                raise CheckpointError(f"{file} is missing: planned batches resume from a checkpoint in output_dir")
            load(self.batches, torch.load(file, weights_only=True), skipped=True)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Choose the epoch.

        Raises:
            ConfigError: if the epoch has another number of batches than the first, which the trainer counts with.
        """
        self.batches.set_epoch(self._epoch)
        self._epoch += 1
        if len(self.batches) != self._num_batches:
            raise ConfigError(
                f"epoch {self.batches.epoch} has {len(self.batches)} batches, the one before {self._num_batches}: a "
                "Trainer needs the same number in every epoch"
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Add the state of the plans to the checkpoint."""
        step = state.global_step % self._updates(args) * args.gradient_accumulation_steps
        content = save(self.batches, step)
        if args.should_save:
            torch.save(content, Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """End the background process of a :class:`~mbcl.torch.Replanner`, and the plan that it may be making."""
        end(self.batches)

    def _updates(self, args: TrainingArguments) -> int:
        """The optimizer's steps of an epoch, as the ``Trainer`` counts them."""
        return max(1, -(-self._num_batches // int(args.gradient_accumulation_steps)))

    def _check_loader(self, loader: Any) -> None:
        """Check that the training's loader has the batch sampler, itself or within those of accelerate."""
        sampler = getattr(loader, "batch_sampler", None)
        while sampler is not None and sampler is not self.batches:
            sampler = getattr(sampler, "batch_sampler", None)
        if sampler is None:
            raise ConfigError(f"the training's DataLoader has other batches than the planned ones: {type(loader)}")


def train_on(trainer: Trainer, batches: PlannedBatchSampler) -> None:
    """Let a ``Trainer`` train on planned batches: call it before ``trainer.train()``.

    Whatever the trainer does with its data otherwise (columns, ``data_collator``, workers), it still does. Evaluation
    does not change. However ``trainer.train()`` ends, it ends the background process of a
    :class:`~mbcl.torch.Replanner`. With ``resume_from_checkpoint`` the trainer skips the batches that it has trained
    on, without loading their samples. ``per_device_train_batch_size`` is b.

    Args:
        trainer: any ``transformers.Trainer``.
        batches: the batch sampler.

    Raises:
        ConfigError: when the training begins, if the trainer's arguments contradict the batches.
    """
    make_loader = trainer.get_train_dataloader

    def get_train_dataloader() -> PlannedDataLoader:
        check_arguments(trainer.args, batches)
        given = make_loader()
        options = {name: getattr(given, name) for name in LOADER_OPTIONS}
        return PlannedDataLoader(trainer.accelerator, given.dataset, batches, **options)

    train = trainer.train

    def train_and_end(*arguments: Any, **options: Any) -> TrainOutput:
        try:
            return train(*arguments, **options)
        finally:
            end(batches)  # an error ends a training without `on_train_end`

    trainer.get_train_dataloader = get_train_dataloader
    trainer.train = train_and_end
    trainer.add_callback(PlannedCallback(batches))


def check_arguments(args: TrainingArguments, batches: PlannedBatchSampler) -> None:
    """Check that a ``Trainer`` with these arguments trains on the planned batches, in their order.

    Raises:
        ConfigError: naming the argument, if it does not.
    """
    check_ranks(batches, args.process_index, args.world_size)
    config = args.accelerator_config
    strategy = getattr(args, "train_sampling_strategy", "random")
    parallel = getattr(args, "parallelism_config", None)
    wrong = {
        f"per_device_train_batch_size: a batch of each rank holds {batches.batch_size} samples, not "
        f"{args.train_batch_size}": args.train_batch_size != batches.batch_size,
        "auto_find_batch_size: the plan has the batch size": args.auto_find_batch_size,
        f"train_sampling_strategy: the plan has the order, not {strategy!r}": strategy != "random",
        "dataloader_drop_last: the batches were made with drop_last=False": (
            args.dataloader_drop_last and not batches.drop_last
        ),
        "ignore_data_skip: a resumed epoch would begin again; batches are skipped without loading their samples": (
            args.ignore_data_skip
        ),
        "accelerator_config: split_batches would divide the batches of each rank again": config.split_batches,
        "accelerator_config: dispatch_batches would give all ranks the batches of rank 0": config.dispatch_batches,
        "parallelism_config: ranks that share samples are not supported": (
            parallel is not None and parallel.non_data_parallel_size > 1
        ),
    }
    for message, applies in wrong.items():
        if applies:
            raise ConfigError(message)
