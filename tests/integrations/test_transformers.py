"""Hugging Face's ``Trainer`` and loops on accelerate train on the planned batches, cut and resumed, on two ranks."""

from __future__ import annotations

from pathlib import Path

import gloo
import pytest
import torch
from integrations.towers import (
    EPOCHS,
    STEPS,
    B,
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
from torch.utils.data import DataLoader, Dataset

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from accelerate import Accelerator, skip_first_batches
from transformers import Trainer, TrainingArguments

import mbcl
from mbcl.engine.gradient_parity import EXACT
from mbcl.errors import CheckpointError, ConfigError
from mbcl.integrations.transformers import PlannedDataLoader, train_on
from mbcl.torch import PlannedBatchSampler


class Samples(Dataset):
    def __init__(self):
        self.x = samples()

    def __len__(self):
        return N

    def __getitem__(self, position):
        return {"x": self.x[position], "position": position}


def arguments(folder, world_size=1, **options):
    defaults = {
        "per_device_train_batch_size": B // world_size,
        "num_train_epochs": EPOCHS,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "ddp_backend": "gloo" if world_size > 1 else None,
        "logging_strategy": "no",
    }
    return TrainingArguments(output_dir=str(folder), **defaults | options)


def trained(folder, kind="plan", *, world_size=1, crash=None, resume=False, **options):
    """Train; with ``crash`` until an error, with ``resume`` on from the newest checkpoint."""
    model = Towers(crash)
    batches = model.batches(kind)  # before the process group of several ranks exists
    trainer = Trainer(model, arguments(folder, world_size, **options), train_dataset=Samples())
    train_on(trainer, batches)
    if crash is None:
        trainer.train(resume_from_checkpoint=resume)
    else:
        with pytest.raises(InterruptedError):
            trainer.train(resume_from_checkpoint=resume)
    return model


@pytest.mark.parametrize("workers", [0, 1])
def test_a_trainer_trains_on_the_plan(tmp_path, workers):
    assert trained(tmp_path, dataloader_num_workers=workers).seen == epochs_of()


def test_the_short_batch_is_the_last_of_each_epoch(tmp_path):
    batches = epochs_of(drop_last=False)
    assert trained(tmp_path, "short").seen == batches
    assert sorted(sum(batches[: STEPS + 1], [])) == list(range(N))


def test_accumulated_gradients_change_no_batch(tmp_path):
    whole = trained(tmp_path / "whole", gradient_accumulation_steps=4)
    assert whole.seen == epochs_of(), "6 batches are steps of 4 and 2"
    first = trained(tmp_path / "cut", crash=11, gradient_accumulation_steps=4, save_strategy="steps", save_steps=3)
    second = trained(tmp_path / "cut", resume=True, gradient_accumulation_steps=4)
    assert first.seen[:10] + second.seen == whole.seen
    assert second.weights() == whole.weights()


@pytest.mark.parametrize("kind", ["plan", "cached"])
@pytest.mark.parametrize("steps", [4, STEPS, STEPS + 3])
def test_a_resumed_training_equals_the_uncut_one(tmp_path, kind, steps):
    """The checkpoint lies before, at and behind the end of an epoch; the error comes two batches later."""
    options = {"save_strategy": "steps", "save_steps": steps}
    whole = trained(tmp_path / "whole", kind)
    first = trained(tmp_path / "cut", kind, crash=steps + 2, **options)
    second = trained(tmp_path / "cut", kind, resume=True)
    assert first.seen == whole.seen[: steps + 2]
    assert first.seen[:steps] + second.seen == whole.seen
    assert second.weights() == whole.weights()
    if kind == "plan":
        assert whole.seen == epochs_of()
    if whole.replanner:
        assert whole.replanner.newest.lift > 1
        assert whole.seen[-STEPS:] == whole.replanner.plan(EPOCHS - 1).batches.tolist()


def first_plans(epochs=2):
    """The plans of the first epochs beside a training: those of the encoder before it, which both come from."""
    towers, sampler = Towers(), mbcl.samplers.build("spectral", batch_size=B, k=2)
    with torch.no_grad():
        embeddings = mbcl.Embeddings(*towers.views(samples()))
    return [sampler.plan(N, embeddings, epoch=epoch).batches.tolist() for epoch in range(epochs)]


def test_plans_made_beside_a_training_are_trained_on_and_resumed(tmp_path):
    """The planning process ends with the training; the plan of the last epoch comes from trained weights."""
    whole = trained(tmp_path / "whole", "beside")
    assert whole.seen[: 2 * STEPS] == sum(first_plans(), [])
    assert whole.seen[2 * STEPS :] == whole.replanner.newest.plan.batches.tolist()
    assert whole.replanner.newest.plan.epoch == 2
    assert whole.replanner._service._background._pool is None
    first = trained(tmp_path / "cut", "beside", crash=STEPS + 5, save_strategy="steps", save_steps=STEPS + 3)
    assert first.replanner._service._background._pool is None, "however the training ends"
    second = trained(tmp_path / "cut", "beside", resume=True)
    assert first.seen[: STEPS + 3] + second.seen == whole.seen
    assert second.weights() == whole.weights()


def test_a_checkpoint_of_another_plan_is_refused(tmp_path):
    trained(tmp_path, crash=5, save_strategy="steps", save_steps=4)

    def resume():
        model = Towers()
        other = torch.arange(STEPS * B).view(STEPS, B)
        trainer = Trainer(model, arguments(tmp_path), train_dataset=Samples())
        train_on(trainer, PlannedBatchSampler(type(plan())(other, "own")))
        trainer.train(resume_from_checkpoint=True)

    with pytest.raises(CheckpointError, match="after 4 batches of epoch 0 of another plan"):
        resume()
    with pytest.raises(CheckpointError, match="both must have one, or none"):
        trained(tmp_path, "fresh", resume=True)
    (tmp_path / "checkpoint-4" / "planned_batches.pt").unlink()
    with pytest.raises(CheckpointError, match=r"planned_batches\.pt is missing"):
        trained(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_device_train_batch_size": 8}, "a batch of each rank holds 4 samples, not 8"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"train_sampling_strategy": "group_by_length"}, "the plan has the order, not 'group_by_length'"),
        ({"ignore_data_skip": True}, "ignore_data_skip"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches"),
    ],
    ids=str,
)
def test_arguments_that_contradict_the_plan_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        trained(tmp_path, **options)


def test_a_short_batch_and_dataloader_drop_last_contradict_each_other(tmp_path):
    with pytest.raises(ConfigError, match="dataloader_drop_last"):
        trained(tmp_path, "short", dataloader_drop_last=True)


def test_epochs_of_unequal_length_are_refused(tmp_path):
    made = plan()
    trainer = Trainer(Towers(), arguments(tmp_path), train_dataset=Samples())
    train_on(trainer, PlannedBatchSampler(lambda epoch: type(made)(made.batches[: STEPS - epoch], "own")))
    with pytest.raises(ConfigError, match="epoch 1 has 5 batches, the one before 6"):
        trainer.train()


def test_a_plan_of_another_data_set_is_refused(tmp_path):
    trainer = Trainer(Towers(), arguments(tmp_path), train_dataset=Samples())
    train_on(trainer, PlannedBatchSampler(plan(), num_samples=N + 1))
    with pytest.raises(ConfigError, match="the plan is of 27 samples, the data set has 26"):
        trainer.train()


# -- accelerate ----------------------------------------------------------------------------------------------------


class AccelerateLoop:
    """A loop of its own on accelerate, whose loader is given to ``prepare`` as any other."""

    def __init__(self, kind, workers=0):
        self.accelerator = Accelerator(cpu=True)
        self.towers = Towers()
        self.batches = self.towers.batches(kind)
        optimizer = torch.optim.SGD(self.towers.parameters(), lr=0.1)
        loader = PlannedDataLoader(self.accelerator, Samples(), self.batches, num_workers=workers)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(self.towers, optimizer, loader)
        self.accelerator.register_for_checkpointing(self.loader)

    def run(self, epochs=EPOCHS, stop=None):
        for epoch in range(self.batches.epoch, epochs):
            self.loader.set_epoch(epoch)
            for batch in self.loader:
                self.optimizer.zero_grad()
                self.accelerator.backward(self.model(**batch)["loss"])
                self.optimizer.step()
                if len(self.towers.seen) == stop:
                    return self
        return self


@pytest.mark.parametrize(("kind", "workers"), [("plan", 0), ("plan", 1), ("cached", 0)])
@pytest.mark.parametrize("cut", [STEPS - 1, STEPS + 3])
def test_a_loop_on_accelerate_resumes_behind_the_batch_that_it_was_given(tmp_path, kind, workers, cut):
    whole = AccelerateLoop(kind).run()
    first = AccelerateLoop(kind, workers).run(stop=cut)
    first.accelerator.save_state(str(tmp_path))
    second = AccelerateLoop(kind, workers)
    second.accelerator.load_state(str(tmp_path))
    second.run()
    assert first.towers.seen + second.towers.seen == whole.towers.seen
    assert second.towers.weights() == whole.towers.weights()
    if kind == "plan":
        assert whole.towers.seen == epochs_of()


def test_a_loader_without_set_epoch_counts_epochs_itself_and_skip_first_batches_skips_once():
    loop = AccelerateLoop("plan")
    seen = [batch["position"].tolist() for _ in range(2) for batch in loop.loader]
    assert seen == epochs_of(2)
    rest = [batch["position"].tolist() for batch in skip_first_batches(loop.loader, 4)]
    assert rest == epochs_of(3)[2 * STEPS + 4 :]


@pytest.mark.parametrize("kind", ["plan", "short"])
def test_gather_for_metrics_returns_whole_batches_at_the_end_of_an_epoch_too(kind):
    loop = AccelerateLoop(kind)
    seen = [loop.accelerator.gather_for_metrics(batch["position"]).tolist() for batch in loop.loader]
    assert seen == epochs_of(1, drop_last=kind == "plan")


def test_a_state_behind_an_epoch_s_last_batch_is_followed_by_the_next_epoch():
    first, second = AccelerateLoop("plan").loader, AccelerateLoop("plan").loader
    states = [first.state_dict() for _ in first]
    second.load_state_dict(states[-1])
    assert [list(second), [batch["position"].tolist() for batch in second]] == [[], epochs_of(2)[STEPS:]]


# -- two ranks -----------------------------------------------------------------------------------------------------


def _train_on_a_rank(world, port, folder, kind):
    describe_rank(world, port)
    gloo.allow_children()
    options = {"world_size": world.size, "save_strategy": "steps", "save_steps": STEPS + 2}
    whole = trained(Path(folder, "whole"), kind, world_size=world.size)
    first = trained(Path(folder, "cut"), kind, crash=STEPS + 4, **options)
    second = trained(Path(folder, "cut"), kind, world_size=world.size, resume=True)
    resumed = first.seen[: STEPS + 2] + second.seen == whole.seen
    return whole.seen, whole.weights(), resumed and second.weights() == whole.weights()


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["plan", "short", "cached", "beside"])
def test_two_ranks_of_a_trainer_train_on_their_columns_and_resume(tmp_path, kind):
    """With the gathered batch the weights are those of one rank, but for rounding."""
    (one, weights, resumed), (other, other_weights, other_resumed) = gloo.run(
        _train_on_a_rank, 2, free_port(), tmp_path, kind
    )
    alone = trained(tmp_path / "alone", kind)
    assert joined([one, other]) == alone.seen
    assert resumed
    assert other_resumed
    assert weights == other_weights
    assert distance(weights, alone.weights()) < EXACT


def _loop_on_a_rank(world, port):
    describe_rank(world, port)
    plain = Accelerator(cpu=True)
    sharded = plain.prepare(DataLoader(Samples(), batch_sampler=PlannedBatchSampler(plan())))
    try:
        PlannedDataLoader(plain, Samples(), PlannedBatchSampler(plan(), rank=0, world_size=1))
        message = ""
    except ConfigError as error:
        message = str(error)
    towers = AccelerateLoop("plan").run().towers
    return towers.seen, len(sharded), message


@pytest.mark.dist
def test_two_ranks_of_a_loop_on_accelerate_train_on_their_columns():
    """What ``prepare`` does to a plain loader is the reason for a class of its own."""
    (one, length, _), (other, _, message) = gloo.run(_loop_on_a_rank, 2, free_port())
    assert joined([one, other]) == epochs_of()
    assert length == STEPS // 2
    assert message == "the batches are those of rank 0 of 1, the trainer is rank 1 of 2"
