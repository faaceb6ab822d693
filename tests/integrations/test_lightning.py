"""Lightning trains on the planned batches, cut and resumed, on two ranks too."""

from __future__ import annotations

from pathlib import Path

import gloo
import pytest
import torch
from integrations.towers import (
    EPOCHS,
    STEPS,
    N,
    Towers,
    describe_rank,
    distance,
    epochs_of,
    free_port,
    joined,
    plan,
    samples,
)
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mbcl.engine.gradient_parity import EXACT
from mbcl.errors import CheckpointError, ConfigError
from mbcl.integrations.lightning import PlannedBatches
from mbcl.torch import PlannedBatchSampler


class Module(LightningModule):
    def __init__(self, crash=None):
        super().__init__()
        self.towers = Towers(crash)

    def training_step(self, batch, batch_idx):
        return self.towers(*batch)["loss"]

    def validation_step(self, batch, batch_idx):
        self.log("z", self.towers.encoder(batch[0]).sum(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def loader(batches, workers=0):
    return DataLoader(TensorDataset(samples(), torch.arange(N)), batch_sampler=batches, num_workers=workers)


def trained(folder, kind="plan", *, ranks=1, crash=None, resume=None, workers=0, validate=False, every=None, **options):
    """Train; with ``crash`` until an error, with ``resume`` on from a checkpoint."""
    module = Module(crash)
    batches = module.towers.batches(kind)  # before the process group of several ranks exists
    callbacks = [PlannedBatches(batches)]
    if every:
        callbacks.append(ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1))
    defaults = {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "devices": ranks,
        "strategy": "ddp" if ranks > 1 else "auto",
        "use_distributed_sampler": False,
        "logger": False,
        "enable_checkpointing": bool(every),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    trainer = Trainer(callbacks=callbacks, **defaults | options)
    evaluated = DataLoader(TensorDataset(samples()), batch_size=4) if validate else None
    if crash is None:
        trainer.fit(module, loader(batches, workers), evaluated, ckpt_path=resume)
    else:
        with pytest.raises(InterruptedError):
            trainer.fit(module, loader(batches, workers), evaluated, ckpt_path=resume)
    return module.towers


@pytest.mark.parametrize("workers", [0, 1])
def test_lightning_trains_on_the_plan(tmp_path, workers):
    assert trained(tmp_path, workers=workers, validate=True).seen == epochs_of()


def test_an_error_ends_the_planning_process(tmp_path):
    """The first plan beside the training has been requested by then."""
    first = trained(tmp_path, "beside", crash=STEPS + 2)
    assert first.replanner._service._background._pool is None


def test_the_short_batch_is_the_last_of_each_epoch(tmp_path):
    assert trained(tmp_path, "short").seen == epochs_of(drop_last=False)


@pytest.mark.parametrize("kind", ["plan", "cached"])
@pytest.mark.parametrize("steps", [4, STEPS, STEPS + 3])
@pytest.mark.parametrize("validate", [False, True])
def test_a_resumed_fit_equals_the_uncut_one(tmp_path, kind, steps, validate):
    """The checkpoint lies before, at and behind the end of an epoch; the error comes two batches later."""
    whole = trained(tmp_path, kind, validate=validate)
    first = trained(tmp_path, kind, crash=steps + 2, every=steps, validate=validate)
    second = trained(tmp_path, kind, resume=tmp_path / f"step={steps}.ckpt", validate=validate)
    assert first.seen == whole.seen[: steps + 2]
    assert first.seen[:steps] + second.seen == whole.seen
    assert second.weights() == whole.weights()
    if kind == "plan":
        assert whole.seen == epochs_of()
    if whole.replanner:
        assert whole.replanner.newest.lift > 1


@pytest.mark.parametrize("steps", [4, STEPS, STEPS + 3])
def test_a_resumed_fit_does_not_count_what_workers_took_ahead(tmp_path, steps):
    first = trained(tmp_path, crash=steps + 1, every=steps, workers=1)
    second = trained(tmp_path, resume=tmp_path / f"step={steps}.ckpt", workers=1)
    assert first.seen[:steps] + second.seen == epochs_of()


@pytest.mark.parametrize("steps", [3, 4, 6])
def test_epochs_that_lightning_cuts_short_are_resumed_at_their_end(tmp_path, steps):
    whole = trained(tmp_path, limit_train_batches=4)
    every = epochs_of()
    assert whole.seen == every[:4] + every[STEPS : STEPS + 4] + every[2 * STEPS : 2 * STEPS + 4]
    first = trained(tmp_path, crash=steps + 1, every=steps, limit_train_batches=4)
    second = trained(tmp_path, resume=tmp_path / f"step={steps}.ckpt", limit_train_batches=4)
    assert first.seen[:steps] + second.seen == whole.seen


def test_a_fit_of_more_epochs_goes_on_behind_the_last(tmp_path):
    """The checkpoints are written at the end of epochs, and after the last."""
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    seen, path = [], None
    for epochs in (1, EPOCHS):
        module = Module()
        batches = module.towers.batches("plan")
        at_end = ModelCheckpoint(tmp_path, f"epoch-{epochs}", save_last=True)
        trainer = Trainer(max_epochs=epochs, callbacks=[PlannedBatches(batches), at_end], **options)
        trainer.fit(module, loader(batches), ckpt_path=path)
        path = tmp_path / "after.ckpt"
        trainer.save_checkpoint(path)
        seen += module.towers.seen
    assert seen == epochs_of()


def test_a_checkpoint_of_another_plan_is_refused(tmp_path):
    trained(tmp_path, crash=5, every=4)
    module = Module()
    batches = PlannedBatchSampler(type(plan())(torch.arange(STEPS * 4).view(STEPS, 4), "own"))
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    path = tmp_path / "step=4.ckpt"
    with pytest.raises(CheckpointError, match="after 4 batches of epoch 0 of another plan"):
        Trainer(callbacks=[PlannedBatches(batches)], **options).fit(module, loader(batches), ckpt_path=path)
    with pytest.raises(CheckpointError, match="both must have one, or none"):
        trained(tmp_path, "fresh", resume=path)


def test_a_loader_with_other_batches_or_samples_is_refused(tmp_path):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    batches = PlannedBatchSampler(plan(), num_samples=N + 1)
    trainer = Trainer(callbacks=[PlannedBatches(batches)], max_epochs=1, **options)
    with pytest.raises(ConfigError, match="the plan is of 27 samples, the data set has 26"):
        trainer.fit(Module(), loader(batches))
    with pytest.raises(ConfigError, match="has another batch sampler than the callback"):
        trainer.fit(Module(), loader(PlannedBatchSampler(plan())))


# -- two ranks -----------------------------------------------------------------------------------------------------


def _train_on_a_rank(world, port, folder, kind):
    describe_rank(world, port)
    whole = trained(folder, kind, ranks=world.size)
    first = trained(folder, kind, ranks=world.size, crash=STEPS + 4, every=STEPS + 2)
    second = trained(folder, kind, ranks=world.size, resume=Path(folder, f"step={STEPS + 2}.ckpt"))
    resumed = first.seen[: STEPS + 2] + second.seen == whole.seen
    return whole.seen, whole.weights(), resumed and second.weights() == whole.weights()


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["plan", "short", "cached"])
def test_two_ranks_train_on_their_columns_and_resume(tmp_path, kind):
    """With the gathered batch the weights are those of one rank, but for rounding."""
    (one, weights, resumed), (other, other_weights, other_resumed) = gloo.run(
        _train_on_a_rank, 2, free_port(), tmp_path, kind
    )
    alone = trained(tmp_path, kind)
    assert joined([one, other]) == alone.seen
    assert resumed
    assert other_resumed
    assert weights == other_weights
    assert distance(weights, alone.weights()) < EXACT


def _distributed_sampler_on_a_rank(world, port):
    describe_rank(world, port)
    try:
        trained(Path(), ranks=world.size, use_distributed_sampler=True)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.dist
def test_a_distributed_sampler_is_refused():
    messages = gloo.run(_distributed_sampler_on_a_rank, 2, free_port())
    assert messages == ["planned batches on several ranks need Trainer(use_distributed_sampler=False)"] * 2
