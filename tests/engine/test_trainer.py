"""The training loop on real digits, in one process."""

from __future__ import annotations

import json
import math
import tempfile

import gloo
import pytest
import torch
from engine import runs

from mbcl.distributed.collectives import World
from mbcl.engine import Trainer
from mbcl.engine.embedding_pass import ViewKey, embed, two_views
from mbcl.engine.gradient_parity import relative_error
from mbcl.engine.metrics_log import KEYS
from mbcl.engine.setup import load_data, model_of
from mbcl.errors import CheckpointError, ConfigError, TrainingError
from mbcl.functional import nt_xent
from mbcl.io.store import LocalStore
from mbcl.optim import cosine_lr


@pytest.fixture(scope="module", params=["shuffle", "osgd", "spectral", "fixed"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    losses, weights, rows = runs.run(World(), folder, runs.experiment(request.param))
    return request.param, folder, losses, weights, rows


def test_trainer_takes_the_same_steps_an_epoch_for_any_sampler(trained):
    _, _, losses, _, rows = trained
    assert len(losses) == 2 * (180 // 16)
    assert [row["step"] for row in rows] == [11, 22]
    assert rows[0]["train/loss"] == pytest.approx(sum(losses[:11]) / 11)


def test_metrics_rows_have_every_key(trained):
    sampler, folder, _, _, rows = trained
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == rows
    for row in lines:
        assert tuple(row) == KEYS
        assert row["plan/conflicts"] is None, "none are counted without skip"
        planned = [row[key] for key in KEYS if key.startswith("plan/") and key != "plan/conflicts"]
        if sampler in ("osgd", "spectral"):
            assert all(math.isfinite(value) for value in planned)
            assert sampler != "osgd" or row["plan/lift"] > 1, "the hardest 2 of 4 batches, by far more than rounding"
            assert row["plan/age"] == 0
        else:
            assert planned == [None] * len(planned)


def test_plan_coverage_is_the_share_of_visited_samples(trained):
    sampler, _, _, _, rows = trained
    expected = {"spectral": 176 / 180, "osgd": None}
    if sampler == "spectral":
        assert rows[0]["plan/coverage"] == pytest.approx(expected["spectral"])
    if sampler == "osgd":
        assert 0.3 < rows[0]["plan/coverage"] < 1


def test_learning_rate_follows_the_cosine_over_all_epochs(tmp_path):
    recorder = runs.Recorder()
    from mbcl.engine import Trainer

    Trainer(runs.experiment(), world=World(), store=LocalStore(tmp_path), observers=[recorder]).run()
    base = 0.05 * math.sqrt(16)
    expected = [cosine_lr(epoch=step / 11, base_lr=base, warmup_epochs=1, epochs=2) for step in range(22)]
    assert recorder.rates == pytest.approx(expected)
    assert recorder.rates[0] == 0
    assert recorder.closed == 1


def test_seed_determines_losses_and_weights(tmp_path):
    first = runs.run(World(), tmp_path / "a", runs.experiment("spectral"))
    repeated = runs.run(World(), tmp_path / "b", runs.experiment("spectral"))
    other = runs.run(World(), tmp_path / "c", runs.experiment("spectral", seed=1))
    assert first[0] == repeated[0]
    assert runs.equal(first[1], repeated[1])
    assert first[0] != other[0]


def test_first_loss_equals_plan_views_model_and_objective_by_hand(tmp_path):
    """Compose plan, views, model and objective by hand."""
    content = runs.exact("shuffle")
    losses, _, _ = runs.run(World(), tmp_path, content)
    data = load_data(content.data, seed=0)
    model = model_of(content, in_channels=1).train()
    from mbcl.seeding import derive

    batch = content.build_sampler().plan(len(data.train), seed=0, epoch=0).batches[0]
    views = two_views(data.train, batch, ViewKey(derive(0, "views"), 0))
    z1, z2 = model(views.double()).chunk(2)
    assert losses[0] == pytest.approx(nt_xent(z1, z2, temperature=0.1).item(), rel=runs.EXACT)


def test_trainer_raises_on_a_loss_that_is_not_finite(tmp_path):
    content = runs.experiment(optimizer={"name": "sgd", "lr": 1e30}, schedule={"warmup_epochs": 0, "scale_lr": "none"})
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+ \(epoch 1, learning rate \S+e\+\d+\)"):
        runs.run(World(), tmp_path, content)


def test_embed_leaves_the_model_unchanged():
    content = runs.experiment()
    data = load_data(content.data, seed=0)
    model = model_of(content, in_channels=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for mode in ("train", "eval"):
        embeddings = embed(model, data.train, ViewKey(0), mode=mode, batch_size=64, world=World())
        assert embeddings.z1.shape == (180, 16)
        assert sorted(embeddings.indices.tolist()) == list(range(180))
    assert runs.equal(model.state_dict(), before)
    assert model.training


def test_embed_normalises_by_chunk_in_training_mode_only():
    content = runs.experiment(train={"precision": "float64"})
    data = load_data(content.data, seed=0)
    model = model_of(content, in_channels=1)
    key = ViewKey(0)

    def embedded(mode, batch_size):
        return embed(model, data.train, key, mode=mode, batch_size=batch_size, world=World()).ordered(180)

    small, large = (embedded("train", n) for n in (30, 180))
    assert relative_error(small.z1, large.z1) > 1000 * runs.EXACT
    small, large = (embedded("eval", n) for n in (30, 180))
    assert relative_error(small.z1, large.z1) < runs.EXACT


def test_two_views_are_equal_only_when_clean():
    data = load_data(runs.experiment().data, seed=0)
    positions = torch.arange(8)
    first, second = two_views(data.train, positions, ViewKey(0, augmented=False)).chunk(2)
    assert torch.equal(first, second)
    first, second = two_views(data.train, positions, ViewKey(0)).chunk(2)
    assert not torch.equal(first, second)


def test_resume_refuses_a_checkpoint_of_another_experiment(tmp_path):
    runs.run(World(), tmp_path, runs.experiment())
    with pytest.raises(CheckpointError, match="belongs to another experiment: seed was 0, now 7; a training goes on"):
        runs.run(World(), tmp_path, runs.experiment(seed=7))


def _train_with_slow_data(world: World) -> int:
    from mbcl.engine import Trainer, trainer

    def slow(experiment):
        rounds(3 * world.rank)
        return loaded(experiment)

    loaded, trainer.load_parts = trainer.load_parts, slow
    try:
        with gloo.short_rounds() as rounds:
            store = LocalStore(tempfile.mkdtemp())
            return Trainer(runs.experiment(), world=world, store=store).sizes.num_train
    finally:
        trainer.load_parts = loaded


@pytest.mark.dist
def test_trainer_waits_for_data_longer_than_one_collective():
    assert gloo.run(_train_with_slow_data, 2) == [180, 180]


def test_trainer_refuses_a_batch_size_not_divisible_by_the_workers(tmp_path):
    from mbcl.engine import Trainer

    with pytest.raises(ConfigError, match="16 is not divisible by 3 workers"):
        Trainer(runs.experiment(), world=World(0, 3, torch.device("cpu")), store=LocalStore(tmp_path))


@pytest.mark.parametrize(("mode", "views"), [("train", "augmented"), ("train", "clean"), ("eval", "augmented")])
def test_embeddings_settings_reach_embed(tmp_path, monkeypatch, mode, views):
    from mbcl.engine import plan_source

    calls = []
    embed = plan_source.embed

    def recorded_embed(model, images, key, **rest):
        calls.append((rest["mode"], key.augmented, rest["batch_size"]))
        return embed(model, images, key, **rest)

    monkeypatch.setattr(plan_source, "embed", recorded_embed)
    content = runs.experiment("spectral", embeddings={"mode": mode, "views": views, "batch_size": 50})
    _, _, rows = runs.run(World(), tmp_path, content)
    assert calls[0] == (mode, views == "augmented", 50)
    assert len(calls) == 2, "a pass an epoch"
    assert all(row["plan/lift"] > 0 for row in rows)


@pytest.mark.parametrize("views", ["augmented", "clean"])
def test_first_plan_in_evaluation_mode_normalises_with_statistics_of_the_views(tmp_path, views):
    """The first batch norm's input does not depend on other layers: its statistics are those of all images."""
    from mbcl.engine import Trainer

    content = runs.exact("spectral", embeddings={"mode": "eval", "views": views, "batch_size": 90})
    learner = Trainer(content, world=World(), store=LocalStore(tmp_path)).learner
    layer = next(each for each in learner.model.modules() if isinstance(each, torch.nn.BatchNorm2d))
    inputs = []
    layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    key = ViewKey(learner.seed, augmented=views == "augmented")
    embed(learner.model, learner.images, key, mode="eval", batch_size=90, world=World())
    variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
    assert relative_error(layer.running_mean, mean) < runs.EXACT
    assert relative_error(layer.running_var, variance) < runs.EXACT
    assert learner.model.training


def test_the_share_of_same_class_pairs_counts_the_trained_batches(tmp_path):
    """The oracle compares every pair of every batch that a step got."""
    trainer = Trainer(runs.experiment("spectral"), world=World(), store=LocalStore(tmp_path))
    labels, equal, pairs = trainer.learner.images.labels.tolist(), [], []
    step = trainer.learner.step

    def counted(batch, **rest):
        classes = [labels[sample] for sample in batch.tolist()]
        alike = [classes[i] == classes[j] for i in range(len(classes)) for j in range(i)]
        equal.append(sum(alike))
        pairs.append(len(alike))
        return step(batch, **rest)

    trainer.learner.step = counted
    trainer.run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = len(pairs) // 2
    assert len(rows) == 2
    for epoch, row in enumerate(rows):
        part = slice(epoch * steps, (epoch + 1) * steps)
        assert row["train/same_class"] == pytest.approx(sum(equal[part]) / sum(pairs[part]), rel=1e-12)
