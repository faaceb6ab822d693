"""Several workers train on the global batches and views of one worker, to the same weights."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import gloo
import pytest
import torch
from engine import runs
from threads import one_thread

from mbcl.config.base import validate
from mbcl.config.experiment import Experiment, read_experiment
from mbcl.distributed import collectives
from mbcl.distributed.collectives import World
from mbcl.engine import Trainer, build
from mbcl.engine.embedding_pass import ViewKey, embed
from mbcl.errors import TrainingError
from mbcl.io.store import LocalStore
from mbcl.plan import Embeddings
from mbcl.planner import PlanKey

CACHED = {"source": "cached", "batch_size": 64}
CASES = {
    # the number of workers, the experiment of one worker, the changes for several
    "shuffle": (2, runs.exact(), {}),
    "osgd, sogclr": (4, runs.exact("osgd", objective={"name": "sogclr"}), {}),
    "spectral, hcl": (2, runs.exact("spectral", objective={"name": "hcl"}), {}),
    "cached embeddings, dcl": (4, runs.exact("spectral", objective={"name": "dcl"}, embeddings=CACHED), {}),
    "plans ahead": (
        2,
        runs.exact("osgd", planner={"overlap": 1, "every": 2, "warmup_epochs": 1}, train={"epochs": 3}),
        {},
    ),
    "the whole batch in chunks": (
        2,
        runs.exact("spectral", objective={"name": "sogclr"}),
        {"accumulation": {"mode": "cached", "chunk_size": 8}},
    ),
    "plain chunks": (
        2,
        runs.exact(objective={"name": "sogclr"}, train={"accumulation": {"mode": "plain", "chunk_size": 8}}),
        {},
    ),
    "compiled": (2, runs.exact(encoder={"name": "resnet_small", "widths": [8]}), {"compile": True}),
}


@pytest.mark.dist
@pytest.mark.parametrize("name", CASES)
def test_trainer_on_several_workers_equals_one_worker(tmp_path, name):
    num_workers, one, changes = CASES[name]
    several = one.model_copy(update={"train": one.train.model_validate({**one.train.model_dump(), **changes})})
    expected = runs.run(World(), tmp_path / "one", one)
    ranks = gloo.run(runs.run_with_children, num_workers, str(tmp_path / "several"), several)
    assert len(expected[0]) == 5 * one.train.epochs
    for trained in ranks:
        runs.assert_alike(trained, expected)
        parameters = {key: value for key, value in trained[1].items() if "running" not in key}
        first = {key: ranks[0][1][key] for key in parameters}
        assert runs.equal(parameters, first), "the ranks hold the same weights to the last bit"


@pytest.mark.dist
def test_trainer_of_the_shipped_experiment_on_two_workers_equals_one(tmp_path):
    """The encoder, learning rate and batch size that ship, with plans from embeddings."""
    shipped = read_experiment("tune_spaces/digits.yaml")
    changes = {
        "data": {"name": "digits", "max_samples": 215},
        "sampler": {"name": "spectral", "k": 3},
        "train": {**shipped["train"], "epochs": 1, "precision": "float64"},
        "track": [],
    }
    content = validate(Experiment, {**shipped, **changes}, "test")
    expected = runs.run(World(), tmp_path / "one", content)
    assert len(expected[0]) == 6
    for trained in gloo.run(runs.run, 2, str(tmp_path / "two"), content):
        runs.assert_alike(trained, expected)


def _first_plan(world, content):
    """The embeddings before the first step, and the plan made of them."""
    trainer = Trainer(content, world=world, store=LocalStore(tempfile.mkdtemp()))
    learner = trainer.learner
    mode = content.embeddings.mode
    shard = embed(learner.model, learner.images, ViewKey(learner.seed), mode=mode, batch_size=50, world=world)
    embeddings = Embeddings(
        *(collectives.all_gather_ragged(part, world) for part in (shard.z1, shard.z2, shard.indices))
    )
    trainer.plans.request(PlanKey(0, 0), shard, content.build_sampler())
    return embeddings.ordered(180), trainer.plans.receive(PlanKey(0, 0))


@pytest.mark.dist
@pytest.mark.parametrize(("num_workers", "mode"), [(2, "train"), (4, "train"), (2, "eval")])
def test_embed_and_plan_are_bitwise_equal_on_any_number_of_workers(num_workers, mode):
    """Each of the four chunks of 45 samples is embedded by one rank, on one thread, by the same kernels."""
    content = runs.experiment("spectral", embeddings={"mode": mode})
    with one_thread():
        embeddings, planned = _first_plan(World(), content)
    for rank_embeddings, rank_planned in gloo.run(_first_plan, num_workers, content):
        assert torch.equal(rank_embeddings.z1, embeddings.z1)
        assert torch.equal(rank_embeddings.z2, embeddings.z2)
        assert rank_planned.plan.digest == planned.plan.digest
        assert (rank_planned.loss, rank_planned.lift) == (planned.loss, planned.lift)


def _train_on_data_that_rank_1_cannot_hash(world, content):
    loaded = build.load_data

    def load(data, *, seed):
        whole = loaded(data, seed=seed)
        return replace(whole, content=Path("/no/such/file").read_text) if world.rank == 1 else whole

    build.load_data = load
    try:
        Trainer(content, world=world, store=LocalStore(tempfile.mkdtemp()))
    except OSError as error:
        return str(error)
    finally:
        build.load_data = loaded
    return "no error"


@pytest.mark.dist
def test_data_that_one_rank_cannot_hash_end_every_rank():
    error = "[Errno 2] No such file or directory: '/no/such/file'"
    assert gloo.run(_train_on_data_that_rank_1_cannot_hash, 2, runs.experiment()) == [f"rank 1: {error}", error]


def _train_from_weights_that_are_not_finite(world, content):
    trainer = Trainer(content, world=world, store=LocalStore(tempfile.mkdtemp()))
    with torch.no_grad():
        next(trainer.learner.model.parameters()).fill_(float("nan"))
    try:
        trainer._validate()
    except TrainingError as error:
        return str(error)
    return "no error"


@pytest.mark.dist
def test_validation_of_weights_not_finite_ends_every_rank():
    """One rank embeds all 20 validation samples; the other must not wait for it forever."""
    first, second = gloo.run(_train_from_weights_that_are_not_finite, 2, runs.experiment())
    assert "rows are not finite" in first
    assert second != "no error"
