"""Planned batches in a Lightning ``Trainer``, which puts its own samplers into loaders otherwise."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mbcl.errors import ConfigError
from mbcl.integrations._state import check_ranks, check_samples, end, load, save
from mbcl.torch import PlannedBatchSampler

STATE_KEY = "planned_batches"
"""The key of a Lightning checkpoint that holds the state of the plans."""


class PlannedBatches(Callback):
    """Checks that a ``Trainer`` trains on planned batches, and keeps their state in its checkpoints.

    For example::

        batches = PlannedBatchSampler("plan.npz")
        trainer = Trainer(..., use_distributed_sampler=False, callbacks=[PlannedBatches(batches)])
        trainer.fit(module, DataLoader(dataset, batch_sampler=batches))

    Lightning tells the epoch. A fit that resumes in mid-epoch (``ckpt_path``) continues behind the last batch that was
    trained on, whatever a ``DataLoader`` with workers had taken ahead; Lightning alone would begin the epoch again, of
    which it warns ("your dataloader is not resumable"). A :class:`~mbcl.torch.Replanner` is in the checkpoint, too.

    Args:
        batches: the batch sampler of the training's loader.
    """

    def __init__(self, batches: PlannedBatchSampler) -> None:
        self.batches = batches

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the trainer.

        Raises:
            ConfigError: if it would replace the batch sampler.
        """
        if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
            raise ConfigError("planned batches on several ranks need Trainer(use_distributed_sampler=False)")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the training's loader.

        Raises:
            ConfigError: if it has other batches, or those of another data set or rank.
        """
        loader = trainer.train_dataloader
        if getattr(loader, "batch_sampler", None) is not self.batches:
            raise ConfigError("the training's DataLoader has another batch sampler than the callback")
        check_samples(self.batches, loader.dataset)
        check_ranks(self.batches, trainer.global_rank, trainer.world_size)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the background process of a :class:`~mbcl.torch.Replanner`, and the plan that it may be making."""
        if stage == "fit":
            end(self.batches)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the background process, too: an error ends a training without :meth:`teardown`."""
        end(self.batches)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state of the plans, after as many batches as Lightning counts."""
        done = trainer.fit_loop.epoch_loop.batch_progress.current.processed
        step = min(done, self.batches.step)  # that of the epoch before may stand yet
        state = save(self.batches, step)
        if step >= trainer.num_training_batches:
            state["batches"] = {"epoch": self.batches.epoch + 1, "step": 0, "digest": ""}
        checkpoint[STATE_KEY] = state

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the plans, and continue behind the last batch that was trained on.

        Raises:
            CheckpointError: if the checkpoint has other plans, or none.
        """
        load(self.batches, checkpoint.get(STATE_KEY, {}))
