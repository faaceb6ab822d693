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


def test_an_epoch_has_the_same_number_of_steps_whatever_the_sampler(trained):
    _, _, losses, _, rows = trained
    assert len(losses) == 2 * (180 // 16)
    assert [row["step"] for row in rows] == [11, 22]
    assert rows[0]["train/loss"] == pytest.approx(sum(losses[:11]) / 11)


def test_every_line_has_every_key(trained):
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


def test_coverage_is_what_the_steps_visited(trained):
    sampler, _, _, _, rows = trained
    expected = {"spectral": 176 / 180, "osgd": None}
    if sampler == "spectral":
        assert rows[0]["plan/coverage"] == pytest.approx(expected["spectral"])
    if sampler == "osgd":
        assert 0.3 < rows[0]["plan/coverage"] < 1


def test_the_schedule_reaches_zero_at_the_end_of_exactly_the_epochs_asked_for(tmp_path):
    recorder = runs.Recorder()
    from mbcl.engine import Trainer

    Trainer(runs.experiment(), world=World(), store=LocalStore(tmp_path), observers=[recorder]).run()
    base = 0.05 * math.sqrt(16)
    expected = [cosine_lr(epoch=step / 11, base_lr=base, warmup_epochs=1, epochs=2) for step in range(22)]
    assert recorder.rates == pytest.approx(expected)
    assert recorder.rates[0] == 0
    assert recorder.closed == 1


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tmp_path):
    first = runs.run(World(), tmp_path / "a", runs.experiment("spectral"))
    again = runs.run(World(), tmp_path / "b", runs.experiment("spectral"))
    other = runs.run(World(), tmp_path / "c", runs.experiment("spectral", seed=1))
    assert first[0] == again[0]
    assert runs.equal(first[1], again[1])
    assert first[0] != other[0]


def test_the_first_step_has_the_loss_of_its_batch_by_hand(tmp_path):
    """Plan, views, model and objective, put together by hand."""
    content = runs.exact("shuffle")
    losses, _, _ = runs.run(World(), tmp_path, content)
    data = load_data(content.data, seed=0)
    model = model_of(content, in_channels=1).train()
    from mbcl.seeding import derive

    batch = content.build_sampler().plan(len(data.train), seed=0, epoch=0).batches[0]
    views = two_views(data.train, batch, ViewKey(derive(0, "views"), 0))
    z1, z2 = model(views.double()).chunk(2)
    assert losses[0] == pytest.approx(nt_xent(z1, z2, temperature=0.1).item(), rel=runs.EXACT)


def test_a_loss_that_is_not_finite_ends_the_training_with_a_reason(tmp_path):
    content = runs.experiment(optimizer={"name": "sgd", "lr": 1e30}, schedule={"warmup_epochs": 0, "scale_lr": "none"})
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+ \(epoch 1, learning rate \S+e\+\d+\)"):
        runs.run(World(), tmp_path, content)


def test_embedding_for_a_plan_leaves_the_model_as_it_was():
    content = runs.experiment()
    data = load_data(content.data, seed=0)
    model = model_of(content, in_channels=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for mode in ("train", "eval"):
        found = embed(model, data.train, ViewKey(0), mode=mode, batch_size=64, world=World())
        assert found.z1.shape == (180, 16)
        assert found.indices.tolist() == list(range(180))
    assert runs.equal(model.state_dict(), before)
    assert model.training


def test_training_mode_normalises_with_the_chunk_and_evaluation_mode_with_the_running_statistics():
    content = runs.experiment(train={"precision": "float64"})
    data = load_data(content.data, seed=0)
    model = model_of(content, in_channels=1)
    key = ViewKey(0)
    small, large = (embed(model, data.train, key, mode="train", batch_size=n, world=World()) for n in (30, 180))
    assert relative_error(small.z1, large.z1) > 1000 * runs.EXACT
    small, large = (embed(model, data.train, key, mode="eval", batch_size=n, world=World()) for n in (30, 180))
    assert relative_error(small.z1, large.z1) < runs.EXACT


def test_clean_views_are_equal_and_augmented_ones_are_not():
    data = load_data(runs.experiment().data, seed=0)
    positions = torch.arange(8)
    first, second = two_views(data.train, positions, ViewKey(0, augmented=False)).chunk(2)
    assert torch.equal(first, second)
    first, second = two_views(data.train, positions, ViewKey(0)).chunk(2)
    assert not torch.equal(first, second)


def test_a_checkpoint_of_another_experiment_is_refused(tmp_path):
    runs.run(World(), tmp_path, runs.experiment())
    with pytest.raises(CheckpointError, match="belongs to another experiment: seed was 0, now 7; a training goes on"):
        runs.run(World(), tmp_path, runs.experiment(seed=7))


def _data_that_one_machine_still_copies(world: World) -> int:
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
def test_data_may_take_one_machine_longer_than_a_collective():
    assert gloo.run(_data_that_one_machine_still_copies, 2) == [180, 180]


def test_a_batch_that_the_workers_cannot_share_is_refused(tmp_path):
    from mbcl.engine import Trainer

    with pytest.raises(ConfigError, match="16 is not divisible by 3 workers"):
        Trainer(runs.experiment(), world=World(0, 3, torch.device("cpu")), store=LocalStore(tmp_path))


@pytest.mark.parametrize(("mode", "views"), [("train", "augmented"), ("train", "clean"), ("eval", "augmented")])
def test_embeddings_are_made_as_the_experiment_says(tmp_path, monkeypatch, mode, views):
    from mbcl.engine import plan_source

    asked = []
    embed = plan_source.embed

    def look(model, images, key, **rest):
        asked.append((rest["mode"], key.augmented, rest["batch_size"]))
        return embed(model, images, key, **rest)

    monkeypatch.setattr(plan_source, "embed", look)
    content = runs.experiment("spectral", embeddings={"mode": mode, "views": views, "batch_size": 50})
    _, _, rows = runs.run(World(), tmp_path, content)
    assert asked[0] == (mode, views == "augmented", 50)
    assert asked[1] == ("eval", True, 512), "validation"
    assert all(row["plan/lift"] > 0 for row in rows)
