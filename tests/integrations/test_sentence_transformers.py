"""sentence-transformers trains on the planned batches, cut and resumed, on two ranks too."""

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
    describe_rank,
    distance,
    epochs_of,
    free_port,
    joined,
    plan,
)
from torch import nn

pytest.importorskip("sentence_transformers")

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import mbcl
from mbcl.distributed import collectives
from mbcl.engine.gradient_parity import EXACT
from mbcl.errors import ConfigError
from mbcl.integrations.sentence_transformers import PlannedBatches
from mbcl.torch import PlannedBatchSampler, Replanner

WORDS = [f"word{number}" for number in range(N + 3)]


def texts():
    return [" ".join(WORDS[number : number + 3]) for number in range(N)]


def encoder():
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate([*WORDS, "[UNK]"])}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    static = StaticEmbedding(tokenizer, embedding_dim=4)
    with torch.no_grad():
        static.embedding.weight.copy_(torch.randn(len(WORDS) + 1, 4, generator=torch.Generator().manual_seed(2)))
    return SentenceTransformer(modules=[static], device="cpu").double()


class GatheredLoss(nn.Module):
    """The loss of the global batch, which remembers the positions of its rank: they are the labels."""

    def __init__(self, model, crash=None):
        super().__init__()
        self.model = model
        self.criterion = mbcl.objectives.build("simclr", temperature=0.5)
        self.seen, self.evaluated, self.crash, self.replanner = [], [], crash, None

    def forward(self, features, labels):
        if not torch.is_grad_enabled():
            self.evaluated.append(labels.tolist())
        else:
            if len(self.seen) == self.crash:
                raise InterruptedError
            self.seen.append(labels.tolist())
        z1, z2 = (self.model(feature)["sentence_embedding"] for feature in features)
        z2 = z2.roll(1, 1)
        if self.replanner is not None and torch.is_grad_enabled():
            self.replanner.observe(labels, z1, z2)
        world = collectives.current()
        return self.criterion(*(collectives.gather_with_grad(z, world) for z in (z1, z2)))


def pairs(rows=N):
    sentences = texts()[:rows]
    positives = [f"{WORDS[number]} {WORDS[7 * number % N]}" for number in range(rows)]
    return Dataset.from_dict({"anchor": sentences, "positive": positives, "label": list(range(rows))})


def trained(
    folder,
    kind="plan",
    *,
    ranks=1,
    crash=None,
    resume=False,
    with_callback=True,
    evaluation=None,
    dataset=None,
    **options,
):
    """Train; with ``crash`` until an error, with ``resume`` on from the newest checkpoint."""
    model = encoder()
    loss = GatheredLoss(model, crash)
    if kind == "plan":
        source = plan()
    else:
        source = loss.replanner = Replanner("spectral", batch_size=B, k=2, num_samples=N)
    short = kind == "short"
    batches = PlannedBatchSampler(plan() if short else source, num_samples=N, drop_last=not short)
    planned = PlannedBatches(batches)  # before the process group of several ranks exists
    loss.replanner = None if short else loss.replanner
    defaults = {
        "per_device_train_batch_size": B // ranks,
        "num_train_epochs": EPOCHS,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "ddp_backend": "gloo" if ranks > 1 else None,
        "logging_strategy": "no",
    }
    args = SentenceTransformerTrainingArguments(str(folder), batch_sampler=planned, **defaults | options)
    args.dataloader_drop_last = args.dataloader_drop_last and not short  # on several ranks it is set to true
    callbacks = [planned] if with_callback else []
    dataset = pairs() if dataset is None else dataset
    trainer = SentenceTransformerTrainer(
        model, args, train_dataset=dataset, eval_dataset=evaluation, loss=loss, callbacks=callbacks
    )
    if crash is None:
        trainer.train(resume_from_checkpoint=resume)
    else:
        with pytest.raises(InterruptedError):
            trainer.train(resume_from_checkpoint=resume)
    loss.trainer = trainer
    return loss


def weights(loss):
    return torch.cat([p.detach().flatten() for p in loss.model.parameters()]).tolist()


def test_sentence_transformers_trains_on_the_plan(tmp_path):
    assert trained(tmp_path, dataloader_num_workers=1).seen == epochs_of()


def test_the_short_batch_is_the_last_of_each_epoch(tmp_path):
    assert trained(tmp_path, "short").seen == epochs_of(drop_last=False)


@pytest.mark.parametrize(("kind", "steps"), [("plan", 4), ("plan", STEPS), ("cached", STEPS + 3)])
def test_a_resumed_training_equals_the_uncut_one(tmp_path, kind, steps):
    """The checkpoint lies before, at and behind the end of an epoch; the error comes two batches later."""
    whole = trained(tmp_path / "whole", kind)
    first = trained(tmp_path / "cut", kind, crash=steps + 2, save_strategy="steps", save_steps=steps)
    second = trained(tmp_path / "cut", kind, resume=True)
    assert first.seen == whole.seen[: steps + 2]
    assert first.seen[:steps] + second.seen == whole.seen
    assert weights(second) == weights(whole)
    if kind == "plan":
        assert whole.seen == epochs_of()


@pytest.mark.parametrize("rows", [N, 10])
def test_evaluation_has_all_samples_in_their_own_order(tmp_path, rows):
    """Also where the evaluation set has as many samples as that of the training."""
    options = {"eval_strategy": "epoch", "per_device_eval_batch_size": B}
    loss = trained(tmp_path, evaluation=pairs(rows), **options)
    assert loss.seen == epochs_of()
    assert sum(loss.evaluated, []) == EPOCHS * list(range(rows))


def test_a_missing_callback_is_found_before_the_first_batch(tmp_path):
    with pytest.raises(ConfigError, match=r"callbacks=\[planned\]"):
        trained(tmp_path, with_callback=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_device_train_batch_size": 8}, "a batch of each rank holds 4 samples, not 8"),
        ({"dataset": pairs(9)}, "has other batches than the planned ones"),
        ({"dataset": {"one": pairs(), "two": pairs()}}, "has other batches than the planned ones"),
        ({"ignore_data_skip": True}, "ignore_data_skip"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches"),
    ],
    ids=str,
)
def test_arguments_that_contradict_the_plan_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        trained(tmp_path, **options)


def _train_on_a_rank(world, port, folder, kind):
    describe_rank(world, port)
    options = {"ranks": world.size, "save_strategy": "steps", "save_steps": STEPS + 2}
    evaluation = {"evaluation": pairs(8), "eval_strategy": "epoch", "per_device_eval_batch_size": 2}
    if kind == "short":
        with pytest.raises(ConfigError, match="even_batches would fill the last, short batch"):
            trained(Path(folder, "filled"), kind, ranks=world.size)
        options["accelerator_config"] = evaluation["accelerator_config"] = {"even_batches": False}
    whole = trained(Path(folder, "whole"), kind, ranks=world.size, **evaluation)
    first = trained(Path(folder, "cut"), kind, crash=STEPS + 4, **options)
    second = trained(Path(folder, "cut"), kind, resume=True, **{**options, "save_strategy": "no"})
    resumed = first.seen[: STEPS + 2] + second.seen == whole.seen
    return whole.seen, weights(whole), resumed and weights(second) == weights(whole), whole.evaluated


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["plan", "short", "cached"])
def test_two_ranks_train_on_their_columns_and_resume(tmp_path, kind):
    """With the gathered batch the weights are those of one rank, but for rounding."""
    (one, made, resumed, evaluated), (other, other_made, other_resumed, other_evaluated) = gloo.run(
        _train_on_a_rank, 2, free_port(), tmp_path, kind
    )
    alone = trained(tmp_path / "alone", kind)
    assert joined([one, other]) == alone.seen
    assert resumed
    assert other_resumed
    assert made == other_made
    assert distance(made, weights(alone)) < EXACT
    assert sum(evaluated, []) + sum(other_evaluated, []) == EPOCHS * [0, 1, 4, 5] + EPOCHS * [2, 3, 6, 7]
